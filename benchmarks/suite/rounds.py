"""Rounds of a comparison: two fresh processes, one per revision, that take turns case by case."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from suite.cases import Case
from suite.clock import quartile
from suite.decide import Verdict, decide, final
from suite.processes import RunningWorker, WorkerError

# A slice of time of one revision; short, so that what disturbs one disturbs the other.
SLICE_SECONDS = 0.008
# Pairs of slices per case and round: as many as fit, within these limits.
CASE_SECONDS, MOST_PAIRS, LEAST_PAIRS = 0.15, 12, 3
LEAST_ROUNDS, MOST_ROUNDS = 3, 40
# Rounds after which the processes that are forked are started anew, for another layout of code.
FORKS = 8


@dataclass
class Outcome:
    """What is known of a case.

    Attributes:
        case: The case.
        threshold: Ratio of times above which the case has become slower.
        ratios: Time of the changed revision over that of the base, one per round.
        seconds: Seconds per call of the base and of the changed revision, the least of all rounds.
        skipped: Why the case cannot run on this machine.
        lacking: Why the base cannot run it: it does not have what the case calls.
        error: Why it failed.
        red: What its tests say, if they fail: the times are then not taken.
        counts: Counts of the base and of the changed revision.
        grown: Names of the counts that are larger in the changed revision.
        throttled: Slices that were dropped, by what slowed the GPU down meanwhile.
        verdict: The judgement on the times.
    """

    case: Case
    threshold: float = 0.0
    ratios: list[float] = field(default_factory=list)
    seconds: tuple[float, float] | None = None
    skipped: str | None = None
    lacking: str | None = None
    error: str | None = None
    red: str | None = None
    counts: tuple[dict[str, int], dict[str, int]] | None = None
    grown: list[str] = field(default_factory=list)
    throttled: dict[str, int] = field(default_factory=dict)
    verdict: Verdict = Verdict.UNDECIDED

    def __post_init__(self) -> None:
        self.threshold = self.threshold or self.case.threshold

    @property
    def open(self) -> bool:
        """Whether more rounds would tell more."""
        over = self.skipped or self.lacking or self.error or self.red
        return over is None and (
            len(self.ratios) < LEAST_ROUNDS or self.verdict is Verdict.UNDECIDED
        )

    @property
    def failed(self) -> bool:
        """Whether the comparison fails because of it."""
        wrong = self.error is not None or self.red is not None or bool(self.grown)
        return wrong or self.verdict is Verdict.SLOWER


class Pair:
    """The processes of two trees, of which each round gets children, or fresh ones for a GPU."""

    def __init__(self, base: Path, head: Path, cases: list[str], forks: bool) -> None:
        self.trees, self.cases, self.forks = (base, head), cases, forks
        self.stack = ExitStack()
        self.workers: list[RunningWorker] = []
        self.used = 0

    @contextmanager
    def round(self, core: int | None) -> Iterator[tuple[RunningWorker, RunningWorker]]:
        """Give both processes of a round."""
        if not self.workers or not self.forks or self.used >= FORKS:
            self._start(core)
        a, b = self.workers
        if not self.forks:
            yield a, b
            self.close()
            return
        for worker in (a, b):
            worker.bind(core)
            worker.ask("fork")
        yield a, b
        for worker in (a, b):
            worker.ask("end")
        self.used += 1

    def _start(self, core: int | None) -> None:
        self.close()
        # One after the other asked, so that both import at the same time.
        self.workers = [self.stack.enter_context(RunningWorker(tree, core)) for tree in self.trees]
        for worker in self.workers:
            worker.wait_ready()
        if self.forks:
            for worker in self.workers:
                worker.send({"do": "warm", "cases": self.cases})
            for worker in self.workers:
                worker.receive()
        self.used = 0

    def close(self) -> None:
        """End the processes."""
        self.stack.close()
        self.workers = []

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def cores() -> Sequence[int | None]:
    """The processors that rounds are bound to in turn."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return [None]


def compare(
    base: Path,
    head: Path,
    cases: Iterable[Case],
    *,
    thresholds: Mapping[str, float] | None = None,
    red: Mapping[str, str] | None = None,
    most_rounds: int = MOST_ROUNDS,
    most_seconds: float = float("inf"),
    stops: bool = True,
    counts: bool = True,
    times: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> list[Outcome]:
    """Compare two trees on cases, until every case is decided or there were enough rounds.

    Args:
        base, head: Trees with compiled ops.
        cases: What to run.
        thresholds: Ratios above which a case has become slower, by name; the case's own otherwise.
        red: What the tests of a case say where they fail, by name; it is not run then.
        most_rounds: Number of rounds after which an undecided case stays undecided.
        most_seconds: Time after which no round is begun.
        stops: Whether a case that is decided gets no more rounds.
        counts: Whether to compare the counts, in the first round.
        times: Whether to compare the times.
        say: Called with a line after every round.
    """
    known, wrong = thresholds or {}, red or {}
    outcomes = [Outcome(c, known.get(c.name, 0.0), red=wrong.get(c.name)) for c in cases]
    for device in ("cpu", "cuda"):
        mine = [outcome for outcome in outcomes if outcome.case.device == device]
        if device == "cuda" and mine and not _has_gpu():
            # Without starting processes to be told so.
            for outcome in mine:
                outcome.skipped = "there is no CUDA device here"
            continue
        places, begin = itertools.cycle(cores()), time.monotonic()
        names = [outcome.case.name for outcome in mine]
        with Pair(base, head, names, forks=device == "cpu" and hasattr(os, "fork")) as pair:
            for number in range(most_rounds if times else 1):
                left = [o for o in mine if o.open or not (stops or _over(o))]
                if not left or time.monotonic() - begin > most_seconds:
                    break
                start = time.monotonic()
                _round(number, pair, next(places), left, counts and number == 0, times)
                undecided = sum(outcome.open for outcome in mine)
                took = time.monotonic() - start
                say(f"round {number + 1}: {len(left)} cases, {took:.0f} s; {undecided} not decided")
    for outcome in outcomes:
        if outcome.ratios:
            outcome.verdict = final(outcome.ratios, outcome.threshold)
    return outcomes


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _over(outcome: Outcome) -> bool:
    return bool(outcome.skipped or outcome.lacking or outcome.error or outcome.red)


def _round(
    number: int,
    pair: Pair,
    core: int | None,
    left: list[Outcome],
    counts: bool,
    times: bool,
) -> None:
    with pair.round(core) as (a, b):
        for outcome in left:
            if not _prepare(outcome, a, b):
                continue
            try:
                if counts:
                    _count(outcome, a, b)
                if times:
                    time_round(outcome, a, b, first=number % 2)
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
    outcome.grown = [name for name in names if after[name] > before.get(name, 0)]


def time_round(outcome: Outcome, a: RunningWorker, b: RunningWorker, first: int) -> None:
    """Time one round of a case: slices in the order A B B A, the ratio of lower quartiles.

    A slice in which something slowed the GPU down is dropped, with its neighbour of the other
    revision.
    """
    once = min(worker.ask("measure", calls=1)["seconds"] for worker in (a, b))
    calls = max(1, round(SLICE_SECONDS / once))
    pairs = min(max(int(CASE_SECONDS / (2 * calls * once)), LEAST_PAIRS), MOST_PAIRS)
    seconds: dict[RunningWorker, list[float]] = {a: [], b: []}
    order = itertools.cycle(((a, b), (b, a)) if first == 0 else ((b, a), (a, b)))
    for turn in itertools.islice(order, pairs):
        answers = [worker.ask("measure", calls=calls) for worker in turn]
        reasons = {reason for answer in answers for reason in answer.get("throttled", ())}
        for reason in reasons:
            outcome.throttled[reason] = outcome.throttled.get(reason, 0) + 1
        if not reasons:
            for worker, answer in zip(turn, answers, strict=True):
                seconds[worker].append(answer["seconds"])
    if not seconds[a]:
        # The GPU was slowed down all the time: the round tells nothing.
        return
    before, after = quartile(seconds[a]), quartile(seconds[b])
    outcome.ratios.append(after / before)
    known = outcome.seconds or (before, after)
    outcome.seconds = min(known[0], before), min(known[1], after)
    outcome.verdict = decide(outcome.ratios, outcome.threshold)
