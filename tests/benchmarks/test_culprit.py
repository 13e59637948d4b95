"""The noisy binary search: on synthetic ratios, with commits that do not build."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from suite import cases, culprit
from suite.trees import BuildError

CASE = next(case for case in cases.guarded_cases() if case.device == "cpu")
COMMITS = [f"{number:040x}" for number in range(1, 17)]


class Repository:
    """Trees and rounds of 16 commits, of which one makes a case slower."""

    def __init__(
        self, place: int, change: float, scatter: float, broken: set[int], seed: int
    ) -> None:
        self.place, self.change, self.scatter, self.broken = place, change, scatter, broken
        self.generator = random.Random(seed)
        self.rounds = 0

    def tree_of(self, commit: str) -> Path:
        if commit != "good" and COMMITS.index(commit) in self.broken:
            raise BuildError("the ops do not compile")
        return Path(commit)

    def rounds_of(self, base: Path, tree: Path, case: cases.Case, rounds: int) -> list[float]:
        self.rounds += rounds
        is_slow = COMMITS.index(tree.name) >= self.place
        found = []
        for _ in range(rounds):
            scatter = self.scatter * (5 if self.generator.random() < 0.1 else 1)
            noise = math.exp(self.generator.gauss(0, scatter))
            found.append((self.change if is_slow else 1.0) * noise)
        return found


def find(monkeypatch: pytest.MonkeyPatch, repository: Repository) -> culprit.Search:
    monkeypatch.setattr(culprit, "rounds_of", repository.rounds_of)
    return culprit.search("good", COMMITS, CASE, repository.tree_of)


def test_the_commit_is_found_in_noise_and_as_surely_as_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right, sure, rounds = 0, 0.0, 0
    for seed in range(60):
        repository = Repository(seed % 16, 1.1, 0.03, set(), seed)
        named, chance = find(monkeypatch, repository).answer()
        right += named == [COMMITS[seed % 16]]
        sure += chance
        rounds += repository.rounds
    assert right >= 57
    assert sure >= 60 * 0.97
    assert rounds < 60 * 45


def test_commits_that_do_not_build_are_passed_over_and_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for seed in range(10):
        found = find(monkeypatch, Repository(7, 1.15, 0.01, {5, 6}, seed))
        assert found.answer()[0] == [COMMITS[5], COMMITS[6], COMMITS[7]]
        assert set(found.broken) <= {COMMITS[5], COMMITS[6]}
        found = find(monkeypatch, Repository(12, 1.15, 0.01, {3, 4}, seed))
        assert found.answer()[0] == [COMMITS[12]]


def test_without_a_slow_down_there_is_nothing_to_find(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(culprit.NotSlowerError, match="there is nothing to find"):
        find(monkeypatch, Repository(16, 1.1, 0.02, set(), 0))
    with pytest.raises(BuildError):
        find(monkeypatch, Repository(3, 1.1, 0.02, {15}, 0))
