"""When two revisions differ: the decision on synthetic samples, the table, the exit status."""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from tolerances import assert_close

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import compare as script  # noqa: E402
from suite import cases, decide, rounds, trees  # noqa: E402
from suite.decide import Verdict  # noqa: E402
from suite.processes import WorkerError  # noqa: E402

sys.path.remove(str(ROOT / "benchmarks"))

CASE = next(case for case in cases.guarded_cases() if case.device == "cpu")


def test_the_interval_is_that_of_the_sign_test() -> None:
    # P(Binomial(n, 1/2) < k), added up by hand.
    assert decide.tail(5, 1) == 1 / 32
    assert decide.tail(8, 2) == 9 / 256
    assert decide.interval([1.0, 1.1, 1.2]) == decide.Interval(1.1, 0.0, math.inf)
    assert decide.interval([1.3, 1.1, 1.2, 1.5, 1.4]) == decide.Interval(1.3, 1.1, 1.5)
    assert decide.interval([1, 2, 3, 4, 5, 6, 7, 8]) == decide.Interval(4.5, 2, 7)
    for wrong in ([], [1.0, math.nan], [0.0]):
        with pytest.raises(ValueError, match="needs positive numbers"):
            decide.interval(wrong)


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([1.0, 0.99, 1.01], Verdict.PASSED),
        ([1.15] * 4, Verdict.UNDECIDED),
        ([1.15] * 5, Verdict.SLOWER),
        ([1.15, 1.15, 1.15, 1.15, 1.04], Verdict.UNDECIDED),
        ([1.15] * 7 + [0.7], Verdict.SLOWER),
        ([1.0, 1.0, 9.0], Verdict.UNDECIDED),
        ([1.0, 1.0, 9.0, 1.03], Verdict.UNDECIDED),
        ([1.0, 1.0, 9.0, 9.0, 1.0], Verdict.PASSED),
        ([1.03, 1.03, 9.0, 9.0, 1.03], Verdict.UNDECIDED),
        ([1.04, 1.04, 9.0, 1.04, 1.04, 1.04, 1.04], Verdict.PASSED),
    ],
)
def test_a_case_is_judged_when_the_rounds_agree(ratios: list[float], verdict: Verdict) -> None:
    assert decide.decide(ratios, 1.05) is verdict


def test_without_agreement_a_case_is_not_called_slower() -> None:
    ratios = [1.0, 1.2] * 7 + [1.2]
    assert decide.decide(ratios, 1.05) is Verdict.UNDECIDED
    assert decide.final(ratios, 1.05) is Verdict.UNDECIDED
    assert decide.final([1.0, 1.2] * 7 + [1.0], 1.05) is Verdict.PASSED


def judge(change: float, generator: random.Random, noise: float = 0.03) -> Verdict:
    """The rule of the comparison on rounds whose noise now and then is large."""
    ratios: list[float] = []
    while len(ratios) < rounds.MOST_ROUNDS:
        disturbed = generator.random() < 0.1
        scatter = generator.gauss(0, 4 * noise if disturbed else noise)
        ratios.append(change * math.exp(scatter))
        verdict = decide.decide(ratios, 1.05)
        if len(ratios) >= rounds.LEAST_ROUNDS and verdict is not Verdict.UNDECIDED:
            return verdict
    return decide.final(ratios, 1.05)


def test_fifteen_percent_is_found_and_nothing_is_not_on_noisy_rounds() -> None:
    generator = random.Random(0)
    found = [judge(1.15, generator) for _ in range(500)]
    assert found.count(Verdict.SLOWER) >= 495
    unchanged = [judge(1.0, generator) for _ in range(500)]
    assert unchanged.count(Verdict.SLOWER) == 0


def test_the_quartile_ignores_what_disturbs() -> None:
    assert decide.quartile([5.0, 1.0, 2.0, 99.0, 3.0]) == 2.0
    assert decide.quartile([4.0]) == 4.0
    with pytest.raises(ValueError, match="needs at least one"):
        decide.quartile([])


class FakeWorker:
    """Answers as a worker does, with times and counts that are set."""

    def __init__(self, tree: Path, core: int | None = None) -> None:
        self.answers: dict[str, Any] = ANSWERS[tree.name]

    def wait_ready(self) -> None:
        pass

    def ask(self, do: str, **_: Any) -> dict[str, Any]:
        answer = self.answers.get(do, {})
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)

    def __enter__(self) -> FakeWorker:
        return self

    def __exit__(self, *_: object) -> None:
        pass


ANSWERS: dict[str, dict[str, Any]] = {}


def outcome_of(
    monkeypatch: pytest.MonkeyPatch, base: dict[str, Any], head: dict[str, Any]
) -> rounds.Outcome:
    common = {"measure": {"seconds": 0.01}, "count": {"counts": {"calls": 3, "moved_bytes": 8}}}
    monkeypatch.setitem(ANSWERS, "base", common | base)
    monkeypatch.setitem(ANSWERS, "head", common | head)
    monkeypatch.setattr(rounds, "RunningWorker", FakeWorker)
    (outcome,) = rounds.compare(Path("base"), Path("head"), [CASE])
    return outcome


def test_an_unchanged_case_passes_after_few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = outcome_of(monkeypatch, {}, {})
    assert outcome.ratios == [1.0] * 3
    assert outcome.verdict is Verdict.PASSED
    assert not outcome.failed


def test_a_slower_case_fails_and_is_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = outcome_of(monkeypatch, {}, {"measure": {"seconds": 0.0115}})
    assert_close(outcome.ratios, [1.15] * 5)
    assert outcome.failed
    text = "\n".join(rounds.table([outcome]))
    assert CASE.name in text
    assert (
        "10 ms -> 11.5 ms, ratio 1.150 (1.150 to 1.150, 5 rounds), threshold 1.05: SLOWER" in text
    )


def test_a_grown_count_fails_though_the_time_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = outcome_of(monkeypatch, {}, {"count": {"counts": {"calls": 4, "moved_bytes": 7}}})
    assert outcome.verdict is Verdict.PASSED
    assert outcome.grown == ["calls"]
    assert outcome.failed
    assert "    calls 3 -> 4: GROWN" in rounds.table([outcome])


def test_a_failed_case_is_a_failure_and_a_missing_one_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = {"prepare": WorkerError("RuntimeError: no")}
    outcome = outcome_of(monkeypatch, {}, broken)
    assert outcome.failed
    assert "    FAILED: RuntimeError: no" in "\n".join(rounds.table([outcome]))
    assert outcome_of(monkeypatch, broken, {}).failed
    assert outcome_of(monkeypatch, {}, {"measure": WorkerError("gone")}).failed
    lacking = {"prepare": WorkerError("ImportError: no such op", lacking=True)}
    outcome = outcome_of(monkeypatch, lacking, {})
    assert not outcome.failed
    assert "the base lacks it: ImportError" in "\n".join(rounds.table([outcome]))
    outcome = outcome_of(monkeypatch, {}, {"prepare": {"skipped": "there is no CUDA device here"}})
    assert not outcome.failed
    assert "skipped: there is no CUDA device here" in "\n".join(rounds.table([outcome]))


@pytest.fixture
def no_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "tree_of", lambda revision: Path("base"))
    monkeypatch.setattr(script, "build", lambda tree: None)


@pytest.mark.usefixtures("no_build")
@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (rounds.Outcome(CASE, [1.0] * 3, (1.0, 1.0), verdict=Verdict.PASSED), 0),
        (rounds.Outcome(CASE, [1.2] * 5, (1.0, 1.2), verdict=Verdict.SLOWER), 1),
        (rounds.Outcome(CASE, [1.1] * 15, (1.0, 1.1), verdict=Verdict.UNDECIDED), 0),
        (rounds.Outcome(CASE, error="broken"), 1),
        (rounds.Outcome(CASE, counts=({"calls": 1}, {"calls": 2}), grown=["calls"]), 1),
        (rounds.Outcome(CASE, skipped="no GPU"), 2),
    ],
)
def test_the_exit_status(
    monkeypatch: pytest.MonkeyPatch,
    outcome: rounds.Outcome,
    status: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(script, "compare", lambda *_, **__: [outcome])
    assert script.main(["HEAD"]) == status
    assert (f"WRONG {CASE.name}" in capsys.readouterr().out) == (status == 1)


def test_a_revision_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    assert script.main(["no-such-revision"]) == 2
    assert "git knows no revision 'no-such-revision'" in capsys.readouterr().err


def test_the_build_is_found_again_until_a_source_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees, "CACHE", tmp_path / "cache")
    compiled: list[Path] = []

    def compile_(tree: Path) -> None:
        compiled.append(tree)
        name = f"_C{trees.importlib.machinery.EXTENSION_SUFFIXES[0]}"
        (tree / "ghn_fast" / name).write_bytes((tree / "csrc" / "op.cpp").read_bytes())

    monkeypatch.setattr(trees, "_compile", compile_)

    def tree_with(source: str, name: str) -> Path:
        tree = tmp_path / name
        for folder in ("csrc", "ghn_fast"):
            (tree / folder).mkdir(parents=True)
        (tree / "csrc" / "op.cpp").write_text(source)
        (tree / "setup.py").write_text("")
        return tree

    one, same, other = (tree_with(s, n) for s, n in (("a", "1"), ("a", "2"), ("b", "3")))
    for tree in (one, same, other, one):
        trees.build(tree)
    assert compiled == [one, other]
    (found,) = (same / "ghn_fast").glob("_C*")
    assert found.read_bytes() == b"a"
    (one / "csrc" / "op.cpp").write_text("b")
    trees.build(one)
    assert compiled == [one, other]
    (found,) = (one / "ghn_fast").glob("_C*")
    assert found.read_bytes() == b"b"
