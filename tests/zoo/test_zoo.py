"""Networks that people use: each is captured, predicted and accounted for, and nothing is harmed.

Not among the quick tests: ``pytest -m zoo tests/zoo`` runs them. A collection that is not installed
is skipped. The test at the end takes a sample by hand, and always runs.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from transformers_zoo import ZOO, build

import ghn_fast
from ghn_fast.capturing import capture
from snapshots import snapshot

zoo = pytest.mark.zoo


@pytest.fixture(scope="module")
def ghn() -> ghn_fast.GHN:
    torch.manual_seed(0)
    return ghn_fast.GHN(ghn_fast.GHNConfig(hid=8, max_shape=(16, 16, 3, 3))).eval()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def generators() -> list[Any]:
    numpy_state = np.random.get_state()
    return [random.getstate(), str(numpy_state), torch.get_rng_state().tolist()]


def check(ghn: ghn_fast.GHN, model: nn.Module, run: bool = True, **inputs: Any) -> tuple[int, int]:
    """Capture, predict and run a network; returns how many tensors were predicted, and kept."""
    before, drawn = snapshot(model), generators()
    graph = capture(model, **inputs)
    assert snapshot(model) == before
    assert generators() == drawn
    names = {name for name, _ in model.named_parameters()}
    predicted = {target.name for target in graph.targets}
    assert not predicted & set(graph.skipped)
    assert predicted | set(graph.skipped) | set(graph.aliases) >= names
    assert all(graph.skipped.values())
    kept = {
        name: value.clone() for name, value in model.named_parameters() if name not in predicted
    }
    report = ghn.predict(model, **inputs)
    assert set(report.predicted) | set(report.skipped) == names
    for name, value in model.named_parameters():
        assert bool(torch.isfinite(value).all()), name
        if name in report.skipped:
            assert torch.equal(value, kept[name]), name
    if run:
        example = inputs.get("example_inputs")
        if example is None:
            example = torch.randn(2, *inputs["input_shape"])
        with torch.no_grad():
            result = (
                model(**example)
                if isinstance(example, dict)
                else model(*(example if isinstance(example, tuple) else (example,)))
            )
        assert result is not None
    return len(report.predicted), len(report.skipped)


# ---- transformers


@zoo
@pytest.mark.parametrize("name", ZOO)
def test_transformers(ghn: ghn_fast.GHN, name: str) -> None:
    pytest.importorskip("transformers")
    model, inputs = build(name)
    check(ghn, model, example_inputs=inputs)


# ---- torchvision

DETECTION = torchvision.models.list_models(module=torchvision.models.detection)
OTHERS = [
    *torchvision.models.list_models(module=torchvision.models.segmentation),
    *torchvision.models.list_models(module=torchvision.models.video),
]


@zoo
@pytest.mark.parametrize("name", DETECTION)
def test_detection_of_torchvision(ghn: ghn_fast.GHN, name: str) -> None:
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None).eval()
    _, kept = check(ghn, model, run=False, example_inputs=([torch.zeros(3, 320, 320)],))
    assert kept == 0


@zoo
@pytest.mark.parametrize("name", OTHERS)
def test_segmentation_and_video_of_torchvision(ghn: ghn_fast.GHN, name: str) -> None:
    options = (
        {}
        if name in torchvision.models.list_models(module=torchvision.models.video)
        else {"weights_backbone": None}
    )
    model = torchvision.models.get_model(name, weights=None, **options).eval()
    shape = (3, 64, 64) if options else (3, 16, 224, 224)
    check(ghn, model, run=False, input_shape=shape)


# ---- ultralytics

YOLOS = {
    "DetectionModel": ["yolov3.yaml", "yolov5n.yaml", "yolov6n.yaml", "yolov8n.yaml",
                       "yolov9t.yaml", "yolov10n.yaml", "yolo11n.yaml", "yolo12n.yaml"],
    "SegmentationModel": ["yolo11n-seg.yaml"],
    "PoseModel": ["yolo11n-pose.yaml"],
    "OBBModel": ["yolo11n-obb.yaml"],
    "ClassificationModel": ["yolo11n-cls.yaml"],
    "RTDETRDetectionModel": ["rtdetr-resnet50.yaml"],
}  # fmt: skip


@zoo
@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in YOLOS.items() for name in names]
)
def test_ultralytics(
    ghn: ghn_fast.GHN, kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "YOLO_CONFIG_DIR", os.fspath(tmp_path))
    tasks = pytest.importorskip("ultralytics.nn.tasks")
    check(ghn, getattr(tasks, kind)(name, verbose=False).eval(), input_shape=(3, 256, 256))


# ---- timm


def timm_families() -> list[str]:
    """The smallest network of each family, by name."""
    try:
        import timm
    except ImportError:
        return []
    return sorted(timm.list_modules())


def smallest(family: str) -> nn.Module:
    import timm

    models = timm.list_models(module=family)
    with torch.device("meta"):
        sizes = {}
        for name in models[:: max(1, len(models) // 6)]:
            try:
                net = timm.create_model(name, pretrained=False)
            except (NotImplementedError, RuntimeError):
                continue
            sizes[name] = sum(parameter.numel() for parameter in net.parameters())
    name = min(sizes or {models[0]: 0}, key=lambda name: sizes.get(name, 0))
    return timm.create_model(name, pretrained=False)


@zoo
@pytest.mark.parametrize("family", timm_families() or ["timm is not installed"])
def test_timm(ghn: ghn_fast.GHN, family: str) -> None:
    pytest.importorskip("timm")
    import timm

    if not timm.list_models(module=family):
        pytest.skip(f"{family} has no network of its own")
    model = smallest(family).eval()
    check(ghn, model, input_shape=model.default_cfg["input_size"])


# ---- a sample by hand


class Detector(nn.Module):
    """Boxes and scores at each place, and those that score enough."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
        self.score, self.box = nn.Conv2d(8, 2, 1), nn.Conv2d(8, 4, 1)

    def forward(self, images: list[Tensor]) -> list[dict[str, Any]]:
        x = self.body(torch.stack(images))
        scores = self.score(x).flatten(2).softmax(1)[:, 1]
        boxes = self.box(x).flatten(2).transpose(1, 2)
        found = []
        for score, box in zip(scores, boxes, strict=True):
            box = box[score > 0.2]
            keep = torchvision.ops.nms(box, score[score > 0.2], 0.5)
            found.append({"boxes": box[keep], "areas": [float(b[2] * b[3]) for b in box[keep]]})
        return found


class Decoder(nn.Module):
    """Words one after the other, until one ends the sentence."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(20, 16), nn.Linear(16, 20)
        self.rnn = nn.GRU(16, 16, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        state = None
        word = ids
        for _ in range(5):
            h, state = self.rnn(self.words(word), state)
            word = self.head(h[:, -1:]).argmax(-1)
            ids = torch.cat([ids, word], 1)
            if (word == 0).all():
                break
        return ids


class Encoder(nn.Module):
    """Attention over padded sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 16), nn.Embedding(10, 16)
        self.register_buffer("ids", torch.arange(10)[None], persistent=False)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.layers, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(16, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        h = self.words(ids) + self.places(self.ids[:, : ids.shape[1]])
        if not mask.all():
            h = self.layers(h, src_key_padding_mask=~mask)
        lengths = mask.sum(1)
        return self.head(h[torch.arange(len(ids)), lengths - 1])


class Unet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, 2, 1)
        self.up, self.out = nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(11, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(F.relu(self.down(x)))
        return self.out(torch.cat([h, F.interpolate(x, h.shape[-2:])], 1))


IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
SAMPLE: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "detector": (Detector, {"example_inputs": ([torch.zeros(3, 16, 16)],)}),
    "decoder": (Decoder, {"example_inputs": IDS}),
    "encoder": (Encoder, {"example_inputs": {"ids": IDS, "mask": IDS > 0}}),
    "unet": (Unet, {"input_shape": (3, 16, 16)}),
}


@pytest.mark.parametrize("name", SAMPLE)
def test_sample(ghn: ghn_fast.GHN, name: str) -> None:
    make, inputs = SAMPLE[name]
    check(ghn, make().eval(), **inputs)
