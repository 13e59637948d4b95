"""Results of asv as they lie on the disk: one JSON file per machine and commit."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Series:
    """One benchmark with one set of parameters over the commits of one machine, oldest first.

    Attributes:
        name: The benchmark and its parameters.
        machine: The machine.
        unit: ``seconds`` for times, empty for counts and sizes.
        points: Commit and value.
    """

    name: str
    machine: str
    unit: str
    points: list[tuple[str, float]]


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Read all results of all machines, by date of the commit."""
    found = []
    for path in sorted(folder.glob("*/*.json")):
        if path.name != "machine.json":
            found.append(json.loads(path.read_text()))
    return sorted(found, key=lambda result: result["date"])


def values(result: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """Yield name, unit and value of all that was measured; what failed is left out."""
    columns = result["result_columns"]
    for benchmark, row in result["results"].items():
        fields = dict(zip(columns, row, strict=False))
        params = [[str(p).strip("'") for p in axis] for axis in fields.get("params") or []]
        found = fields["result"] or []
        unit = "seconds" if benchmark.rpartition(".")[2].startswith("time_") else ""
        for combination, value in zip(itertools.product(*params), found, strict=False):
            if value is not None and value == value:
                shown = f"({', '.join(combination)})" if combination else ""
                yield f"{benchmark}{shown}", unit, float(value)


def series(folder: Path) -> list[Series]:
    """Collect the values of all results by benchmark, parameters and machine."""
    found: dict[tuple[str, str], Series] = {}
    for result in read_results(folder):
        machine = result["params"]["machine"]
        for name, unit, value in values(result):
            key = name, machine
            kept = found.setdefault(key, Series(name, machine, unit, []))
            kept.points.append((result["commit_hash"], value))
    return list(found.values())
