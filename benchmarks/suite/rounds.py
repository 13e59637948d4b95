"""Rounds of a comparison: two fresh processes, one per revision, that take turns case by case."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from suite.cases import Case
from suite.decide import EARLY_PASS, Verdict, decide, final, interval, quartile
from suite.processes import RunningWorker, WorkerError

# A slice of time of one revision; short, so that what disturbs one disturbs the other.
SLICE_SECONDS = 0.008
# Pairs of slices per case and round: as many as fit, within these limits.
CASE_SECONDS, MOST_PAIRS, LEAST_PAIRS = 0.3, 25, 4
LEAST_ROUNDS, MOST_ROUNDS = 3, 25


@dataclass
class Outcome:
    """What is known of a case.

    Attributes:
        case: The case.
        ratios: Time of the changed revision over that of the base, one per round.
        seconds: Seconds per call of the base and of the changed revision, the least of all rounds.
        skipped: Why the case cannot run on this machine.
        lacking: Why the base cannot run it: it does not have what the case calls.
        error: Why it failed.
        counts: Counts of the base and of the changed revision.
        grown: Names of the counts that are larger in the changed revision.
        verdict: The judgement on the times.
    """

    case: Case
    ratios: list[float] = field(default_factory=list)
    seconds: tuple[float, float] | None = None
    skipped: str | None = None
    lacking: str | None = None
    error: str | None = None
    counts: tuple[dict[str, int], dict[str, int]] | None = None
    grown: list[str] = field(default_factory=list)
    verdict: Verdict = Verdict.UNDECIDED

    @property
    def open(self) -> bool:
        """Whether more rounds would tell more."""
        over = self.skipped or self.lacking or self.error
        return over is None and (
            len(self.ratios) < LEAST_ROUNDS or self.verdict is Verdict.UNDECIDED
        )

    @property
    def failed(self) -> bool:
        """Whether the comparison fails because of it."""
        return self.error is not None or self.verdict is Verdict.SLOWER or bool(self.grown)


def compare(
    base: Path,
    head: Path,
    cases: Iterable[Case],
    *,
    most_rounds: int = MOST_ROUNDS,
    counts: bool = True,
    times: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> list[Outcome]:
    """Compare two trees on cases, until every case is decided or there were enough rounds.

    Args:
        base, head: Trees with compiled ops.
        cases: What to run.
        most_rounds: Number of rounds after which an undecided case stays undecided.
        counts: Whether to compare the counts, in the first round.
        times: Whether to compare the times.
        say: Called with a line after every round.
    """
    outcomes = [Outcome(case) for case in cases]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None]
    for number in range(most_rounds if times else 1):
        left = [outcome for outcome in outcomes if outcome.open]
        if not left:
            break
        begin = time.monotonic()
        _round(number, cores[number % len(cores)], base, head, left, counts and number == 0, times)
        undecided = sum(outcome.open for outcome in outcomes)
        took = time.monotonic() - begin
        say(f"round {number + 1}: {len(left)} cases, {took:.0f} s; {undecided} not decided")
    for outcome in outcomes:
        if outcome.ratios:
            outcome.verdict = final(outcome.ratios, outcome.case.threshold)
    return outcomes


def _round(
    number: int,
    core: int | None,
    base: Path,
    head: Path,
    left: list[Outcome],
    counts: bool,
    times: bool,
) -> None:
    with RunningWorker(base, core) as a, RunningWorker(head, core) as b:
        a.wait_ready()
        b.wait_ready()
        for outcome in left:
            if not _prepare(outcome, a, b):
                continue
            try:
                if counts:
                    _count(outcome, a, b)
                if times:
                    _time(outcome, a, b, first=number % 2)
            except WorkerError as error:
                outcome.error = str(error)
            for worker in (a, b):
                worker.ask("release")


def _prepare(outcome: Outcome, a: RunningWorker, b: RunningWorker) -> bool:
    """Set a case up in both processes; says whether it can be measured."""
    answers: list[dict[str, Any] | WorkerError] = []
    for worker in (a, b):
        try:
            answers.append(worker.ask("prepare", case=outcome.case.name))
        except WorkerError as error:
            answers.append(error)
    before, after = answers
    if isinstance(after, WorkerError):
        outcome.error = str(after)
    elif "skipped" in after:
        outcome.skipped = after["skipped"]
    elif isinstance(before, WorkerError):
        if before.lacking:
            outcome.lacking = str(before)
        else:
            outcome.error = f"in the base: {before}"
    elif "skipped" in before:
        outcome.lacking = before["skipped"]
    else:
        return True
    return False


def _count(outcome: Outcome, a: RunningWorker, b: RunningWorker) -> None:
    before, after = (worker.ask("count")["counts"] for worker in (a, b))
    outcome.counts = before, after
    names = after if outcome.case.exact else ("calls", "moved_bytes")
    outcome.grown = [name for name in names if after[name] > before[name]]


def _time(outcome: Outcome, a: RunningWorker, b: RunningWorker, first: int) -> None:
    """Time one round of a case: slices in the order A B B A, the ratio of lower quartiles."""
    once = min(worker.ask("measure", calls=1)["seconds"] for worker in (a, b))
    calls = max(1, round(SLICE_SECONDS / max(once, 1e-7)))
    pairs = int(CASE_SECONDS / (2 * calls * max(once, 1e-7)))
    pairs = min(max(pairs, LEAST_PAIRS), MOST_PAIRS)
    seconds: dict[RunningWorker, list[float]] = {a: [], b: []}
    order = itertools.cycle(((a, b), (b, a)) if first == 0 else ((b, a), (a, b)))
    for turn in itertools.islice(order, pairs):
        for worker in turn:
            seconds[worker].append(worker.ask("measure", calls=calls)["seconds"])
    before, after = quartile(seconds[a]), quartile(seconds[b])
    outcome.ratios.append(after / before)
    known = outcome.seconds or (before, after)
    outcome.seconds = min(known[0], before), min(known[1], after)
    outcome.verdict = decide(outcome.ratios, outcome.case.threshold)


def table(outcomes: Iterable[Outcome]) -> list[str]:
    """Write the outcome of every case: name, times, ratio with interval, threshold, verdict."""
    lines = []
    for outcome in outcomes:
        name, case = outcome.case.name, outcome.case
        if outcome.error is not None:
            lines.append(f"{name}\n    FAILED: {outcome.error}")
            continue
        if outcome.skipped is not None:
            lines.append(f"{name}\n    skipped: {outcome.skipped}")
            continue
        if outcome.lacking is not None:
            lines.append(f"{name}\n    not compared, the base lacks it: {outcome.lacking}")
            continue
        lines.append(name)
        if outcome.ratios and outcome.seconds is not None:
            found = interval(outcome.ratios)
            if len(outcome.ratios) < 5:
                found = interval(outcome.ratios, EARLY_PASS)
            before, after = (1e3 * seconds for seconds in outcome.seconds)
            lines.append(
                f"    {before:.4g} ms -> {after:.4g} ms, ratio {found.median:.3f} "
                f"({found.low:.3f} to {found.high:.3f}, {len(outcome.ratios)} rounds), "
                f"threshold {case.threshold:.2f}: {outcome.verdict}"
            )
        if outcome.counts is not None:
            before_counts, after_counts = outcome.counts
            for key in outcome.grown:
                lines.append(f"    {key} {before_counts[key]} -> {after_counts[key]}: GROWN")
    return lines
