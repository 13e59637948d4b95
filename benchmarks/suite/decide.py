"""Whether a case has become slower: an interval for the median of ratios, without assumptions.

Every round gives one ratio of the time of the changed revision to that of the base, of processes
of their own. The interval for their median lies between two of the sorted ratios (sign test): the
median is below the k-th smallest of n with probability P(Binomial(n, 1/2) < k). Nothing is assumed
about the noise, and a few disturbed rounds move nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

# Chance of calling a case slower whose median is at its threshold: 1 of 2^5 with five rounds.
FALSE_ALARM = 0.05
# Chance of stopping early with a case whose median is at its threshold: 1 of 2^3.
EARLY_PASS = 0.125
# Rounds after which a median nearer to 1 than to the threshold is enough to pass.
ENOUGH = 5


class Verdict(StrEnum):
    """What is known of a case."""

    PASSED = "ok"
    SLOWER = "SLOWER"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Interval:
    """Median of ratios, and between which of them it lies; infinite where too few are known."""

    median: float
    low: float
    high: float


def tail(rounds: int, k: int) -> float:
    """Compute P(Binomial(rounds, 1/2) < k)."""
    return sum(math.comb(rounds, i) for i in range(k)) / 2**rounds


def interval(ratios: Sequence[float], chance: float = FALSE_ALARM) -> Interval:
    """Interval whose lower and upper end are each on the wrong side with at most ``chance``.

    Raises:
        ValueError: If there are no ratios or one is not a positive number.
    """
    if not ratios or not all(math.isfinite(r) and r > 0 for r in ratios):
        raise ValueError(f"ratios: got {list(ratios)}, needs positive numbers")
    ordered = sorted(ratios)
    k = 0
    while k < len(ordered) and tail(len(ordered), k + 1) <= chance:
        k += 1
    low = ordered[k - 1] if k else 0.0
    high = ordered[-k] if k else math.inf
    return Interval(statistics.median(ordered), low, high)


def decide(ratios: Sequence[float], threshold: float) -> Verdict:
    """Judge a case by the rounds so far.

    Args:
        ratios: Time of the changed revision over that of the base, one per round.
        threshold: Ratio above which the case counts as slower.
    """
    if interval(ratios).low > threshold:
        return Verdict.SLOWER
    if interval(ratios, EARLY_PASS).high <= threshold:
        return Verdict.PASSED
    if len(ratios) >= ENOUGH and statistics.median(ratios) <= (1 + threshold) / 2:
        return Verdict.PASSED
    return Verdict.UNDECIDED


def final(ratios: Sequence[float], threshold: float) -> Verdict:
    """Judge a case when no more rounds will be made: slower only with confidence."""
    verdict = decide(ratios, threshold)
    if verdict is Verdict.UNDECIDED and statistics.median(ratios) <= threshold:
        return Verdict.PASSED
    return verdict


def quartile(times: Sequence[float]) -> float:
    """The lower quartile: others only add to a time, and the least one is a matter of luck.

    Raises:
        ValueError: If there are no times.
    """
    if not times:
        raise ValueError("times: got none, needs at least one")
    return sorted(times)[(len(times) - 1) // 4]
