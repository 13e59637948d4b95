"""Results of asv as they lie on the disk: one JSON file per machine and commit."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "asv"
_TIMED = re.compile(r"\.time_")


@dataclass(frozen=True)
class Value:
    """What one benchmark measured with one set of parameters.

    Attributes:
        benchmark: Its name in asv.
        params: The values of its parameters.
        value: In seconds, bytes or as a count; ``None`` where it failed, NaN where it cannot run.
        low, high: Quartiles of times; NaN for what is no time.
    """

    benchmark: str
    params: tuple[str, ...]
    value: float | None
    low: float
    high: float


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Read all results of all machines, by date of the commit."""
    found = []
    for path in sorted(folder.glob("*/*.json")):
        if path.name != "machine.json":
            found.append(json.loads(path.read_text()))
    return sorted(found, key=lambda result: result["date"])


def file_of(folder: Path, machine: str, commit: str) -> Path | None:
    """Find the results of a commit on a machine, the newest file if there are several."""
    found = sorted((folder / machine).glob(f"{commit[:8]}*.json"), key=lambda p: p.stat().st_mtime)
    return found[-1] if found else None


def tidy(path: Path, about: Mapping[str, str]) -> Path:
    """Add what the results were measured with, and leave out where on the disk that was.

    Args:
        path: A result file.
        about: What asv does not know or keep; ``python``, its version, has to be there.

    Returns:
        The file, whose name changes.
    """
    result = json.loads(path.read_text())
    result["params"] |= about
    result["python"] = result["params"]["python"]
    result["env_name"] = python = f"existing-py{result['python']}"
    to = path.with_name(f"{path.name.partition('-')[0]}-{python}.json")
    part = to.with_name(f".{to.name}.{os.getpid()}")
    part.write_text(json.dumps(result, indent=1) + "\n")
    path.unlink()
    os.replace(part, to)
    return to


def values(result: Mapping[str, Any]) -> Iterator[Value]:
    """Yield every value of a result file."""
    columns = result["result_columns"]
    for benchmark, row in result["results"].items():
        fields = dict(zip(columns, row, strict=False))
        params = [[str(p).strip("'") for p in axis] for axis in fields.get("params") or []]
        combinations = list(itertools.product(*params))
        found = fields["result"]
        if found is None:
            found = [None] * len(combinations)
        lows, highs = (
            fields.get(f"stats_{name}") or [None] * len(combinations) for name in ("q_25", "q_75")
        )
        for combination, value, low, high in zip(combinations, found, lows, highs, strict=True):
            yield Value(benchmark, combination, value, _number(low), _number(high))


def timed(result: Mapping[str, Any]) -> dict[tuple[str, tuple[str, ...]], Value]:
    """Collect the times of a result file that there are."""
    return {
        (value.benchmark, value.params): value
        for value in values(result)
        if _TIMED.search(value.benchmark) and value.value is not None and value.value == value.value
    }


def failures(result: Mapping[str, Any]) -> list[str]:
    """List what failed; what cannot run on the machine (NaN) did not fail."""
    return [
        f"{value.benchmark}({', '.join(value.params)})"
        for value in values(result)
        if value.value is None
    ]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
