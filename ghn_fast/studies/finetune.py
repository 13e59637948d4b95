"""Fine-tuning from predicted parameters on a few images of each class, against other starts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ghn_fast.hypernet import GHN
from ghn_fast.studies.curves import TrainingCurve
from ghn_fast.studies.identity import about_network, about_start, about_training, start_name
from ghn_fast.studies.initialisation import check_init, initialise
from ghn_fast.studies.jobs import Job, StudyReport, Training, named, refuse_repeats, run_jobs
from ghn_fast.studies.networks import Network
from ghn_fast.studies.subsets import few_shot
from ghn_fast.studies.training import TrainingSettings, train_network
from ghn_fast.vision.images import ImageSplits

# As in the 100-shot experiments of arXiv 2110.13100, section 4.4.
PUBLISHED = TrainingSettings(epochs=50, weight_decay=1e-3)
DIVERSE = "predicted-orthogonal"
"""Predicted parameters with noise and orthogonal late layers (arXiv 2207.10049)."""
NOISE = 3e-5


@dataclass
class FineTuning(Training):
    """A network that was fine-tuned from one start.

    Attributes:
        shots: Training images of each class.
        lr: The learning rate, chosen on validation images if there were several.
    """

    shots: int = 0
    lr: float = 0.0


@dataclass
class FinetuneReport(StudyReport[FineTuning]):
    """What fine-tuning gave, one for each network, number of shots, start and seed."""

    def top1(self, network: str, init: str, shots: int) -> list[float]:
        """Accuracy at the end of each seed, in percent."""
        return [
            t.top1
            for t in self.trainings
            if (t.network, t.init, t.shots) == (network, init, shots) and t.top1 is not None
        ]


def finetune_networks(
    networks: Sequence[Network],
    inits: Sequence[str],
    splits: ImageSplits,
    shots: Sequence[int],
    settings: TrainingSettings = PUBLISHED,
    *,
    lrs: Sequence[float] = (),
    ghn: GHN | None = None,
    seeds: Iterable[int] = (0, 1, 2),
    head: bool | None = None,
    noise: float = NOISE,
    orthogonal_from: int = 0,
    out: str | Path | None = None,
    device: str | torch.device = "cpu",
    stop: threading.Event | None = None,
    on_step: Callable[[str, int, int, TrainingCurve], None] | None = None,
    on_result: Callable[[int, int, FineTuning], None] | None = None,
) -> FinetuneReport:
    """Fine-tune every network from every start on subsets of the training images.

    A seed fixes the subset, the random start and the order of the images. Accuracy is that of all
    test images. The learning rate of each network, start and number of shots is the one of ``lrs``
    with the best accuracy on as many validation images as there are shots, with the first seed;
    its trials are kept in ``out`` like other trainings.

    With several processes each takes every so many-th training, and all return the whole report. A
    network that fails leaves its message in ``error``, and the next call tries it again.

    Args:
        networks: The networks.
        inits: Where they start, see :func:`ghn_fast.studies.initialise`;
            ``predicted-orthogonal`` adds noise to predicted weights and makes late ones orthogonal.
        splits: The image data set.
        shots: Numbers of training images of each class.
        settings: How networks are trained; by default as published.
        lrs: Learning rates to choose from, instead of that of ``settings``.
        ghn: The hypernetwork, for predicted starts.
        seeds: Seeds.
        head: Whether the classifier is predicted, see :func:`ghn_fast.studies.initialise`.
        noise, orthogonal_from: As there, for ``predicted-orthogonal``.
        out: Folder for results; a finished training in it is not repeated.
        device: Where networks are trained.
        stop: When it is set, the report has what is done by then.
        on_step: Called after a step with what is trained, steps done, of all, and the curve.
        on_result: Called with (done, total, training) after each training of this process.

    Raises:
        ValueError: If there is nothing to train, a start, number of shots, learning rate or seed
            comes twice, a class has too few images, or ``out`` has a result of anything else: other
            settings, network, start, hypernetwork or data.
    """
    for init in inits:
        check_init("predicted" if init == DIVERSE else init, ghn)
    for lr in lrs:
        replace(settings, lr=lr)  # refuses what is no learning rate
    all_seeds = list(seeds)
    if not (networks and inits and shots and all_seeds):
        raise ValueError("networks, inits, shots, seeds: one is empty, needs at least one of each")
    refuse_repeats(inits=inits, shots=shots, lrs=lrs, seeds=all_seeds)
    for count in shots:
        few_shot(splits, count)
    told: dict[str, Any] = {"lrs": list(lrs)} | ({"lr_seed": all_seeds[0]} if len(lrs) > 1 else {})
    start: dict[str, Any] = {"head": head, "noise": noise, "orthogonal_from": orthogonal_from}
    run = _Run(
        *(splits, settings, tuple(lrs), all_seeds[0], ghn, head, noise, orthogonal_from, device),
        stop,
        on_step,
    )
    starts = {init: about_start(init, ghn) for init in inits}
    jobs = []
    for network in networks:
        for count in shots:
            for init in inits:
                about = {**about_network(network), **starts[init], **start, "shots": count}
                name = f"{network.file_name}/{count}-shot-{start_name(init)}"
                path = None if out is None else Path(out) / name
                for seed in all_seeds:
                    record = FineTuning(network.name, init, seed, shots=count)
                    jobs.append(run.job(network, record, about, told, path))
    trainings, finished = run_jobs(jobs, stop, on_result)
    told |= (
        start
        | about_training(splits, asdict(settings), "test", all_seeds[0])
        | {"seeds": all_seeds}
    )
    del told["seed"]
    return FinetuneReport(splits.name, told, trainings, finished)


@dataclass
class _Run:
    """What all trainings share."""

    splits: ImageSplits
    settings: TrainingSettings
    lrs: tuple[float, ...]
    first_seed: int
    ghn: GHN | None
    head: bool | None
    noise: float
    orthogonal_from: int
    device: str | torch.device

    stop: threading.Event | None
    on_step: Callable[[str, int, int, TrainingCurve], None] | None

    def __post_init__(self) -> None:
        self._chosen: dict[tuple[str, str, int], float] = {}

    def job(
        self,
        network: Network,
        record: FineTuning,
        about: dict[str, Any],
        told: dict[str, Any],
        path: Path | None,
    ) -> Job[FineTuning]:
        """A training with the best learning rate; files of results begin with ``path``."""

        def train(record: FineTuning) -> bool:
            lr = self._choose(network, record, about, path)
            return lr is not None and self._train(network, record, lr, self.settings, "test")

        how = about_training(self.splits, asdict(self.settings), "test", record.seed)
        return Job(record, {**how, **about, **told}, train, _file(path, record.seed))

    def _train(
        self,
        network: Network,
        record: FineTuning,
        lr: float,
        settings: TrainingSettings,
        images: str,
    ) -> bool:
        """Fill a record; whether the training came to an end."""
        subset = few_shot(self.splits, record.shots, record.seed)
        diverse = record.init == DIVERSE
        model = initialise(
            network,
            "predicted" if diverse else record.init,
            subset.num_classes,
            subset.image_size,
            ghn=self.ghn,
            seed=record.seed,
            device=self.device,
            head=self.head,
            noise=self.noise if diverse else 0.0,
            orthogonal_from=self.orthogonal_from if diverse else None,
        )
        record.parameters = sum(parameter.numel() for parameter in model.parameters())
        label = f"{network.name}, {record.shots}-shot, {record.init}"
        result = train_network(
            model,
            subset,
            replace(settings, lr=lr),
            images=images,
            seed=record.seed,
            stop=self.stop,
            on_step=named(self.on_step, label),
        )
        record.lr, record.curve, record.diverged = lr, result.curve, result.diverged
        return result.finished

    def _choose(
        self, network: Network, record: FineTuning, about: dict[str, Any], path: Path | None
    ) -> float | None:
        """The learning rate; ``None`` if the choice was interrupted."""
        if len(self.lrs) < 2:
            return self.lrs[0] if self.lrs else self.settings.lr
        key = (record.network, record.init, record.shots)
        if key not in self._chosen:
            settings = replace(self.settings, evaluations=2)
            scores = {}
            for lr in self.lrs:
                trial = replace(record, seed=self.first_seed)
                how = replace(settings, lr=lr)
                identity = about_training(self.splits, asdict(how), "val", trial.seed) | about
                job = Job(
                    trial,
                    identity,
                    lambda trial, lr=lr: self._train(network, trial, lr, settings, "val"),  # type: ignore[misc]
                    _file(path, f"lr-{lr}"),
                )
                done, complete = job.do() if (known := job.known()) is None else (known, True)
                if not complete:
                    return None
                if done.error and not done.diverged:
                    raise RuntimeError(f"with a learning rate of {lr}: {done.error}")
                last = done.curve.points[-1]
                scores[lr] = (-1.0, 0.0) if done.diverged else (last.top1, -last.loss)
            self._chosen[key] = max(scores, key=lambda lr: scores[lr])
        return self._chosen[key]


def _file(beginning: Path | None, end: object) -> Path | None:
    return None if beginning is None else beginning.with_name(f"{beginning.name}-{end}.json")
