"""Progress where nothing can be drawn in place: a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

# Seconds between two lines of a task.
INTERVAL = 30.0


@dataclass
class _Task:
    description: str
    total: float | None
    completed: float
    info: str
    since: float
    first: float
    written: float


class ProgressLines:
    """Takes what the progress bar of ``rich`` takes, and writes lines to standard error.

    Args:
        interval: Seconds between two lines of a task; the end of a task is always written.
        clock: What tells the seconds.
    """

    def __init__(
        self, interval: float = INTERVAL, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._interval, self._clock = interval, clock
        self._tasks: list[_Task] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def add_task(self, description: str, total: float | None = None, info: str = "") -> int:
        """Begin a task; returns its number."""
        now = self._clock()
        self._tasks.append(_Task(description, total, 0, info, now, 0, now))
        return len(self._tasks) - 1

    def reset(self, task: int, total: float | None = None, completed: float = 0) -> None:
        """Count time and steps from here."""
        own = self._tasks[task]
        own.since = own.written = self._clock()
        own.total, own.completed, own.first = total, completed, completed

    def update(
        self,
        task: int,
        *,
        completed: float | None = None,
        total: float | None = None,
        info: str | None = None,
    ) -> None:
        """Say how far a task is."""
        own = self._tasks[task]
        before = own.completed
        own.completed = before if completed is None else completed
        own.total = own.total if total is None else total
        own.info = own.info if info is None else info
        now = self._clock()
        at_end = own.total is not None and before < own.total <= own.completed
        if at_end or now - own.written >= self._interval:
            own.written = now
            sys.stderr.write(_line(own, now))
            sys.stderr.flush()


def _line(task: _Task, now: float) -> str:
    of = "" if task.total is None else f" of {task.total:.0f}"
    done, seconds = task.completed - task.first, now - task.since
    parts = [f"{task.description}: {task.completed:.0f}{of}", f"{seconds:.0f} s"]
    if task.total is not None and done > 0 and task.completed < task.total:
        parts.append(f"{seconds / done * (task.total - task.completed):.0f} s left")
    if task.info:
        parts.append(task.info)
    return ", ".join(parts) + "\n"
