"""Detection: data sets, backbones, training the whole way, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from command_line import Run
from ghn_fast.studies.backbones import Backbone
from ghn_fast.studies.detection import (
    DetectionSettings,
    average_precision,
    make_detector,
    train_detectors,
)
from ghn_fast.studies.detection_data import load_boxes, render_shapes
from ghn_fast.studies.networks import Network, find_networks
from ghn_fast.utils.optional import installed
from tolerances import assert_close


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_shapes(tmp_path_factory.mktemp("data") / "shapes", 6, size=64)


def test_penn_fudans_layout(shapes: Path, tmp_path: Path) -> None:
    found = load_boxes(str(shapes))
    assert (len(found), found.class_names) == (6, ("object",))
    assert found.image(0).shape == (3, 64, 64)
    for boxes, labels in zip(found.boxes, found.labels, strict=True):
        assert 1 <= len(boxes) <= 3 and bool((labels == 1).all())
        assert bool((boxes[:, 2:] > boxes[:, :2]).all()) and float(boxes.max()) <= 64
    again = load_boxes(str(render_shapes(tmp_path / "again", 6, size=64)))
    assert torch.equal(again.image(3), found.image(3))
    train, test = found.split(2, seed=1)
    assert len(train) == 4 and not set(train.paths) & set(test.paths)
    with pytest.raises(ValueError, match="test: got 6, but shapes has 6 images"):
        found.split(6, seed=0)
    with pytest.raises(FileNotFoundError, match="PNGImages and PedMasks"):
        load_boxes(str(tmp_path))
    (again.paths[0].parent.parent / "PedMasks" / "Shapes00000_mask.png").unlink()
    with pytest.raises(FileNotFoundError, match="mask"):
        load_boxes(str(tmp_path / "again"))
    with pytest.raises(ValueError, match="needs at least 1 and 32"):
        render_shapes(tmp_path, 0)


def test_cocos_annotations(shapes: Path, tmp_path: Path) -> None:
    boxes = [{"image_id": 7, "category_id": c, "bbox": [1, 2, 10, 20]} for c in (5, 3)]
    boxes.append({"image_id": 7, "category_id": 3, "bbox": [1, 2, 0, 20]})
    image = shapes / "PNGImages" / "Shapes00000.png"
    data = {
        "images": [{"id": 7, "file_name": str(image)}, {"id": 8, "file_name": "none.png"}],
        "categories": [{"id": 5, "name": "cat"}, {"id": 3, "name": "ant"}],
        "annotations": boxes,
    }
    path = tmp_path / "some.json"
    path.write_text(json.dumps(data))
    found = load_boxes(str(path))
    assert found.class_names == ("ant", "cat")
    assert found.boxes[0].tolist() == [[1, 2, 11, 22]] * 2
    assert found.labels[0].tolist() == [2, 1]
    data["annotations"] = []
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="no image has a box"):
        load_boxes(str(path))
    path.write_text("[]")
    with pytest.raises(ValueError, match="is no file of COCO's annotations"):
        load_boxes(str(path))
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_boxes(str(tmp_path / "gone.json"))


def test_backbones_give_the_last_features(network: Network) -> None:
    model = network.build(4, 32).eval()
    backbone = Backbone(model, 32).eval()
    # The pooling to 2×2 is the last to give more than one position.
    assert (backbone.layer, backbone.out_channels) == ("7", 80)
    images = torch.rand(2, 3, 32, 32)
    assert_close(backbone(images), model[:8](images))
    # The classifier goes on working.
    assert model(images).shape == (2, 4)
    backbone(images).sum().backward()
    assert model[0].weight.grad is not None and model[10].weight.grad is None
    cells = find_networks(["deepnets:val:1"], channels=8, cells=4)[0].build(10, 32)
    assert Backbone(cells, 32).layer.startswith("cells.")
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3072, 4))
    with pytest.raises(ValueError, match="a detector needs them"):
        Backbone(flat, 32)
    with pytest.raises(ValueError, match="cannot take images of 16×16"):
        Backbone(flat, 16)


def test_a_detector_trains(shapes: Path, network: Network) -> None:
    pytest.importorskip("torchmetrics")
    pytest.importorskip("pycocotools")
    images = load_boxes(str(shapes))
    settings = DetectionSettings(epochs=2, side=64, test=2, lr=0.01)
    report = train_detectors([network], ["he"], images, settings, num_classes=4)
    again = train_detectors([network], ["he"], images, settings, num_classes=4)
    assert report.to_dict() == again.to_dict()
    (record,) = report.detections
    assert record.error is None
    assert len(record.ap50) == len(record.loss) == 2
    assert all(0 <= value <= 1 for value in record.ap50)
    flat = Network("flat", factory=lambda c, s: nn.Sequential(nn.Flatten(), nn.Linear(12288, c)))
    report = train_detectors([flat], ["random"], images, settings, num_classes=4)
    assert "a detector needs them" in (report.detections[0].error or "")
    for options, message in (
        ({"inits": ["zeros"]}, "needs one of random"),
        ({"inits": []}, "needs at least one of each"),
        ({"settings": DetectionSettings(test=99)}, "has 6 images"),
    ):
        values = {"inits": ["random"], "settings": settings, **options}
        with pytest.raises(ValueError, match=message):
            train_detectors([network], images=images, **values)  # type: ignore[arg-type]


def test_perfect_boxes_have_full_precision(shapes: Path) -> None:
    pytest.importorskip("torchmetrics")
    pytest.importorskip("pycocotools")
    images = load_boxes(str(shapes))

    class Oracle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.at = 0

        def forward(self, batch: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
            boxes, labels = images.boxes[self.at], images.labels[self.at]
            self.at += 1
            return [{"boxes": boxes, "labels": labels, "scores": torch.ones(len(boxes))}]

    assert_close(average_precision(Oracle(), images, torch.device("cpu")), 1.0)


def test_published_anchors() -> None:
    backbone = Backbone(find_networks(["deepnets:val:1"], channels=8, cells=4)[0].build(10, 64))
    detector = make_detector(backbone, 1, 800)
    assert detector.rpn.anchor_generator.sizes == ((32, 64, 128, 256, 512),)
    assert detector.transform.min_size == (800,)


SMALL = ("deepnets:val:1", "--channels", 8, "--cells", 3, "--side", 64, "--shapes", 4,
         "--epochs", 1)  # fmt: skip


@pytest.mark.skipif(
    installed("torchmetrics") and installed("pycocotools"), reason="nothing is missing here"
)
def test_what_is_missing_is_named(tmp_path: Path, run: Run) -> None:
    status, _, error = run("detect", *SMALL, "--test", 2, "--out", tmp_path / "out")
    assert status == 2
    assert "pip install 'ghn-fast[detection]'" in error


def test_the_command(tmp_path: Path, run: Run) -> None:
    pytest.importorskip("torchmetrics")
    pytest.importorskip("pycocotools")
    out = tmp_path / "out"
    common = ("detect", *SMALL, "--out", out)
    status, _, error = run(*common, "--test", 2)
    assert status == 0, error
    data = json.loads((out / "detection.json").read_text())
    assert [d["init"] for d in data["detections"]] == ["random", "predicted"]
    assert (out / "detection.png").stat().st_size > 1000
    status, _, error = run(*common, "--test", 4)
    assert (status, "makes 4 images" in error) == (2, True)
    status, _, error = run("detect", "vit", "--dataset", tmp_path / "gone")
    assert (status, "PNGImages" in error) == (2, True)
