"""Runs the stages of a check as processes with deadlines, whose output is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Seconds that a process has to end by itself when its time is over.
GRACE = 3.0
# What tells the lines of a log that say why something failed.
_TELLING = ("error", "Error", "FAILED", "fatal", "undefined", "warning: ghn_fast", "timed out")


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        status: Its exit status; ``None`` if its time was over.
        seconds: Wall-clock seconds.
        log: File with all that it printed.
        reason: The telling lines of the log, if it failed.
    """

    status: int | None
    seconds: float
    log: str
    reason: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def run(command: Sequence[str], log: Path, seconds: float, **options: Any) -> Ended:
    """Run a command, at most for some seconds; it and all that it started are over then.

    Args:
        command: The command.
        log: File for its output and errors, in the order in which they are printed.
        seconds: Its deadline.
        options: Further arguments of ``subprocess.Popen``.
    """
    start = time.monotonic()
    with log.open("w") as file:
        file.write(f"$ {' '.join(map(str, command))}\n")
        file.flush()
        # A group of its own: a child of its children may hold the pipes, and outlive it.
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **options,
        )
        try:
            status: int | None = process.wait(max(seconds, 0.0))
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(process)
    reason = None
    if status != 0:
        over = f"not done after {seconds:.0f} s; " if status is None else f"status {status}; "
        reason = over + tell(log.read_text(errors="replace"))
    return Ended(status, time.monotonic() - start, log.name, reason)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group, first with a word, then without."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def tell(text: str, most: int = 12) -> str:
    """The lines of a log that say why something failed, and the last ones."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if any(word in line for word in _TELLING)]
    chosen = [*telling[:most], *lines[-3:]] if telling else lines[-most:]
    return "\n".join(dict.fromkeys(line[:300] for line in chosen))
