"""What the commands share that train several networks: progress, interruption, the end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from ghn_fast.commands.common import INTERRUPTED, make_progress
from ghn_fast.commands.output import UnfinishedError

if TYPE_CHECKING:
    from ghn_fast.studies.curves import TrainingCurve
    from ghn_fast.studies.jobs import StudyReport, Training


class Watch(NamedTuple):
    """What a study of trainings is given to be watched and interrupted."""

    stop: threading.Event
    on_step: Callable[[str, int, int, TrainingCurve], None]
    on_result: Callable[[int, int, Training], None]


@contextmanager
def watched(device: str, *, show: bool) -> Iterator[Watch]:
    """The processes of the launcher, a progress bar (if ``show``), and requests to stop."""
    from ghn_fast.utils import distributed
    from ghn_fast.utils.signals import stop_requests

    with (
        distributed.job(device),
        stop_requests() as stop,
        make_progress(show=show, rate=True) as progress,
    ):
        overall = progress.add_task("trainings", total=None, info="")
        task = progress.add_task("steps", total=None, info="")

        def on_step(name: str, done: int, total: int, curve: TrainingCurve) -> None:
            info = f"{name}: loss {curve.train_loss[-1]:.3f}"
            progress.update(task, completed=done, total=total, info=info)

        def on_result(done: int, total: int, training: Training) -> None:
            info = f"{training.network}: {training.error or f'{training.top1 or 0:.1f} %'}"
            progress.update(overall, completed=done, total=total, info=info)

        yield Watch(stop, on_step, on_result)


def length(settings: dict[str, Any]) -> str:
    """How long networks were trained, in words."""
    if settings["steps"]:
        return f"{settings['steps']} steps"
    return f"{settings['epochs']:g} epochs"


def result_of(report: StudyReport[Any]) -> dict[str, Any]:
    """The report for ``--json``.

    Raises:
        UnfinishedError: If it was interrupted.
        ValueError: If every training failed.
    """
    if not report.finished:
        typer.echo("interrupted; the same command continues", err=True)
        raise UnfinishedError(report.to_dict(), INTERRUPTED)
    if all(training.error for training in report.trainings):
        raise ValueError(f"every training failed, the first one: {report.trainings[0].error}")
    return report.to_dict()
