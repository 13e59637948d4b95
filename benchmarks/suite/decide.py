"""Whether a case has become slower: an interval for the centre of ratios, whatever their spread.

Every round gives one ratio of the time of the changed revision to that of the base, of processes
of their own. Two processes of one revision are exchangeable, so that the logarithm of their ratio
is as likely positive as negative: the ratios of two revisions lie symmetrically around what the
change made. The interval for that centre is the one of Wilcoxon's signed-rank test: it lies between
two of the sorted means of pairs of ratios (Walsh averages), whose median is the estimate of Hodges
and Lehmann. Nothing else is assumed about the noise, and a few disturbed rounds move little.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

# Chance, at one look, of calling a case slower whose centre is at its threshold: seven rounds at
# least.
FALSE_ALARM = 0.01
# Chance, at one look, of stopping with a case whose centre is at its threshold: five rounds.
EARLY_PASS = 0.035


class Verdict(StrEnum):
    """What is known of a case."""

    PASSED = "ok"
    FASTER = "faster"
    SLOWER = "SLOWER"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Interval:
    """Centre of ratios, and between which ratios it lies; infinite where too few are known."""

    centre: float
    low: float
    high: float


@functools.cache
def rank(rounds: int, chance: float) -> int:
    """How many of the sorted Walsh averages lie outside of the interval at either end.

    The largest k for which a sum of signed ranks is below k with at most ``chance``.
    """
    ways = np.zeros(rounds * (rounds + 1) // 2 + 1)
    ways[0] = 1.0
    for place in range(1, rounds + 1):
        ways[place:] += ways[:-place].copy()
    below = np.cumsum(ways) / 2.0**rounds
    return int(np.searchsorted(below, chance, side="right"))


def walsh(logarithms: np.ndarray) -> np.ndarray:
    """Means of all pairs along the last axis, each element with itself included."""
    first, second = np.triu_indices(logarithms.shape[-1])
    return (logarithms[..., first] + logarithms[..., second]) / 2


def interval(ratios: Sequence[float], chance: float = FALSE_ALARM) -> Interval:
    """Interval whose lower and upper end are each on the wrong side with at most ``chance``.

    Raises:
        ValueError: If there are no ratios or one is not a positive number.
    """
    if not ratios or not all(math.isfinite(r) and r > 0 for r in ratios):
        raise ValueError(f"ratios: got {list(ratios)}, needs positive numbers")
    ordered = np.sort(walsh(np.log(ratios)))
    k = rank(len(ratios), chance)
    low = math.exp(ordered[k - 1]) if k else 0.0
    high = math.exp(ordered[-k]) if k else math.inf
    return Interval(math.exp(float(np.median(ordered))), low, high)


def decide(ratios: Sequence[float], threshold: float) -> Verdict:
    """Judge a case by the rounds so far.

    Args:
        ratios: Time of the changed revision over that of the base, one per round.
        threshold: Ratio above which the case counts as slower.
    """
    if interval(ratios).low > threshold:
        return Verdict.SLOWER
    high = interval(ratios, EARLY_PASS).high
    if high < 1 / threshold:
        return Verdict.FASTER
    return Verdict.PASSED if high <= threshold else Verdict.UNDECIDED


def final(ratios: Sequence[float], threshold: float) -> Verdict:
    """Judge a case when no more rounds will be made: slower only with confidence."""
    verdict = decide(ratios, threshold)
    if verdict is Verdict.UNDECIDED and interval(ratios).centre <= threshold:
        return Verdict.PASSED
    return verdict
