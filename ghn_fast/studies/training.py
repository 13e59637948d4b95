"""Ordinary training of a network by SGD or Adam, from any parameters, continued exactly."""

from __future__ import annotations

import io
import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ghn_fast.studies.curves import Point, TrainingCurve
from ghn_fast.studies.identity import about_training, refuse_another
from ghn_fast.utils.files import write_atomically
from ghn_fast.utils.json_files import to_json
from ghn_fast.utils.modes import evaluation_mode
from ghn_fast.utils.seeds import derive_seed
from ghn_fast.utils.settings import Section, setting
from ghn_fast.vision.batches import eval_batches, train_batches
from ghn_fast.vision.evaluate import accuracy
from ghn_fast.vision.images import ImageSplits
from ghn_fast.vision.running_statistics import collect_running_statistics, statistics_batches

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("cosine", "constant")
STATE = "training.pt"
"""File of the state of a training."""


@dataclass(frozen=True)
class TrainingSettings(Section):
    """How a network is trained; the defaults are the published ones for CIFAR-10.

    Attributes:
        epochs: Passes over the training images (arXiv 2110.13100, appendix B: 50).
        steps: Number of steps instead, where that is given.
        optimizer: ``sgd`` with momentum, ``adam`` or ``adamw``.
        lr: Learning rate at the start.
        momentum: Momentum of SGD.
        weight_decay: Weight decay.
        schedule: ``cosine``, from ``lr`` to zero over all steps, or ``constant``.
        warmup: Steps in which the learning rate grows linearly.
        batch_size: Images a step, at most as many as there are.
        clip: Largest norm of the gradient of all parameters; 0 for any.
        label_smoothing: Share of the target that is spread over all classes.
        augment: Whether images are augmented as the data set says.
        evaluations: How often the network is evaluated, the start and the end included.
    """

    epochs: float = setting(50.0, positive=True)
    steps: int | None = setting(None, least=1)
    optimizer: str = setting("sgd", choices=OPTIMIZERS)
    lr: float = setting(0.025, positive=True)
    momentum: float = setting(0.9, least=0)
    weight_decay: float = setting(3e-4, least=0)
    schedule: str = setting("cosine", choices=SCHEDULES)
    warmup: int = setting(0, least=0)
    batch_size: int = setting(96, least=2)
    clip: float = setting(5.0, least=0)
    label_smoothing: float = setting(0.0, least=0)
    augment: bool = True
    evaluations: int = setting(11, least=2)

    def total_steps(self, images: int) -> int:
        """Steps of the whole training on so many images."""
        if self.steps is not None:
            return self.steps
        return max(1, round(self.epochs * (images // self.images_a_step(images))))

    def images_a_step(self, images: int) -> int:
        """Images a step where there are so many in all."""
        return min(self.batch_size, images)

    def lr_at(self, step: int, total: int) -> float:
        """Learning rate of step ``step`` (from 0 on) of ``total``."""
        warm = min(1.0, (step + 1) / (self.warmup + 1))
        if self.schedule == "constant":
            return self.lr * warm
        return self.lr * warm * 0.5 * (1 + math.cos(math.pi * step / total))

    def evaluation_steps(self, total: int) -> list[int]:
        """The steps after which the network is evaluated."""
        parts = self.evaluations - 1
        return sorted({round(total * part / parts) for part in range(parts + 1)})


@dataclass
class TrainingResult:
    """What a training gave.

    Attributes:
        curve: How the network learned.
        finished: Whether all steps were done; otherwise the same call continues, given a folder.
        diverged: Whether the loss became infinite or NaN, which ended the training.
    """

    curve: TrainingCurve
    finished: bool
    diverged: bool = False


def train_network(
    model: nn.Module,
    splits: ImageSplits,
    settings: TrainingSettings | None = None,
    *,
    images: str = "test",
    seed: int = 0,
    folder: str | Path | None = None,
    about: Mapping[str, Any] | None = None,
    parameters: Iterable[Tensor] | None = None,
    checkpoint_seconds: float = 120.0,
    stop: threading.Event | None = None,
    on_step: Callable[[int, int, TrainingCurve], None] | None = None,
) -> TrainingResult:
    """Train a network, in place.

    Evaluations use running statistics of BatchNorm layers: those of the training, and before the
    first step averages over up to 200 batches of training images, not augmented, so that predicted
    parameters are measured as they are. Two calls with the same arguments give the same numbers on
    the same device, and so does a call that continues an interrupted one.

    Args:
        model: The network, on the device where it is trained.
        splits: The image data set.
        settings: How; by default as published.
        images: The images of the evaluations: ``test`` or ``val``.
        seed: Seed of the order and augmentation of images, and of dropout.
        folder: Where the state is kept, so that the training can be continued; by default nowhere.
        about: What else identifies the training (:mod:`ghn_fast.studies.identity`): network and
            start. A state in ``folder`` is continued if it is of the same.
        parameters: What is trained, all that require gradients by default.
        checkpoint_seconds: Seconds between two states.
        stop: When it is set, the training ends after the current step.
        on_step: Called after each step with the number of steps done, of all, and the curve.

    Raises:
        ValueError: If the network has no classifier for the data set, ``images`` is unknown, there
            are fewer than 2 training images or none to evaluate on, or ``folder`` holds a training
            of anything else.
    """
    settings = settings or TrainingSettings()
    if images not in ("test", "val"):
        raise ValueError(f"images: got {images!r}, needs test or val")
    count = len(splits.train)
    if count < 2:
        raise ValueError(f"splits: {splits.name} has {count} training images, needs at least 2")
    if not len(splits.split(images)):
        raise ValueError(f"images: got {images!r}, but {splits.name} has none of these")
    identity = {**about_training(splits, asdict(settings), images, seed), **(about or {})}
    if not settings.augment:
        splits = replace(splits, augment="none")
    device = next(model.parameters(), torch.empty(0)).device
    check_classifier(model, splits, device)
    trained = [
        p for p in (model.parameters() if parameters is None else parameters) if p.requires_grad
    ]
    if not trained:
        raise ValueError("model: none of its parameters requires gradients, needs one to train")
    optimizer = _optimizer(trained, settings)
    total, batch = settings.total_steps(count), settings.images_a_step(count)
    at = settings.evaluation_steps(total)
    curve = TrainingCurve(images=batch)
    state = None if folder is None else _State(Path(folder), identity)
    if state is not None:
        curve = state.load(model, optimizer, curve)
    if not curve.points:
        collect_running_statistics(
            model, statistics_batches(splits, batch, seed=seed, device=device)
        )
        curve.points.append(_evaluate(model, splits, images, device, 0))
    diverged, saved = False, time.monotonic()
    batches = train_batches(splits, batch, seed=seed, start_step=curve.steps, device=device)
    model.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        while curve.steps < total:
            if stop is not None and stop.is_set():
                break
            start = time.perf_counter()
            loss, top1 = _step(model, next(batches), optimizer, settings, curve.steps, total, seed)
            curve.seconds += time.perf_counter() - start
            if not math.isfinite(loss):
                diverged = True
                break
            curve.train_loss.append(loss)
            curve.train_top1.append(top1)
            if curve.steps in at:
                curve.points.append(_evaluate(model, splits, images, device, curve.steps))
                model.train()
            if on_step is not None:
                on_step(curve.steps, total, curve)
            if state is not None and time.monotonic() - saved > checkpoint_seconds:
                state.save(model, optimizer, curve)
                saved = time.monotonic()
    if state is not None and not diverged:
        state.save(model, optimizer, curve)
    model.eval()
    return TrainingResult(curve, diverged or curve.steps >= total, diverged)


def check_classifier(model: nn.Module, splits: ImageSplits, device: torch.device) -> None:
    """Refuse a network that is no classifier for a data set, before it is trained.

    Raises:
        ValueError: If it does not return logits for the data set's classes.
    """
    side = splits.image_size
    try:
        with evaluation_mode(model), torch.no_grad():
            output = model(torch.zeros(2, 3, side, side, device=device))
    except RuntimeError as error:
        raise ValueError(f"model: cannot take images of {side}×{side} pixels: {error}") from error
    logits = logits_of(output)
    shape = tuple(logits.shape) if logits is not None else type(output).__name__
    if logits is None or logits.ndim != 2 or logits.shape[1] != splits.num_classes:
        raise ValueError(
            f"model: returns {shape} for 2 images, needs logits (2, {splits.num_classes}): a "
            f"classifier of the {splits.num_classes} classes of {splits.name}"
        )


def logits_of(output: Any) -> Tensor | None:
    """The logits among what a network returns: a tensor, the first of several, or of a dict."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    elif isinstance(output, dict):
        output = output.get("out", next(iter(output.values()), None))
    return output if isinstance(output, Tensor) else None


def _optimizer(parameters: list[Any], settings: TrainingSettings) -> torch.optim.Optimizer:
    lr, decay = settings.lr, settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr, momentum=settings.momentum, weight_decay=decay)
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr, weight_decay=decay)


def _step(
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    optimizer: torch.optim.Optimizer,
    settings: TrainingSettings,
    step: int,
    total: int,
    seed: int,
) -> tuple[float, float]:
    """One step; loss and training accuracy (percent) before it."""
    images, targets = batch
    # Dropout of a step depends on its number alone, so that a continued run draws the same.
    torch.manual_seed(derive_seed("dropout", seed, step))
    for group in optimizer.param_groups:
        group["lr"] = settings.lr_at(step, total)
    logits = logits_of(model(images))
    assert logits is not None  # check_classifier has seen it
    loss = F.cross_entropy(logits, targets, label_smoothing=settings.label_smoothing)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if settings.clip:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, settings.clip)
    optimizer.step()
    right = (logits.argmax(dim=1) == targets).float().mean()
    return float(loss.detach()), 100 * float(right)


def _evaluate(
    model: nn.Module, splits: ImageSplits, images: str, device: torch.device, step: int
) -> Point:
    batches = eval_batches(splits.split(images), splits, 128, device=device)
    found = accuracy(model, batches, device=device)
    return Point(step, found.top1, found.top5, found.loss)


class _State:
    """The state of a training in one file, which is whole or not there."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self._path = folder / STATE
        folder.mkdir(parents=True, exist_ok=True)
        self._identity = identity

    def load(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, fresh: TrainingCurve
    ) -> TrainingCurve:
        if not self._path.is_file():
            return fresh
        try:
            state = torch.load(self._path, map_location="cpu", weights_only=True)
            # Those of former versions have settings alone, which say too little.
            identity = json.loads(state["identity"] if "identity" in state else state["settings"])
            curve = TrainingCurve.from_dict(state["curve"])
        except Exception as error:
            raise ValueError(f"{self._path}: is no state of a training ({error})") from error
        refuse_another(self._identity, identity, self._path.parent)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return curve

    def save(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, curve: TrainingCurve
    ) -> None:
        buffer = io.BytesIO()
        torch.save(
            {
                "identity": to_json(self._identity),
                "curve": curve.to_dict(),
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
            },
            buffer,
        )
        write_atomically(self._path, buffer.getvalue())
