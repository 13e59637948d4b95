"""Trainings of a study: shared among processes, each done once, their results kept in files."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import torch

from ghn_fast.studies.curves import TrainingCurve
from ghn_fast.studies.identity import OtherTrainingError, refuse_another
from ghn_fast.utils import distributed
from ghn_fast.utils.errors import one_line
from ghn_fast.utils.json_files import plain, write_json


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
        error: Why it has no result, or ``None``.
        diverged: Whether that is because its loss became infinite or NaN.
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
    diverged: bool = False

    @property
    def start_top1(self) -> float | None:
        """Accuracy before the first step, in percent."""
        return self.curve.points[0].top1 if self.curve.points else None

    @property
    def top1(self) -> float | None:
        """Accuracy at the end, in percent."""
        return self.curve.points[-1].top1 if self.curve.points else None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; numbers that are not finite become null."""
        found: dict[str, Any] = plain({**asdict(self), "curve": self.curve.to_dict()})
        return found

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read :meth:`to_dict`."""
        return cls(**{**data, "curve": TrainingCurve.from_dict(data["curve"])})


R = TypeVar("R", bound=Training)


@dataclass
class StudyReport(Generic[R]):
    """What trainings gave.

    Attributes:
        dataset: Name of the image data set.
        settings: How networks were trained.
        trainings: One for each network, start and seed, in that order.
        finished: Whether all were done.
    """

    dataset: str
    settings: dict[str, Any]
    trainings: list[R]
    finished: bool = True

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; numbers that are not finite become null."""
        found: dict[str, Any] = plain(
            {**asdict(self), "trainings": [t.to_dict() for t in self.trainings]}
        )
        return found


@dataclass
class Job(Generic[R]):
    """A training that a study asks for.

    Attributes:
        record: What is known of it before.
        identity: What it has to share with a result that is there already, see
            :mod:`ghn_fast.studies.identity`.
        train: Fills the record; whether it came to an end.
        path: File of its result, ``None`` for none.
        state: File that is removed once there is a result.
    """

    record: R
    identity: Mapping[str, Any]
    train: Callable[[R], bool]
    path: Path | None = None
    state: Path | None = None

    def known(self) -> R | None:
        """The result that is there already.

        Raises:
            OtherTrainingError: If it is that of something else.
            ValueError: If the file is none of a result.
        """
        if self.path is None or not self.path.is_file():
            return None
        try:
            data = json.loads(self.path.read_text())
            identity = dict(data["identity"]) if "identity" in data else dict(data["settings"])
            record = type(self.record).from_dict(data["training"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path}: is no result of a training ({error})") from error
        refuse_another(self.identity, identity, self.path.parent)
        record.init = self.record.init  # a file that was moved since is the same start
        return record

    def do(self) -> tuple[R, bool]:
        """Train, keep the result, and return it with whether the training came to an end.

        An error of the network stays in the record and is no result: the next call tries again.
        """
        record = self.record
        try:
            complete = self.train(record)
        except (OtherTrainingError, OSError):
            raise  # of the folder or the disk, and the next training would fare no better
        except Exception as error:
            record.error = one_line(error)
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            return record, True
        if not complete:
            record.error = f"interrupted after {record.curve.steps} steps"
            return record, False
        if record.diverged:
            record.error = f"the loss became infinite after {record.curve.steps} steps"
        if self.path is not None and (record.error is None or record.diverged):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, {"identity": self.identity, "training": record.to_dict()})
            if self.state is not None:
                self.state.unlink(missing_ok=True)
        return record, True


def refuse_repeats(**wanted: Sequence[object]) -> None:
    """Refuse what comes twice among the values of an argument: it would be counted twice.

    Args:
        wanted: The values by the name of the argument.

    Raises:
        ValueError: If a value comes twice.
    """
    for argument, values in wanted.items():
        for value in values:
            if values.count(value) > 1:
                raise ValueError(f"{argument}: {value} comes twice, needs each value once")


def run_jobs(
    jobs: Sequence[Job[R]],
    stop: threading.Event | None = None,
    on_result: Callable[[int, int, R], None] | None = None,
) -> tuple[list[R], bool]:
    """Do trainings that have no result yet, this process every so many-th of them.

    Args:
        jobs: The trainings, the same in all processes.
        stop: When it is set, no further one begins.
        on_result: Called with (done, total, record) after each training of this process.

    Returns:
        Records of all processes in the order of ``jobs``, and whether all came to an end.

    Raises:
        OtherTrainingError: If a file has the result of something else; nothing was trained then.
    """
    rank, size = distributed.rank(), distributed.world_size()
    known = [job.known() for job in jobs]
    done: list[R] = []
    finished = True
    mine = range(rank, len(jobs), size)
    for number in mine:
        if stop is not None and stop.is_set():
            finished = False
            break
        record = known[number]
        if record is None:
            record, complete = jobs[number].do()
            finished &= complete
        done.append(record)
        if on_result is not None:
            on_result(len(done), len(mine), record)
    gathered = distributed.gather_objects((done, finished))
    records = distributed.interleave([part for part, _ in gathered])
    return records, all(complete for _, complete in gathered)


def named(
    on_step: Callable[[str, int, int, TrainingCurve], None] | None, label: str
) -> Callable[[int, int, TrainingCurve], None] | None:
    """A callback of several trainings for one of them."""
    if on_step is None:
        return None
    return lambda done, total, curve: on_step(label, done, total, curve)
