"""Executed instructions of a case by function, counted by valgrind: the same on a busy machine.

valgrind knows no AVX-512; the ops and torch then take the code for AVX2, on every machine.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from suite.processes import RunningWorker

# Part by which executed instructions may grow: hash tables and the allocator vary by less.
NOISE = 1.01
_NAME = re.compile(r"^(fn|cfn)=(?:\((\d+)\))?\s*(.*)$")
_COST = re.compile(r"^(?:[+\-]?\d+|\*|0x[0-9a-f]+) (\d+)")


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


def count_instructions(tree: Path, cases: Sequence[str]) -> dict[str, Counter[str]]:
    """Count the instructions that one call of each case executes, by function, after two calls.

    Starting takes a minute or two.

    Args:
        tree: Root of the revision.
        cases: Names of cases; those that cannot run here are left out.

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
                if not dumps:
                    raise NotCountedError("valgrind wrote nothing")
                found[name] = by_function(dumps[-1].read_text(errors="replace").splitlines())
                worker.ask("release")
    return found


def _number(path: Path) -> int:
    return int(path.suffix[1:]) if path.suffix[1:].isdigit() else 0


def by_function(lines: Iterable[str]) -> Counter[str]:
    """Add up the instructions of each function itself, without what it calls.

    Args:
        lines: A dump in callgrind's format: ``fn=`` begins a function, whose lines of cost follow;
            the line after ``calls=`` holds what the called function took, and belongs to that one.
            A name is written once, and later by its number.
    """
    names: dict[str, str] = {}
    found: Counter[str] = Counter()
    function, is_call = "", False
    for line in lines:
        if line.startswith("calls="):
            is_call = True
            continue
        named = _NAME.match(line)
        if named is not None:
            kind, number, name = named.groups()
            if number is not None:
                name = names.setdefault(number, name) if name else names.get(number, number)
            if kind == "fn":
                function = name
            continue
        cost = _COST.match(line)
        if cost is not None:
            if not is_call:
                found[function] += int(cost[1])
            is_call = False
    return found


def difference(before: Mapping[str, int], after: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """List functions with their instructions in both revisions, the largest difference first."""
    rows = [(name, before.get(name, 0), after.get(name, 0)) for name in {*before, *after}]
    return sorted(
        (row for row in rows if row[1] != row[2]), key=lambda row: (-abs(row[2] - row[1]), row[0])
    )


def table(before: Mapping[str, int], after: Mapping[str, int], most: int = 12) -> list[str]:
    """Write totals and the functions that changed most."""
    totals = sum(before.values()), sum(after.values())
    lines = [f"{totals[0]} -> {totals[1]} instructions, ratio {totals[1] / max(totals[0], 1):.4f}"]
    for name, one, other in difference(before, after)[:most]:
        lines.append(f"  {other - one:+12d}  {one} -> {other}  {name[:110]}")
    return lines
