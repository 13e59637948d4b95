"""Networks that people use: each is captured, predicted and accounted for, and nothing is harmed.

Not among the quick tests: ``pytest -m zoo tests/zoo`` runs them. A collection that is not installed
is skipped. With GHN_FAST_ZOO_TABLE=docs/graphs.md what was counted becomes the table of coverage
there. The test at the end takes a sample by hand, and always runs.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from coverage_table import Row, write_table
from torch import Tensor, nn
from torch.nn import functional as F
from transformers_zoo import ZOO, build

import ghn_fast
from ghn_fast.capturing import capture
from snapshots import snapshot

zoo = pytest.mark.zoo
# Networks of more parameters are built on the meta device and captured, and not predicted.
MOST_PARAMETERS = 150_000_000


@pytest.fixture(scope="module")
def ghn() -> ghn_fast.GHN:
    torch.manual_seed(0)
    return ghn_fast.GHN(ghn_fast.GHNConfig(hid=8, max_shape=(16, 16, 3, 3))).eval()


@pytest.fixture(scope="module")
def row(request: pytest.FixtureRequest) -> Iterator[Callable[[Any, int], Row]]:
    """Row of the table for a collection, given its package and the number of its networks.

    Rows of collections whose networks were all tried are written at the end.
    """
    rows: dict[str, tuple[Row, int]] = {}

    def start(package: Any, networks: int) -> Row:
        name = f"{package.__name__} {package.__version__.partition('+')[0]}"
        found, _ = rows.setdefault(name, (Row(name), networks))
        found.networks += 1
        return found

    yield start
    path = os.environ.get("GHN_FAST_ZOO_TABLE")
    if path:
        complete = [row for row, networks in rows.values() if row.networks == networks]
        write_table(request.config.invocation_params.dir / path, complete)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def generators() -> list[Any]:
    numpy_state = np.random.get_state()
    return [random.getstate(), str(numpy_state), torch.get_rng_state().tolist()]


def check(
    ghn: ghn_fast.GHN,
    model: nn.Module,
    run: bool = True,
    row: Row | None = None,
    **inputs: Any,
) -> dict[str, str]:
    """Capture, predict and run a network; returns the tensors that were kept, with the reasons."""
    before, drawn = snapshot(model), generators()
    graph = capture(model, **inputs)
    assert snapshot(model) == before
    assert generators() == drawn
    parameters = dict(model.named_parameters())
    predicted = {target.name for target in graph.targets}
    assert not predicted & set(graph.skipped)
    assert predicted | set(graph.skipped) | set(graph.aliases) >= parameters.keys()
    assert all(graph.skipped.values())
    if next(iter(parameters.values())).is_meta:
        kept = dict(graph.skipped)
    else:
        kept = predict(ghn, model, predicted, **inputs)
        if run:
            assert output_of(model, inputs) is not None
    if row is not None:
        row.count(len(parameters.keys() - kept.keys()), kept)
    return kept


def predict(
    ghn: ghn_fast.GHN, model: nn.Module, expected: set[str], **inputs: Any
) -> dict[str, str]:
    """Predict a network; what is not predicted must stay as it was."""
    parameters = dict(model.named_parameters())
    old = {
        name: value.clone()
        for name, value in parameters.items()
        if name not in expected or not value.requires_grad
    }
    report = ghn.predict(model, **inputs)
    assert set(report.predicted) | set(report.skipped) == parameters.keys()
    for name, value in model.named_parameters():
        assert bool(torch.isfinite(value).all()), name
        if name in report.skipped:
            assert torch.equal(value, old[name]), name
    return dict(report.skipped)


def output_of(model: nn.Module, inputs: dict[str, Any]) -> Any:
    """What a network computes of its inputs."""
    example = inputs.get("example_inputs")
    if example is None:
        example = torch.randn(2, *inputs["input_shape"])
    with torch.no_grad():
        if isinstance(example, dict):
            return model(**example)
        return model(*(example if isinstance(example, tuple) else (example,)))


def on_meta_if_large(make: Callable[[], nn.Module]) -> nn.Module:
    """A network with values, unless they are too many."""
    try:
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in make().parameters())
    except (NotImplementedError, RuntimeError):
        size = 0
    with torch.device("meta") if size > MOST_PARAMETERS else nullcontext():
        return make().eval()


# ---- transformers


@zoo
@pytest.mark.parametrize("name", ZOO)
def test_transformers(ghn: ghn_fast.GHN, row: Callable[..., Row], name: str) -> None:
    counted = row(pytest.importorskip("transformers"), len(ZOO))
    model, inputs = build(name)
    check(ghn, model, row=counted, example_inputs=inputs)


# ---- torchvision

MODELS = torchvision.models
DETECTION = MODELS.list_models(module=MODELS.detection)
VIDEO = MODELS.list_models(module=MODELS.video)
FLOW = MODELS.list_models(module=MODELS.optical_flow)
SEGMENTATION = MODELS.list_models(module=MODELS.segmentation)
TORCHVISION = MODELS.list_models()
# Those that want images of another size than others do.
SIZES = {"inception_v3": 299, "quantized_inception_v3": 299, "maxvit_t": 224}


def torchvision_inputs(name: str) -> dict[str, Any]:
    if name in DETECTION:
        return {"example_inputs": ([torch.zeros(3, 320, 320)],)}
    if name in VIDEO:
        return {"input_shape": (3, 16, 224, 224)}
    if name in FLOW:
        return {"input_shape": [(3, 128, 128), (3, 128, 128)]}
    size = SIZES.get(name, 64 if name in SEGMENTATION else 224)
    return {"input_shape": (3, size, size)}


@zoo
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(ghn: ghn_fast.GHN, row: Callable[..., Row], name: str) -> None:
    counted = row(torchvision, len(TORCHVISION))
    options: dict[str, Any] = {"weights": None}
    if name in DETECTION or name in SEGMENTATION:
        options["weights_backbone"] = None
    if "inception" in name or "googlenet" in name:
        options["init_weights"] = False
    model = on_meta_if_large(lambda: MODELS.get_model(name, **options))
    kept = check(ghn, model, run=False, row=counted, **torchvision_inputs(name))
    if name in DETECTION:
        assert not kept


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
YOLO_NAMES = [(kind, name) for kind, names in YOLOS.items() for name in names]


@zoo
@pytest.mark.parametrize(("kind", "name"), YOLO_NAMES)
def test_ultralytics(
    ghn: ghn_fast.GHN,
    row: Callable[..., Row],
    kind: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(os.environ, "YOLO_CONFIG_DIR", os.fspath(tmp_path))
    tasks = pytest.importorskip("ultralytics.nn.tasks")
    counted = row(pytest.importorskip("ultralytics"), len(YOLO_NAMES))
    model = getattr(tasks, kind)(name, verbose=False).eval()
    check(ghn, model, row=counted, input_shape=(3, 256, 256))


# ---- segmentation_models_pytorch

SMP_DECODERS = """
Unet UnetPlusPlus MAnet Linknet FPN PSPNet DeepLabV3 DeepLabV3Plus PAN UPerNet Segformer
"""
# The smallest encoder of each family, by a decoder that takes them all.
SMP_ENCODERS = """
resnext50_32x4d dpn68 vgg11_bn se_resnet50 densenet121 inceptionresnetv2 inceptionv4 efficientnet-b0
mobilenet_v2 xception timm-efficientnet-b0 timm-skresnet18 mit_b0 mobileone_s0
"""
SMP = [
    *((decoder, "resnet18") for decoder in SMP_DECODERS.split()),
    *(("FPN", encoder) for encoder in SMP_ENCODERS.split()),
    ("DPT", "tu-vit_tiny_patch16_224"),
]


@zoo
@pytest.mark.parametrize(("decoder", "encoder"), SMP)
def test_segmentation_models_pytorch(
    ghn: ghn_fast.GHN, row: Callable[..., Row], decoder: str, encoder: str
) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    counted = row(smp, len(SMP))
    model = getattr(smp, decoder)(encoder_name=encoder, encoder_weights=None).eval()
    size = {"DPT": 224, "PAN": 128}.get(decoder, 64)
    check(ghn, model, row=counted, input_shape=(3, size, size))


# ---- timm


def timm_families() -> list[str]:
    """The families that have networks of their own, by name."""
    try:
        import timm
    except ImportError:
        return []
    return [family for family in sorted(timm.list_modules()) if timm.list_models(module=family)]


TIMM = timm_families()


def smallest(family: str) -> nn.Module:
    """The smallest network of a family, of some six that are looked at."""
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
    return on_meta_if_large(lambda: timm.create_model(name, pretrained=False))


@zoo
@pytest.mark.parametrize("family", TIMM or ["timm is not installed"])
def test_timm(ghn: ghn_fast.GHN, row: Callable[..., Row], family: str) -> None:
    counted = row(pytest.importorskip("timm"), len(TIMM))
    model = smallest(family)
    check(ghn, model, row=counted, input_shape=model.default_cfg["input_size"])


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
