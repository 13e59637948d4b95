"""Detection with Faster R-CNN on backbones whose parameters are predicted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ghn_fast.hypernet import GHN
from ghn_fast.studies.backbones import Backbone
from ghn_fast.studies.detection_data import BoxedImages
from ghn_fast.studies.initialisation import check_init, initialise
from ghn_fast.studies.jobs import refuse_repeats
from ghn_fast.studies.networks import Network
from ghn_fast.utils.errors import one_line
from ghn_fast.utils.modes import evaluation_mode
from ghn_fast.utils.optional import require
from ghn_fast.utils.seeds import derive_seed
from ghn_fast.utils.settings import Section, setting
from ghn_fast.vision.folders import IMAGENET_MEAN, IMAGENET_STD

# AP at 0.5 on Penn-Fudan, backbones ResNet-50, ViT, DARTS (arXiv 2110.13100, table 6).
PUBLISHED: dict[str, dict[str, float]] = {
    "random (He)": {"resnet50": 0.197, "vit": 0.144, "darts": 0.486},
    "predicted (GHN-2, ImageNet)": {"resnet50": 0.560, "vit": 0.436, "darts": 0.785},
    "pretrained (ImageNet)": {"resnet50": 0.876, "vit": 0.468, "darts": 0.881},
}
# Sides of anchors for images whose shorter side is 800 pixels, as published.
_ANCHORS, _ANCHORS_FOR = (32, 64, 128, 256, 512), 800


@dataclass(frozen=True)
class DetectionSettings(Section):
    """How a detector is trained; the defaults are the published ones.

    Attributes:
        epochs: Passes over the training images.
        lr: Learning rate; a tenth of it after every third epoch.
        momentum: Momentum of SGD.
        weight_decay: Weight decay.
        batch_size: Images a step.
        side: Shorter side that images are resized to, in pixels; anchors grow with it.
        test: Images that are held out.
    """

    epochs: int = setting(10, least=1)
    lr: float = setting(0.005, positive=True)
    momentum: float = setting(0.9, least=0)
    weight_decay: float = setting(5e-4, least=0)
    batch_size: int = setting(2, least=1)
    side: int = setting(800, least=32)
    test: int = setting(50, least=1)


@dataclass
class Detection:
    """A detector that was trained from one start.

    Attributes:
        network: Name of the backbone.
        init: Where it started, see :func:`ghn_fast.studies.initialise`.
        seed: Seed of start, split and training.
        ap50: AP at an overlap of 0.5 after each epoch, between 0 and 1.
        loss: Mean loss of each epoch.
        error: Why it failed, or ``None``.
    """

    network: str
    init: str
    seed: int
    ap50: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


@dataclass
class DetectionReport:
    """What training detectors gave.

    Attributes:
        dataset: Name of the data set.
        train: Number of training images.
        test: Number of test images.
        settings: How detectors were trained.
        detections: One for each backbone, start and seed.
        finished: Whether all were done.
    """

    dataset: str
    train: int
    test: int
    settings: dict[str, Any]
    detections: list[Detection]
    finished: bool = True

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def make_detector(backbone: Backbone, classes: int, side: int) -> nn.Module:
    """Faster R-CNN on one feature map, with five sizes and three shapes of anchors, as published.

    Args:
        backbone: The backbone.
        classes: Number of classes, without the background.
        side: Shorter side of the images in pixels.
    """
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.rpn import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    sizes = tuple(max(4, round(a * side / _ANCHORS_FOR)) for a in _ANCHORS)
    if side < 200:
        # The smallest anchors of small images would be smaller than any object.
        sizes = tuple(max(8, round(side * part)) for part in (0.1, 0.2, 0.35, 0.5, 0.75))
    return FasterRCNN(
        backbone,
        num_classes=classes + 1,
        min_size=side,
        max_size=round(side * 5 / 3),
        image_mean=list(IMAGENET_MEAN),
        image_std=list(IMAGENET_STD),
        rpn_anchor_generator=AnchorGenerator((sizes,), ((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], output_size=7, sampling_ratio=2),
    )


def average_precision(model: nn.Module, images: BoxedImages, device: torch.device) -> float:
    """AP at an overlap of 0.5, as COCO measures it, between 0 and 1.

    Args:
        model: The detector.
        images: Images with boxes.
        device: Where the detector is.

    Raises:
        ModuleNotFoundError: If torchmetrics or pycocotools is not installed.
    """
    measure = _metric()
    with evaluation_mode(model), torch.no_grad():
        for index in range(len(images)):
            found = model([images.image(index).to(device)])[0]
            predicted = {key: found[key].cpu() for key in ("boxes", "scores", "labels")}
            truth = {"boxes": images.boxes[index], "labels": images.labels[index]}
            measure.update([predicted], [truth])
    value = float(measure.compute()["map_50"])
    return max(value, 0.0)  # -1 stands for nothing to measure


def _metric() -> Any:
    purpose = "measurements of detectors"
    require("pycocotools", "detection", purpose)
    metrics = require("torchmetrics.detection", "detection", purpose)
    return metrics.MeanAveragePrecision(iou_type="bbox", backend="pycocotools")


def train_detectors(
    networks: Sequence[Network],
    inits: Sequence[str],
    images: BoxedImages,
    settings: DetectionSettings | None = None,
    *,
    ghn: GHN | None = None,
    num_classes: int = 1000,
    seeds: Sequence[int] = (0,),
    device: str | torch.device = "cpu",
    stop: threading.Event | None = None,
    on_step: Callable[[str, int, int, float], None] | None = None,
    on_result: Callable[[int, int, Detection], None] | None = None,
) -> DetectionReport:
    """Train Faster R-CNN on every backbone from every start with every seed.

    Training and test images are split at random by the seed. Training images are mirrored at
    random.

    Args:
        networks: The classifiers whose features detectors read.
        inits: Where they start; see :func:`ghn_fast.studies.initialise`.
        images: The data set.
        settings: How detectors are trained.
        ghn: The hypernetwork, for predicted starts.
        num_classes: Classes of the classifiers, which are not used but decide what is predicted;
            those of the hypernetwork if there is one.
        seeds: Seeds.
        device: Where detectors are trained.
        stop: When it is set, the report has what is done by then.
        on_step: Called after a step with what is trained, steps done, of all, and the loss.
        on_result: Called with (done, total, detection) after each training.

    Raises:
        ValueError: If there is nothing to train, a start or seed comes twice, or there are too few
            images.
        ModuleNotFoundError: If torchmetrics or pycocotools is not installed.
    """
    settings = settings or DetectionSettings()
    _metric()  # before the work, not after it
    refuse_repeats(inits=inits, seeds=seeds)
    for init in inits:
        check_init(init, ghn)
    jobs = [(net, init, seed) for net in networks for init in inits for seed in seeds]
    if not jobs:
        raise ValueError("networks, inits, seeds: one of them is empty, needs at least one of each")
    train, test = images.split(settings.test, seeds[0])
    report = DetectionReport(images.name, len(train), len(test), asdict(settings), [])
    classes = num_classes if ghn is None else ghn.config.num_classes
    for done, (network, init, seed) in enumerate(jobs, start=1):
        record = Detection(network.name, init, seed)
        report.detections.append(record)
        try:
            report.finished = _train_one(
                record, network, images, settings, ghn, classes, torch.device(device), stop, on_step
            )
        except Exception as error:
            record.error = one_line(error)
        if on_result is not None:
            on_result(done, len(jobs), record)
        if not report.finished:
            break
    return report


def _train_one(
    record: Detection,
    network: Network,
    images: BoxedImages,
    settings: DetectionSettings,
    ghn: GHN | None,
    classes: int,
    device: torch.device,
    stop: threading.Event | None,
    on_step: Callable[[str, int, int, float], None] | None,
) -> bool:
    """Train a detector; whether it was trained to the end."""
    seed = record.seed
    train, test = images.split(settings.test, seed)
    model = initialise(network, record.init, classes, settings.side, ghn=ghn, seed=seed)
    backbone = Backbone(model, settings.side)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed("detector", network.name, seed))
        detector = make_detector(backbone, len(images.class_names), settings.side).to(device)
        trained = [p for p in detector.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(
            trained, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.1)
        steps = -(-len(train) // settings.batch_size)
        for epoch in range(settings.epochs):
            generator = torch.Generator().manual_seed(derive_seed("order", seed, epoch))
            order = torch.randperm(len(train), generator=generator).split(settings.batch_size)
            mirrored = torch.rand(len(train), generator=generator) < 0.5
            detector.train()
            losses = []
            for step, chosen in enumerate(order, start=1):
                if stop is not None and stop.is_set():
                    return False
                torch.manual_seed(derive_seed("sampling", seed, epoch, step))
                batch = [_sample(train, i, bool(mirrored[i]), device) for i in chosen.tolist()]
                found = detector([image for image, _ in batch], [truth for _, truth in batch])
                loss = sum(found.values(), torch.zeros((), device=device))
                if not bool(torch.isfinite(loss)):
                    raise RuntimeError(f"the loss became infinite in epoch {epoch + 1}")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
                if on_step is not None:
                    label = f"{network.name}, {record.init}"
                    on_step(label, epoch * steps + step, settings.epochs * steps, losses[-1])
            schedule.step()
            record.loss.append(sum(losses) / len(losses))
            record.ap50.append(average_precision(detector, test, device))
    return True


def _sample(
    images: BoxedImages, index: int, mirrored: bool, device: torch.device
) -> tuple[Tensor, dict[str, Tensor]]:
    image, boxes = images.image(index), images.boxes[index].clone()
    if mirrored:
        image = image.flip(2)
        boxes[:, [0, 2]] = image.shape[2] - boxes[:, [2, 0]]
    truth = {"boxes": boxes.to(device), "labels": images.labels[index].to(device)}
    return image.to(device), truth
