"""Trainings of several networks from several starts, and what they say about prediction."""

from __future__ import annotations

import csv
import io
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ghn_fast.hypernet import GHN
from ghn_fast.studies.curves import TrainingCurve
from ghn_fast.studies.identity import about_network, about_start, about_training, start_name
from ghn_fast.studies.initialisation import check_init, initialise
from ghn_fast.studies.jobs import Job, StudyReport, Training, named, refuse_repeats, run_jobs
from ghn_fast.studies.networks import Network
from ghn_fast.studies.training import STATE, TrainingSettings, train_network
from ghn_fast.utils.modes import evaluation_mode
from ghn_fast.vision.batches import eval_batches
from ghn_fast.vision.evaluate import accuracy
from ghn_fast.vision.images import ImageSplits
from ghn_fast.vision.noise import CIFAR10_NOISE, noisy_batches

RESULT, LABELS = "result.json", "labels.csv"
LABEL_COLUMNS = (
    *("network", "init", "seed", "parameters", "top1", "noisy_top1", "seconds", "convergence"),
)


@dataclass
class SgdReport(StudyReport[Training]):
    """What ordinary trainings gave.

    Attributes:
        images: Which images were classified, ``test`` or ``val``.
    """

    images: str = "test"

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

    def labels(self) -> str:
        """A table of labels as comma-separated values, for property prediction."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(LABEL_COLUMNS)
        for t in self.trainings:
            if t.error is None and t.curve.points:
                values = (
                    *(t.network, t.init, t.seed, t.parameters, t.top1, t.noisy_top1, t.seconds),
                    t.convergence,
                )
                rows.writerow(f"{v:.6g}" if isinstance(v, float) else v for v in values)
        return text.getvalue()


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
    them, and all return the whole report. A network that fails leaves its message in ``error``, and
    the next call tries it again.

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
        ValueError: If there is nothing to train, a start or seed comes twice, or ``out`` has a
            result or a state of anything else: other settings, network, start, hypernetwork or
            data.
    """
    settings = settings or TrainingSettings()
    seeds = list(seeds)
    if not (networks and inits and seeds):
        raise ValueError("networks, inits, seeds: one of them is empty, needs at least one of each")
    refuse_repeats(inits=inits, seeds=seeds)
    for init in inits:
        check_init(init, ghn)
    if images not in ("test", "val"):
        raise ValueError(f"images: got {images!r}, needs test or val")
    run = _Run(
        splits, settings, ghn, images, noise, convergence, torch.device(device), stop, on_step
    )
    starts = {init: about_start(init, ghn) for init in inits}
    jobs = []
    for network in networks:
        for init in inits:
            about = {**about_network(network), **starts[init]}
            about |= {"noise": noise, "convergence": convergence}
            for seed in seeds:
                folder = None if out is None else training_folder(Path(out), network, init, seed)
                jobs.append(run.job(network, Training(network.name, init, seed), about, folder))
    trainings, finished = run_jobs(jobs, stop, on_result)
    told = about_training(splits, asdict(settings), images, seeds[0])
    told |= {"seeds": seeds, "noise": noise, "convergence": convergence}
    del told["seed"]
    return SgdReport(splits.name, told, trainings, finished, images)


def training_folder(out: Path, network: Network, init: str, seed: int) -> Path:
    """Where the state and the result of a training lie."""
    return out / network.file_name / f"{start_name(init)}-{seed}"


@dataclass
class _Run:
    """What all trainings share."""

    splits: ImageSplits
    settings: TrainingSettings
    ghn: GHN | None
    images: str
    noise: float
    convergence: float
    device: torch.device
    stop: threading.Event | None
    on_step: Callable[[str, int, int, TrainingCurve], None] | None

    def job(
        self, network: Network, record: Training, about: dict[str, Any], folder: Path | None
    ) -> Job[Training]:
        how = about_training(self.splits, asdict(self.settings), self.images, record.seed)
        return Job(
            record,
            {**how, **about},
            lambda record: self._train(record, network, about, folder),
            None if folder is None else folder / RESULT,
            None if folder is None else folder / STATE,
        )

    def _train(
        self, record: Training, network: Network, about: dict[str, Any], folder: Path | None
    ) -> bool:
        """Fill a record; whether the training came to an end."""
        splits, seed = self.splits, record.seed
        model = initialise(
            network,
            record.init,
            splits.num_classes,
            splits.image_size,
            ghn=self.ghn,
            seed=seed,
            device=self.device,
        )
        record.parameters = sum(p.numel() for p in model.parameters())
        result = train_network(
            model,
            splits,
            self.settings,
            images=self.images,
            seed=seed,
            folder=folder,
            about=about,
            stop=self.stop,
            on_step=named(self.on_step, f"{network.name}, {record.init}"),
        )
        record.curve, record.diverged = result.curve, result.diverged
        if not result.finished or result.diverged:
            return result.finished
        held_out = eval_batches(splits.split(self.images), splits, 128, device=self.device)
        noisy = noisy_batches(held_out, splits, self.noise, seed)
        record.noisy_top1 = accuracy(model, noisy, device=self.device).top1
        record.seconds = inference_seconds(model, splits.image_size)
        record.convergence = result.curve.steps_to_training_accuracy(self.convergence)
        return True


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
    taken = []
    with evaluation_mode(model), torch.inference_mode():
        for _ in range(repetitions + 1):
            _wait(device)
            start = time.perf_counter()
            model(images)
            _wait(device)
            taken.append(time.perf_counter() - start)
    return sorted(taken[1:])[repetitions // 2]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
