"""Trainings of several networks from several starts, and what they say about prediction."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ghn_fast.hypernet import GHN
from ghn_fast.studies.curves import TrainingCurve
from ghn_fast.studies.initialisation import FILES, check_init, initialise
from ghn_fast.studies.networks import Network
from ghn_fast.studies.training import TrainingSettings, train_network
from ghn_fast.utils import distributed
from ghn_fast.utils.files import write_atomically
from ghn_fast.vision.batches import eval_batches
from ghn_fast.vision.evaluate import accuracy
from ghn_fast.vision.images import ImageSplits
from ghn_fast.vision.noise import CIFAR10_NOISE, noisy_batches

RESULT, LABELS = "result.json", "labels.csv"
LABEL_COLUMNS = (
    *("network", "init", "seed", "parameters", "top1", "noisy_top1", "seconds", "convergence"),
)


@dataclass
class Training:
    """A network that was trained from one start.

    Attributes:
        network: Name of the network.
        init: Where it started, see :func:`ghn_fast.studies.initialise`.
        seed: Seed of start and training.
        parameters: Number of its parameters.
        curve: How it learned; accuracies are on the evaluated images.
        noisy_top1: Accuracy at the end on images with noise, in percent.
        seconds: Seconds for a batch of 64 images, forward, the median of several.
        convergence: Steps to the training accuracy that was asked for, ``None`` if not reached.
        error: Why it failed, or ``None``.
    """

    network: str
    init: str
    seed: int
    parameters: int = 0
    curve: TrainingCurve = field(default_factory=TrainingCurve)
    noisy_top1: float | None = None
    seconds: float | None = None
    convergence: int | None = None
    error: str | None = None

    @property
    def start_top1(self) -> float | None:
        """Accuracy before the first step, in percent."""
        return self.curve.points[0].top1 if self.curve.points else None

    @property
    def top1(self) -> float | None:
        """Accuracy at the end, in percent."""
        return self.curve.points[-1].top1 if self.curve.points else None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "curve": self.curve.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Training:
        """Read :meth:`to_dict`."""
        return cls(**{**data, "curve": TrainingCurve.from_dict(data["curve"])})


@dataclass
class SgdReport:
    """What trainings gave.

    Attributes:
        dataset: Name of the image data set.
        images: Which of its images were classified, ``test`` or ``val``.
        settings: How networks were trained.
        trainings: One for each network, start and seed, in that order.
        finished: Whether all were done.
    """

    dataset: str
    images: str
    settings: dict[str, Any]
    trainings: list[Training]
    finished: bool = True

    def worth(self, network: str, init: str = "predicted", of: str = "random") -> list[float]:
        """Per seed: how many steps from ``of`` give the accuracy that ``init`` starts with.

        Seeds whose training never reaches it are left out.
        """
        by_seed = {(t.init, t.seed): t for t in self.trainings if t.network == network}
        found = []
        for (how, seed), training in by_seed.items():
            other = by_seed.get((of, seed))
            if how == init and other is not None and training.start_top1 is not None:
                steps = other.curve.steps_to_accuracy(training.start_top1)
                found += [] if steps is None else [steps]
        return found

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; numbers that are not finite become null."""
        data = {**asdict(self), "trainings": [t.to_dict() for t in self.trainings]}
        return without_nan(data)

    def labels(self) -> str:
        """A table of labels as comma-separated values, for property prediction."""
        lines = [",".join(LABEL_COLUMNS)]
        for t in self.trainings:
            if t.error is None and t.curve.points:
                values = (
                    *(t.network, t.init, t.seed, t.parameters, t.top1, t.noisy_top1, t.seconds),
                    t.convergence,
                )
                lines.append(",".join("" if v is None else _plain(v) for v in values))
        return "\n".join(lines) + "\n"


def _plain(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def without_nan(value: Any) -> Any:
    """A value for JSON, which has no NaN and no infinity: they become ``None``."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def train_networks(
    networks: Sequence[Network],
    inits: Sequence[str],
    splits: ImageSplits,
    settings: TrainingSettings | None = None,
    *,
    ghn: GHN | None = None,
    seeds: Iterable[int] = (0,),
    images: str = "test",
    noise: float = CIFAR10_NOISE,
    convergence: float = 95.0,
    out: str | Path | None = None,
    device: str | torch.device = "cpu",
    stop: threading.Event | None = None,
    on_step: Callable[[str, int, int, TrainingCurve], None] | None = None,
    on_result: Callable[[int, int, Training], None] | None = None,
) -> SgdReport:
    """Train every network from every start with every seed.

    With several processes (see :mod:`ghn_fast.utils.distributed`) each takes every so many-th of
    them, and all return the whole report. A network that fails leaves its message in ``error``.

    Args:
        networks: The networks.
        inits: Where they start, see :func:`ghn_fast.studies.initialise`.
        splits: The image data set.
        settings: How they are trained.
        ghn: The hypernetwork, for the start ``predicted``.
        seeds: Seeds of start and training.
        images: The images of the evaluations: ``test`` or ``val``.
        noise: Standard deviation of the noise of ``noisy_top1``, for pixels of 0..1.
        convergence: Training accuracy in percent that ``convergence`` counts the steps to.
        out: Folder for states and results; a finished training in it is not repeated, one that was
            interrupted goes on.
        device: Where networks are trained.
        stop: When it is set, the report has what is done by then.
        on_step: Called after a step with what is trained, steps done, of all, and the curve.
        on_result: Called with (done, total, training) after each training of this process.

    Raises:
        ValueError: If there is nothing to train, or ``out`` has results of other settings.
    """
    settings = settings or TrainingSettings()
    jobs = [(net, init, seed) for net in networks for init in inits for seed in seeds]
    if not jobs:
        raise ValueError("networks, inits, seeds: one of them is empty, needs at least one of each")
    for init in inits:
        check_init(init, ghn)
    if images not in ("test", "val"):
        raise ValueError(f"images: got {images!r}, needs test or val")
    rank, size = distributed.rank(), distributed.world_size()
    mine = jobs[rank::size]
    told = {**asdict(settings), "dataset": splits.name, "images_of": images}
    told |= {"image_size": splits.image_size, "noise": noise, "convergence": convergence}
    done: list[Training] = []
    finished = True
    for network, init, seed in mine:
        if stop is not None and stop.is_set():
            finished = False
            break
        folder = None if out is None else training_folder(Path(out), network, init, seed)
        known = None if folder is None else _read(folder / RESULT, told)
        if known is None:
            label = f"{network.name}, {init}"
            known, complete = _train_one(
                network,
                init,
                seed,
                splits,
                settings,
                ghn,
                images=images,
                noise=noise,
                convergence=convergence,
                folder=folder,
                device=device,
                stop=stop,
                on_step=None if on_step is None else lambda *a, n=label: on_step(n, *a),  # type: ignore[misc]
            )
            finished &= complete
            if folder is not None and complete:
                folder.mkdir(parents=True, exist_ok=True)
                text = json.dumps({"settings": told, "training": without_nan(known.to_dict())})
                write_atomically(folder / RESULT, text + "\n")
                (folder / "training.pt").unlink(missing_ok=True)
        done.append(known)
        if on_result is not None:
            on_result(len(done), len(mine), known)
    gathered = distributed.gather_objects((done, finished))
    parts = [part for part, _ in gathered]
    # Job k was the (k // size)-th of process k % size.
    trainings = [
        parts[k % size][k // size] for k in range(len(jobs)) if k // size < len(parts[k % size])
    ]
    return SgdReport(
        splits.name, images, told, trainings, finished=all(complete for _, complete in gathered)
    )


def training_folder(out: Path, network: Network, init: str, seed: int) -> Path:
    """Where the state and the result of a training lie."""
    start = Path(init).stem if init.endswith(FILES) else init
    return out / network.file_name / f"{start}-{seed}"


def _read(path: Path, settings: dict[str, Any]) -> Training | None:
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text())
        old, training = data["settings"], Training.from_dict(data["training"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: is no result of a training ({error})") from error
    for name, value in json.loads(json.dumps(settings)).items():
        if old.get(name) != value:
            raise ValueError(
                f"{name}: got {value}, but {path.parent} holds a training with {old.get(name)}; "
                "choose another folder or the same settings"
            )
    return training


def _train_one(
    network: Network,
    init: str,
    seed: int,
    splits: ImageSplits,
    settings: TrainingSettings,
    ghn: GHN | None,
    *,
    images: str,
    noise: float,
    convergence: float,
    folder: Path | None,
    device: str | torch.device,
    stop: threading.Event | None,
    on_step: Callable[[int, int, TrainingCurve], None] | None,
) -> tuple[Training, bool]:
    """A training and whether it is complete."""
    record = Training(network.name, init, seed)
    try:
        model = initialise(
            network, init, splits.num_classes, splits.image_size, ghn=ghn, seed=seed, device=device
        )
        record.parameters = sum(p.numel() for p in model.parameters())
        result = train_network(
            model,
            splits,
            settings,
            images=images,
            seed=seed,
            folder=folder,
            stop=stop,
            on_step=on_step,
        )
        record.curve = result.curve
        if not result.finished:
            return record, False
        if result.diverged:
            record.error = f"the loss became infinite after {result.curve.steps} steps"
            return record, True
        held_out = eval_batches(splits.split(images), splits, 128, device=device)
        noisy = noisy_batches(held_out, splits, noise, seed)
        record.noisy_top1 = accuracy(model, noisy, device=device).top1
        record.seconds = inference_seconds(model, splits.image_size)
        record.convergence = result.curve.steps_to_training_accuracy(convergence)
    except (ValueError, RuntimeError) as error:
        if isinstance(error, ValueError) and "holds a training with" in str(error):
            raise
        record.error = " ".join(f"{type(error).__name__}: {error}".split())
    return record, True


def inference_seconds(
    model: nn.Module, image_size: int, batch: int = 64, repetitions: int = 5
) -> float:
    """Seconds of a forward pass of a batch in evaluation mode, the median after one warm-up.

    Args:
        model: The network.
        image_size: Height and width of the images in pixels.
        batch: Images of the batch.
        repetitions: Passes that are timed.
    """
    device = next(model.parameters(), torch.empty(0)).device
    images = torch.zeros(batch, 3, image_size, image_size, device=device)
    training = model.training
    model.eval()
    taken = []
    try:
        with torch.inference_mode():
            for _ in range(repetitions + 1):
                _wait(device)
                start = time.perf_counter()
                model(images)
                _wait(device)
                taken.append(time.perf_counter() - start)
    finally:
        model.train(training)
    return sorted(taken[1:])[repetitions // 2]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
