"""Executed instructions of cases, counted by valgrind: the same on a busy machine.

valgrind knows no AVX-512; the ops and torch then take the code for AVX2, on every machine.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from suite.processes import RunningWorker


class NotCountedError(Exception):
    """Instructions cannot be counted here; the message says why."""


def problem() -> str | None:
    """Why instructions cannot be counted here, or ``None`` if they can."""
    if shutil.which("valgrind") is None:
        return "valgrind is not on the path"
    import torch

    if not torch._C._valgrind_supported_platform():
        return "torch was built without the switch for valgrind"
    return None


def count_instructions(tree: Path, cases: Sequence[str]) -> dict[str, int]:
    """Count the instructions that one call of each case executes, after two calls.

    Starting takes a minute or two.

    Args:
        tree: Root of the revision.
        cases: Names of cases that can run here.

    Raises:
        NotCountedError: If there is no valgrind.
        suite.processes.WorkerError: If a case fails.
    """
    reason = problem()
    if reason is not None:
        raise NotCountedError(f"instructions are not counted: {reason}")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind"
        under = ("valgrind", "--tool=callgrind", "--collect-atstart=no",
                 f"--callgrind-out-file={out}")  # fmt: skip
        with RunningWorker(tree, under=under) as worker:
            worker.wait_ready()
            for name in cases:
                if "skipped" in worker.ask("prepare", case=name):
                    continue
                before = set(out.parent.iterdir())
                worker.ask("instructions")
                dumps = sorted(set(out.parent.iterdir()) - before, key=_number)
                found[name] = _total(dumps[-1])
                worker.ask("release")
    return found


def _number(path: Path) -> int:
    return int(path.suffix[1:]) if path.suffix[1:].isdigit() else 0


def _total(dump: Path) -> int:
    """Read the instructions that a dump of callgrind counts."""
    match = re.search(r"^(?:totals|summary): (\d+)", dump.read_text(errors="replace"), re.MULTILINE)
    if match is None:
        raise NotCountedError(f"valgrind wrote no total into {dump.name}")
    return int(match[1])
