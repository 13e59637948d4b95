"""The commit that made a case slower: noisy binary search with the interleaved comparison.

Every commit of a range is as likely the culprit at first. A round compares one commit with the good
end; its ratio is either like those of the good end or like those of the bad end, and how likely it
is under each multiplies the probability of every commit (Bayes). The next round goes to the commit
that halves what is left, which a disturbed round sets back but does not mislead for good. A commit
that does not build is passed over: it cannot be told from its successor, and both are named.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from suite.cases import Case
from suite.noise import spread
from suite.processes import WorkerError
from suite.rounds import Outcome, Pair, cores, time_round
from suite.trees import BuildError

# Rounds of the bad end against the good one, which tell what to look for.
END_ROUNDS = 7
SURE, MOST_ROUNDS = 0.99, 120
# Least standard deviation of a round that is believed.
LEAST_SPREAD = 0.01
# Degrees of freedom of Student's distribution: its tails are those of disturbed rounds.
FREEDOM = 3.0


class NotSlowerError(Exception):
    """The bad end is not slower than the good one; the message says by how much."""


@dataclass
class Search:
    """The probability of every commit to be the one that made the case slower.

    Args:
        commits: The commits after the good end, oldest first; the last is the bad end.
        change: Logarithm of the bad end's ratio to the good end.
        spread: Standard deviation of the logarithm of a round's ratio.

    Attributes:
        weights: Logarithms of the probabilities, up to a constant.
        rounds: Rounds by commit.
        broken: Why commits cannot be tried, by commit.
    """

    commits: Sequence[str]
    change: float
    spread: float
    weights: list[float] = field(default_factory=list)
    rounds: dict[str, int] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.weights = self.weights or [0.0] * len(self.commits)

    @property
    def chances(self) -> list[float]:
        """Probability of each commit."""
        most = max(self.weights)
        parts = [math.exp(weight - most) for weight in self.weights]
        return [part / sum(parts) for part in parts]

    def see(self, place: int, ratio: float) -> None:
        """Take a round of the commit at ``place`` into account.

        The commit is slow if the culprit is at its place or before it.
        """
        value = math.log(ratio)
        slow, fast = (_likelihood((value - m) / self.spread) for m in (self.change, 0.0))
        for index in range(len(self.commits)):
            self.weights[index] += slow if index <= place else fast
        name = self.commits[place]
        self.rounds[name] = self.rounds.get(name, 0) + 1

    def next(self) -> int | None:
        """The place of the commit to compare next, nearest to halving what is left."""
        before, best = 0.0, (1.0, -1)
        # The bad end has been compared: it is slow.
        for place, chance in enumerate(self.chances[:-1]):
            before += chance
            if self.commits[place] not in self.broken:
                best = min(best, (abs(before - 0.5), place))
        return best[1] if best[1] >= 0 and best[0] < 0.5 - (1 - SURE) / 2 else None

    def answer(self) -> tuple[list[str], float]:
        """The commits that are meant, and how sure that is.

        More than one where commits in between do not build: they cannot be told apart.
        """
        groups: list[tuple[float, list[str]]] = []
        members: list[str] = []
        total = 0.0
        for commit, chance in zip(self.commits, self.chances, strict=True):
            members.append(commit)
            total += chance
            if commit not in self.broken:
                groups.append((total, members))
                members, total = [], 0.0
        if members:
            groups.append((total, members))
        chance, named = max(groups)
        return named, chance


def _likelihood(x: float) -> float:
    """Logarithm of Student's density, up to a constant."""
    return -(FREEDOM + 1) / 2 * math.log1p(x * x / FREEDOM)


def search(
    good: str,
    commits: Sequence[str],
    case: Case,
    tree_of: Callable[[str], Path],
    say: Callable[[str], None] = lambda line: None,
    most_seconds: float = math.inf,
) -> Search:
    """Find the commit that made a case slower.

    Args:
        good: A commit before it.
        commits: The commits after ``good``, oldest first; the last is known to be slow.
        case: The case.
        tree_of: Makes the tree of a commit, with compiled ops.
        say: Called with a line after every commit that was compared.
        most_seconds: Time after which no round is begun.

    Raises:
        NotSlowerError: If the last commit is not slower than ``good``.
        suite.trees.BuildError: If one of the ends does not build.
        suite.processes.WorkerError: If one of the ends does not run.
    """
    begin = time.monotonic()
    base = tree_of(good)
    ends = rounds_of(base, tree_of(commits[-1]), case, END_ROUNDS)
    change = math.log(statistics.median(ends))
    noise = max(spread(ends), LEAST_SPREAD)
    say(f"bad end: ratio {math.exp(change):.3f}, a round scatters by {100 * noise:.1f} %")
    if change < 2 * noise / math.sqrt(len(ends)) or change < LEAST_SPREAD:
        raise NotSlowerError(
            f"{commits[-1][:10]} takes {math.exp(change):.3f} times what {good[:10]} takes, "
            f"and a round scatters by {100 * noise:.1f} %: there is nothing to find"
        )
    found = Search(commits, change, noise)
    total = 0
    while total < MOST_ROUNDS and time.monotonic() - begin < most_seconds:
        place = found.next()
        if place is None or found.answer()[1] >= SURE:
            break
        commit = commits[place]
        # As many as tell the two ends apart, if nothing disturbs.
        rounds = min(max(math.ceil((2.5 * noise / change) ** 2), 2), 8)
        try:
            ratios = rounds_of(base, tree_of(commit), case, rounds)
        except (BuildError, WorkerError) as error:
            found.broken[commit] = str(error).splitlines()[0]
            say(f"{commit[:10]} is passed over: {found.broken[commit]}")
            continue
        for ratio in ratios:
            found.see(place, ratio)
        total += rounds
        middle = statistics.median(ratios)
        named, chance = found.answer()
        say(
            f"{commit[:10]}: ratio {middle:.3f} in {rounds} rounds; now "
            f"{' or '.join(name[:10] for name in named)} with {100 * chance:.1f} %"
        )
    return found


def rounds_of(base: Path, tree: Path, case: Case, rounds: int) -> list[float]:
    """Compare two trees on a case in some rounds; the ratios.

    Raises:
        suite.processes.WorkerError: If the case does not run in one of them.
    """
    outcome = Outcome(case)
    places = cores()
    with Pair(base, tree, [case.name], forks=case.device == "cpu") as pair:
        for number in range(rounds):
            with pair.round(places[number % len(places)]) as (a, b):
                for worker in (a, b):
                    answer = worker.ask("prepare", case=case.name)
                    if "skipped" in answer:
                        raise WorkerError(answer["skipped"])
                time_round(outcome, a, b, first=number % 2)
    if not outcome.ratios:
        raise WorkerError("the GPU was slowed down in every sample")
    return outcome.ratios
