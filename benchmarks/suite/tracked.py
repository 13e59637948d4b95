"""Recorded counts of the guarded cases, by release of torch, and what has grown since.

The record is benchmarks/tracked.json, written by ``make bench-track``. Another release of torch may
call other operators inside its own; the record has an entry for each release that it was made with.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from ghn_fast.hypernet import linear
from suite.cases import Case
from suite.counting import count
from suite.machine import ROOT
from suite.setups import SkippedError, prepared

RECORD = ROOT / "benchmarks" / "tracked.json"
UPDATE = (
    "if that is meant, `make bench-track` records what there is, to be committed with the change"
)
SMALLER = "counts that are smaller than recorded pass; `make bench-track` lowers the record"

Counts = dict[str, int]


def release() -> str:
    """Name what the record is looked up by: torch 2.15 and the machine's architecture."""
    numbers = torch.__version__.split("+")[0].split(".")[:2]
    return f"torch {'.'.join(numbers)}, {platform.machine()}"


def read_record(path: Path = RECORD) -> dict[str, dict[str, Counts]]:
    """Read the counts by release and case."""
    record: dict[str, dict[str, Counts]] = json.loads(path.read_text())
    return record


def write_record(found: dict[str, Counts], path: Path = RECORD) -> None:
    """Put the counts of this release into the record.

    Cases that cannot run on this machine keep what was recorded elsewhere; those that are no more
    go.
    """
    from suite.cases import guarded_cases

    record = read_record(path) if path.is_file() else {}
    names = [case.name for case in guarded_cases()]
    known = {name: counts for name, counts in record.get(release(), {}).items() if name in names}
    record[release()] = dict(sorted((known | found).items()))
    text = json.dumps(record, indent=1, sort_keys=True) + "\n"
    path.write_text(text)


def count_case(case: Case) -> Counts:
    """Count a case; counts that depend on the machine's libraries are left out.

    Products take torch's own way, which is there on every machine.

    Raises:
        suite.setups.SkippedError: If it cannot run here.
    """
    with mock.patch.object(linear, "_has_onednn", lambda: False), prepared(case) as run:
        found = count(run, case.device)
    if not case.exact:
        found = {k: v for k, v in found.items() if not k.startswith("alloc")}
    return found


def grown(found: dict[str, Counts], recorded: dict[str, Counts]) -> list[str]:
    """Say what is more than recorded, or not recorded: what a test fails for."""
    return _lines(found, recorded, lambda before, after: before is None or after > before)


def shrunk(found: dict[str, Counts], recorded: dict[str, Counts]) -> list[str]:
    """Say what is less than recorded: a win, for which nothing fails."""
    return _lines(found, recorded, lambda before, after: before is not None and after < before)


def _lines(
    found: dict[str, Counts],
    recorded: dict[str, Counts],
    differs: Callable[[int | None, int], bool],
) -> list[str]:
    lines = []
    for name, counts in found.items():
        known = recorded.get(name, {})
        for key, after in sorted(counts.items()):
            if differs(known.get(key), after):
                lines.append(f"{name}: {key} was {known.get(key)}, is {after}")
    return lines


def count_all(cases: Sequence[Case]) -> tuple[dict[str, Counts], dict[str, str]]:
    """Count all cases, and say why some cannot run here."""
    found: dict[str, Any] = {}
    skipped = {}
    for case in cases:
        try:
            found[case.name] = count_case(case)
        except SkippedError as reason:
            skipped[case.name] = str(reason)
    return found, skipped
