"""Fine-tuning from predicted parameters on a few images of each class, against other starts."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ghn_fast.hypernet import GHN
from ghn_fast.studies.curves import TrainingCurve
from ghn_fast.studies.initialisation import FILES, check_init, initialise
from ghn_fast.studies.networks import Network
from ghn_fast.studies.sgd import Training, without_nan
from ghn_fast.studies.subsets import few_shot
from ghn_fast.studies.training import TrainingResult, TrainingSettings, train_network
from ghn_fast.utils import distributed
from ghn_fast.utils.files import write_atomically
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
class FinetuneReport:
    """What fine-tuning gave.

    Attributes:
        dataset: Name of the image data set.
        settings: How networks were trained.
        trainings: One for each network, number of shots, start and seed, in that order.
        finished: Whether all were done.
    """

    dataset: str
    settings: dict[str, Any]
    trainings: list[FineTuning]
    finished: bool = True

    def top1(self, network: str, init: str, shots: int) -> list[float]:
        """Accuracy at the end of each seed, in percent."""
        return [
            t.top1
            for t in self.trainings
            if (t.network, t.init, t.shots) == (network, init, shots) and t.top1 is not None
        ]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; numbers that are not finite become null."""
        return without_nan({**asdict(self), "trainings": [t.to_dict() for t in self.trainings]})


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
    with the best accuracy on as many validation images as there are shots, with the first seed.

    With several processes each takes every so many-th training, and all return the whole report.

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
        ValueError: If there is nothing to train, a class has too few images, a network is no
            classifier for the data set, or ``out`` has results of other settings.
    """
    for init in inits:
        check_init("predicted" if init == DIVERSE else init, ghn)
    for lr in lrs:
        replace(settings, lr=lr)  # refuses what is no learning rate
    all_seeds = list(seeds)
    jobs = [
        (network, count, init, seed)
        for network in networks
        for count in shots
        for init in inits
        for seed in all_seeds
    ]
    if not jobs:
        raise ValueError("networks, inits, shots, seeds: one is empty, needs at least one of each")
    for count in shots:
        few_shot(splits, count)
    told = {**asdict(settings), "lrs": list(lrs), "dataset": splits.name, "head": head}
    told |= {"image_size": splits.image_size, "noise": noise, "orthogonal_from": orthogonal_from}
    run = _Run(
        splits, settings, tuple(lrs), all_seeds[0], ghn, head, noise, orthogonal_from, device
    )
    rank, size = distributed.rank(), distributed.world_size()
    done: list[FineTuning] = []
    finished = True
    for network, count, init, seed in jobs[rank::size]:
        if stop is not None and stop.is_set():
            finished = False
            break
        path = None if out is None else _path(Path(out), network, count, init, seed)
        known = None if path is None else _read(path, told)
        if known is None:
            known = FineTuning(network.name, init, seed, shots=count)
            label = f"{network.name}, {count}-shot, {init}"
            if not run.train(known, network, stop, _named(on_step, label)):
                finished = False
                break
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                data = {"settings": told, "training": known.to_dict()}
                write_atomically(path, json.dumps(without_nan(data)) + "\n")
        done.append(known)
        if on_result is not None:
            on_result(len(done), len(jobs[rank::size]), known)
    gathered = distributed.gather_objects((done, finished))
    parts = [part for part, _ in gathered]
    # Job k was the (k // size)-th of process k % size.
    trainings = [
        parts[k % size][k // size] for k in range(len(jobs)) if k // size < len(parts[k % size])
    ]
    return FinetuneReport(splits.name, told, trainings, all(whole for _, whole in gathered))


def _named(
    on_step: Callable[[str, int, int, TrainingCurve], None] | None, label: str
) -> Callable[[int, int, TrainingCurve], None] | None:
    if on_step is None:
        return None
    return lambda done, total, curve: on_step(label, done, total, curve)


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

    def train(
        self,
        record: FineTuning,
        network: Network,
        stop: threading.Event | None,
        on_step: Callable[[int, int, TrainingCurve], None] | None,
    ) -> bool:
        """Fill a record; whether it is complete."""
        lr = self._choose(record, network, stop, on_step)
        if lr is None:
            return False
        subset = few_shot(self.splits, record.shots, record.seed)
        result = self._train(record, network, subset, record.seed, lr, "test", stop, on_step)
        record.lr, record.curve = lr, result.curve
        if result.diverged:
            record.error = f"the loss became infinite after {result.curve.steps} steps"
        return result.finished

    def _train(
        self,
        record: FineTuning,
        network: Network,
        subset: ImageSplits,
        seed: int,
        lr: float,
        images: str,
        stop: threading.Event | None,
        on_step: Callable[[int, int, TrainingCurve], None] | None,
    ) -> TrainingResult:
        diverse = record.init == DIVERSE
        model = initialise(
            network,
            "predicted" if diverse else record.init,
            subset.num_classes,
            subset.image_size,
            ghn=self.ghn,
            seed=seed,
            device=self.device,
            head=self.head,
            noise=self.noise if diverse else 0.0,
            orthogonal_from=self.orthogonal_from if diverse else None,
        )
        record.parameters = sum(parameter.numel() for parameter in model.parameters())
        settings = replace(self.settings, lr=lr)
        if images == "val":
            settings = replace(settings, evaluations=2)
        return train_network(
            model, subset, settings, images=images, seed=seed, stop=stop, on_step=on_step
        )

    def __post_init__(self) -> None:
        self._chosen: dict[tuple[str, str, int], float] = {}

    def _choose(
        self,
        record: FineTuning,
        network: Network,
        stop: threading.Event | None,
        on_step: Callable[[int, int, TrainingCurve], None] | None,
    ) -> float | None:
        """The learning rate; ``None`` if the choice was interrupted."""
        if len(self.lrs) < 2:
            return self.lrs[0] if self.lrs else self.settings.lr
        key = (record.network, record.init, record.shots)
        if key not in self._chosen:
            subset = few_shot(self.splits, record.shots, self.first_seed)
            scores = {}
            for lr in self.lrs:
                result = self._train(
                    record, network, subset, self.first_seed, lr, "val", stop, on_step
                )
                if not result.finished:
                    return None
                last = result.curve.points[-1]
                scores[lr] = (-1.0, 0.0) if result.diverged else (last.top1, -last.loss)
            self._chosen[key] = max(scores, key=lambda lr: scores[lr])
        return self._chosen[key]


def _path(out: Path, network: Network, shots: int, init: str, seed: int) -> Path:
    start = Path(init).stem if init.endswith(FILES) else init
    return out / network.file_name / f"{shots}-shot-{start}-{seed}.json"


def _read(path: Path, settings: dict[str, Any]) -> FineTuning | None:
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text())
        old = data["settings"]
        training = FineTuning.from_dict(data["training"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: is no result of fine-tuning ({error})") from error
    for name, value in json.loads(json.dumps(settings)).items():
        if old.get(name) != value:
            raise ValueError(
                f"{name}: got {value}, but {path.parent.parent} holds fine-tuning with "
                f"{old.get(name)}; choose another folder or the same settings"
            )
    assert isinstance(training, FineTuning)
    return training
