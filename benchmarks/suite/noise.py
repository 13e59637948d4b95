"""Thresholds from noise: what rounds of a revision against itself say about each case.

The ratios of such rounds (A/A) are drawn again and again, smoothed, and judged by the very rule of
the comparison. The threshold of a case is the lowest tier at which that rule is wrong so rarely
that all cases together raise at most :data:`SUITE` false alarms in a full run, and never in the
rounds in the order in which they were made: noise may last for several. The same draws, multiplied
by a slow-down, say how surely it would be found.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from suite.decide import EARLY_PASS, FALSE_ALARM, Verdict, decide, rank, walsh
from suite.machine import RESULTS, about, machine_name, write_whole

TIERS = (1.03, 1.035, 1.04, 1.05, 1.06, 1.08, 1.1, 1.15, 1.2, 1.3)
# False alarms in a full run of all guarded cases, at most: one in twenty runs.
SUITE = 0.05
SLOWDOWNS = (1.08, 1.15)
LEAST_RATIOS = 10
DRAWS = 4000


@dataclass(frozen=True)
class Tier:
    """The threshold of a case, and what to expect of it.

    Attributes:
        threshold: Ratio of times above which the case has become slower.
        spread: Standard deviation of the logarithm of a round's ratio, from the quartiles.
        rounds: Number of A/A rounds that it comes from.
        false_alarm: Part of the runs in which an unchanged case is called slower.
        found: Part of the runs in which a slow-down is found, by its ratio.
    """

    threshold: float
    spread: float
    rounds: int
    false_alarm: float
    found: dict[str, float] = field(default_factory=dict)


class Draws:
    """Runs of a comparison, drawn from A/A ratios: the ends of the intervals at every look."""

    def __init__(self, ratios: Sequence[float], most_rounds: int, draws: int = DRAWS) -> None:
        generator = np.random.default_rng(0)
        known = np.log(ratios)
        # Both signs are equally likely. A little is added to what was seen: more is possible.
        sample = generator.choice(np.concatenate([known, -known]), (draws, most_rounds))
        sample += generator.normal(0, 0.3 * spread(ratios), sample.shape)
        self.low, self.high = np.full((2, most_rounds, draws), -np.inf)
        self.high[:] = np.inf
        for rounds in range(1, most_rounds + 1):
            k, j = rank(rounds, FALSE_ALARM), rank(rounds, EARLY_PASS)
            if j == 0:
                continue
            means = np.sort(walsh(sample[:, :rounds]), axis=-1)
            self.high[rounds - 1] = means[:, -j]
            if k:
                self.low[rounds - 1] = means[:, k - 1]

    def slower(self, threshold: float, change: float = 1.0) -> float:
        """Part of the runs that call a case slower which takes ``change`` times as long."""
        line, shift = math.log(threshold), math.log(change)
        alarm, passes = self.low + shift > line, self.high + shift <= line
        never = len(alarm)
        first = np.where(alarm.any(0), alarm.argmax(0), never)
        last = np.where(passes.any(0), passes.argmax(0), never)
        return float(((first < never) & (first <= last)).mean())


def spread(ratios: Sequence[float]) -> float:
    """Standard deviation of the logarithms, from their quartiles as if they were normal."""
    low, high = np.quantile(np.log(ratios), (0.25, 0.75))
    return max(float(high - low) / 1.349, 1e-4)


def alarms(ratios: Sequence[float], threshold: float) -> int:
    """Count the runs among the rounds as they were made that call an unchanged case slower.

    A run begins at every round, and once more with both revisions exchanged. Drawn rounds know
    nothing of noise that lasts for several of them; these do.
    """
    found = 0
    for known in (list(ratios), [1 / ratio for ratio in ratios]):
        for start in range(len(known)):
            for end in range(start + 1, len(known) + 1):
                verdict = decide(known[start:end], threshold)
                if verdict is not Verdict.UNDECIDED:
                    found += verdict is Verdict.SLOWER
                    break
    return found


def tier_of(ratios: Sequence[float], cases: int, most_rounds: int) -> Tier:
    """Choose the threshold of a case.

    Args:
        ratios: A/A ratios, one per round.
        cases: Number of guarded cases, which share the false alarms of the suite.
        most_rounds: Rounds that a comparison makes at most.

    Raises:
        ValueError: If there are fewer than :data:`LEAST_RATIOS` ratios.
    """
    if len(ratios) < LEAST_RATIOS:
        raise ValueError(f"ratios: got {len(ratios)}, needs at least {LEAST_RATIOS}")
    draws = Draws(ratios, most_rounds)
    rates = {tier: draws.slower(tier) for tier in TIERS}
    fit = (t for t in TIERS if rates[t] <= SUITE / cases and alarms(ratios, t) == 0)
    threshold = next(fit, TIERS[-1])
    found = {f"{change:g}": draws.slower(threshold, change) for change in SLOWDOWNS}
    return Tier(threshold, spread(ratios), len(ratios), rates[threshold], found)


def file_of(folder: Path = RESULTS) -> Path:
    """Where the noise of this machine is kept."""
    return folder / "noise" / f"{machine_name()}.json"


def write_noise(
    ratios: Mapping[str, Sequence[float]], most_rounds: int, folder: Path = RESULTS
) -> dict[str, Tier]:
    """Keep A/A ratios with the tiers that follow from them and from what was known before."""
    path = file_of(folder)
    known = json.loads(path.read_text())["cases"] if path.is_file() else {}
    kept = {name: case["ratios"] for name, case in known.items()}
    for name, more in ratios.items():
        kept[name] = [*kept.get(name, []), *more]
    enough = {name: r for name, r in kept.items() if len(r) >= LEAST_RATIOS}
    tiers = {name: tier_of(r, len(enough), most_rounds) for name, r in enough.items()}
    cases = {
        name: {**(asdict(tiers[name]) if name in tiers else {}), "ratios": kept[name]}
        for name in sorted(kept)
    }
    report = {"about": about(1), "most_rounds": most_rounds, "cases": cases}
    write_whole(path, json.dumps(report, indent=1) + "\n")
    return tiers


def read_tiers(folder: Path = RESULTS) -> dict[str, Tier]:
    """Read the tiers of this machine; none where its noise was not measured."""
    path = file_of(folder)
    if not path.is_file():
        return {}
    cases: dict[str, dict[str, Any]] = json.loads(path.read_text())["cases"]
    names = Tier.__dataclass_fields__
    return {
        name: Tier(**{key: value for key, value in case.items() if key in names})
        for name, case in cases.items()
        if "threshold" in case
    }


def false_alarms(tiers: Mapping[str, Tier]) -> float:
    """Part of the full runs in which at least one unchanged case is called slower."""
    return 1.0 - math.prod(1.0 - tier.false_alarm for tier in tiers.values())
