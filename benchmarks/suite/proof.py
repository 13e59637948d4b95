"""How often planted slow-downs are found, and how often an unchanged tree raises an alarm.

A run is what `make bench-compare` does: with the thresholds of this machine, until every case is
decided or the rounds are used up. Every run is kept as soon as it is over, so that a proof can be
interrupted; the next one adds to it.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from suite import plants
from suite.cases import Case, guarded_cases
from suite.decide import Verdict
from suite.machine import RESULTS, about, machine_name, write_whole
from suite.rounds import compare

# What a plant slows down: three ops, and prediction in Python.
CASES = {
    "gated_gnn": "gated_gnn.forward(cpu",
    "expand_params": "expand_params.forward(cpu, cpu, hid=32, train",
    "shortest_distances": "shortest_distances.call(cpu, cpu, hid=32, deep",
    "predict": "predict_warm.call(auto, cpu",
}
PERCENTS = (8, 15)
# What a comparison may take (bench.py compare).
MOST_SECONDS = 570.0
_Say = Callable[[str], None]


def case_of(path: str) -> Case:
    """The case that shows a plant."""
    (case,) = [case for case in guarded_cases() if case.name.startswith(CASES[path])]
    return case


def cpu_cases() -> list[Case]:
    """Every guarded case of a CPU, which is what a full comparison has without a GPU."""
    return [case for case in guarded_cases() if case.device == "cpu"]


class Proof:
    """Runs on a tree, kept in a file.

    Args:
        base: The tree of a commit, named by it, with compiled ops.
        thresholds: Ratios above which a case has become slower, by name.
        results: Folder of results.
        say: Called with a line after every run.

    Attributes:
        runs: What was seen: `commit`, `case` (``None`` for unchanged trees), `percent`, `alarms`
            (names of the cases that were called slower), `undecided`, `rounds`, `seconds`.
    """

    def __init__(
        self,
        base: Path,
        thresholds: Mapping[str, float],
        results: Path = RESULTS,
        say: _Say = print,
    ) -> None:
        self.base, self.thresholds, self.say = base, thresholds, say
        self.file = results / "proof" / f"{machine_name()}.json"
        self.runs: list[dict[str, Any]] = []
        if self.file.is_file():
            self.runs = json.loads(self.file.read_text())["runs"]

    def planted(self, path: str, percent: int, runs: int) -> None:
        """Slow a path down and compare its case, until there are so many runs of that."""
        self._repeat(path, percent, runs, [case_of(path)])

    def unchanged(self, runs: int) -> None:
        """Compare all cases with a copy of the tree, until there are so many runs of that."""
        self._repeat(None, 0, runs, cpu_cases())

    def of(self, path: str | None, percent: int) -> list[dict[str, Any]]:
        """The runs of a plant on this tree; of unchanged trees for ``None``."""
        wanted = (self.base.name, path, percent)
        return [r for r in self.runs if (r["commit"], r["case"], r["percent"]) == wanted]

    def table(self) -> list[str]:
        """What was found, line by line."""
        lines = ["found        seconds, median and most  what"]
        for path in CASES:
            for percent in PERCENTS:
                if found := self.of(path, percent):
                    caught = sum(case_of(path).name in run["alarms"] for run in found)
                    lines.append(_line(f"{caught} of {len(found)}", found, f"{path} + {percent} %"))
        if found := self.of(None, 0):
            alarmed = sum(bool(run["alarms"]) for run in found)
            lines.append(_line(f"{alarmed} of {len(found)}", found, "alarms on unchanged trees"))
        return lines

    def _repeat(self, case: str | None, percent: int, runs: int, cases: Sequence[Case]) -> None:
        if len(self.of(case, percent)) >= runs:
            return
        with tempfile.TemporaryDirectory() as folder:
            head = Path(folder) / "head"
            shutil.copytree(self.base, head, symlinks=True)
            if case is not None:
                plants.plant_slowdown(head, percent, case)
            while len(self.of(case, percent)) < runs:
                self._run(head, cases, case, percent)

    def _run(self, head: Path, cases: Sequence[Case], case: str | None, percent: int) -> None:
        begin = time.monotonic()
        outcomes = compare(
            self.base, head, cases, thresholds=self.thresholds, counts=case is None,
            most_seconds=MOST_SECONDS,
        )  # fmt: skip
        run = {
            "commit": self.base.name,
            "case": case,
            "percent": percent,
            "alarms": [o.case.name for o in outcomes if o.failed],
            "undecided": [o.case.name for o in outcomes if o.verdict is Verdict.UNDECIDED],
            "rounds": max(len(o.ratios) for o in outcomes),
            "seconds": time.monotonic() - begin,
        }
        self.runs.append(run)
        write_whole(self.file, json.dumps({"about": about(1), "runs": self.runs}, indent=1) + "\n")
        what = "unchanged" if case is None else f"{case} + {percent} %"
        self.say(f"{what}: {run['rounds']} rounds, {run['seconds']:.0f} s; {run['alarms'] or 'ok'}")


def _line(found: str, runs: Sequence[Mapping[str, Any]], what: str) -> str:
    seconds = [run["seconds"] for run in runs]
    return f"{found:>9}  {statistics.median(seconds):13.0f} {max(seconds):8.0f}  {what}"
