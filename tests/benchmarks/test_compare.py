"""When two revisions differ: the decision on synthetic samples, the table, the exit status."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import bench
import numpy as np
import pytest
from suite import cases, clock, decide, gate, noise, outputs, rounds, trees
from suite.decide import Verdict
from suite.processes import WorkerError

from tolerances import assert_close

ROOT = Path(__file__).resolve().parent.parent.parent

CASE = next(case for case in cases.guarded_cases() if case.device == "cpu")


def test_the_interval_is_that_of_the_signed_rank_test() -> None:
    # Of the 2^n signs of n ranks, the sum of the positive ones is below k in so many: counted.
    for rounds_, chance, k in (
        (4, 0.05, 0),
        (5, 0.035, 1),
        (7, 0.01, 1),
        (8, 0.01, 2),
        (8, 0.05, 6),
    ):
        below = [
            sum(1 for signs in range(2**rounds_)
                if sum(i + 1 for i in range(rounds_) if signs >> i & 1) < least) / 2**rounds_
            for least in (k, k + 1)
        ]  # fmt: skip
        assert below[0] <= chance < below[1]
        assert decide.rank(rounds_, chance) == k
    assert decide.interval([1.0, 1.1, 1.2]).low == 0.0
    assert decide.interval([1.0, 1.1, 1.2]).high == math.inf
    found = decide.interval([1.1] * 6 + [1.3])
    assert_close((found.low, found.high), (1.1, 1.3))
    # The means of all pairs, with themselves: 1, sqrt(2), 2, 2, sqrt(8), 4.
    assert_close(
        sorted(np.exp(decide.walsh(np.log([1.0, 2.0, 4.0])))), [1, 2**0.5, 2, 2, 8**0.5, 4]
    )
    for wrong in ([], [1.0, math.nan], [0.0]):
        with pytest.raises(ValueError, match="needs positive numbers"):
            decide.interval(wrong)


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([1.0, 0.99, 1.01, 1.0], Verdict.UNDECIDED),
        ([1.0, 0.99, 1.01, 1.0, 1.02], Verdict.PASSED),
        ([0.9] * 5, Verdict.FASTER),
        ([1.15] * 6, Verdict.UNDECIDED),
        ([1.15] * 7, Verdict.SLOWER),
        ([1.15] * 6 + [1.04], Verdict.UNDECIDED),
        ([1.15] * 14 + [0.7], Verdict.SLOWER),
        ([1.0, 1.0, 9.0, 1.0, 1.0], Verdict.UNDECIDED),
    ],
)
def test_a_case_is_judged_when_the_rounds_agree(ratios: list[float], verdict: Verdict) -> None:
    assert decide.decide(ratios, 1.05) is verdict


def test_without_agreement_a_case_is_not_called_slower() -> None:
    ratios = [1.0, 1.2] * 7 + [1.2]
    assert decide.decide(ratios, 1.05) is Verdict.UNDECIDED
    assert decide.final(ratios, 1.05) is Verdict.UNDECIDED
    assert decide.final([1.0, 1.08] * 7 + [1.0], 1.05) is Verdict.PASSED


def rounds_with_noise(change: float, generator: random.Random, scatter: float) -> list[float]:
    """Rounds whose noise now and then is large."""
    return [
        change * math.exp(generator.gauss(0, (4 if generator.random() < 0.1 else 1) * scatter))
        for _ in range(rounds.MOST_ROUNDS)
    ]


def judge(ratios: list[float], threshold: float) -> Verdict:
    """The rule of the comparison."""
    for count in range(rounds.LEAST_ROUNDS, len(ratios) + 1):
        verdict = decide.decide(ratios[:count], threshold)
        if verdict is not Verdict.UNDECIDED:
            return verdict
    return decide.final(ratios, threshold)


RUNS = 200


def called_slower(change: float, generator: random.Random, scatter: float, tier: noise.Tier) -> int:
    """In how many of the runs the comparison calls a case slower that takes so much longer."""
    verdicts = [
        judge(rounds_with_noise(change, generator, scatter), tier.threshold) for _ in range(RUNS)
    ]
    return verdicts.count(Verdict.SLOWER)


def test_thresholds_follow_the_noise_and_keep_what_they_promise() -> None:
    generator = random.Random(0)
    tiers = {
        s: noise.tier_of(rounds_with_noise(1, generator, s), 18, rounds.MOST_ROUNDS)
        for s in (0.01, 0.04, 0.1)
    }
    thresholds = [tier.threshold for tier in tiers.values()]
    assert thresholds == sorted(thresholds) and thresholds[0] == noise.TIERS[0]
    assert thresholds[-1] > thresholds[0]
    # What the draws say is what a simulation of the very rule gives.
    for scatter, tier in tiers.items():
        part = called_slower(1.0, generator, scatter, tier) / RUNS
        assert part <= tier.false_alarm + 0.05  # compared by hand: a rate of 200 runs
        part = called_slower(1.08, generator, scatter, tier) / RUNS
        said = tier.found["1.08"]
        assert math.fabs(part - said) < 0.2  # compared by hand: rates of 200 runs
    assert noise.false_alarms(tiers) <= noise.SUITE  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 3, needs at least 10"):
        noise.tier_of([1.0, 1.1, 0.9], 1, 25)


def test_a_slow_down_of_15_percent_is_found_in_noise_of_3_percent() -> None:
    generator, scatter = random.Random(0), 0.03
    tier = noise.tier_of(rounds_with_noise(1, generator, scatter), 18, rounds.MOST_ROUNDS)
    assert called_slower(1.15, generator, scatter, tier) >= 190
    assert called_slower(1.0, generator, scatter, tier) <= 10


def test_noise_is_kept_and_added_to(tmp_path: Path) -> None:
    generator = random.Random(1)
    first = {CASE.name: rounds_with_noise(1, generator, 0.02)[:8], "few": [1.0]}
    assert noise.write_noise(first, rounds.MOST_ROUNDS, tmp_path) == {}
    assert noise.read_tiers(tmp_path) == {}
    more = {CASE.name: rounds_with_noise(1, generator, 0.02)}
    written = noise.write_noise(more, rounds.MOST_ROUNDS, tmp_path)
    assert written[CASE.name].rounds == 8 + rounds.MOST_ROUNDS
    assert noise.read_tiers(tmp_path) == written
    assert noise.read_tiers(tmp_path / "none") == {}


def test_quartiles_and_percentiles() -> None:
    assert clock.quartile([5.0, 1.0, 2.0, 99.0, 3.0]) == 2.0
    assert clock.quartile([4.0]) == 4.0
    with pytest.raises(ValueError, match="needs at least one"):
        clock.quartile([])
    times = [float(i) for i in range(1, 101)]
    assert [clock.percentile(times, p) for p in (0, 50, 95, 99, 100)] == [1, 50, 95, 99, 100]
    with pytest.raises(ValueError, match="got 0 times"):
        clock.percentile([], 50)


def test_turns_alternate_and_cold_calls_are_flushed() -> None:
    seen: list[str] = []
    found = clock.in_turn({n: (lambda n=n: seen.append(n)) for n in "ab"}, 3, 0.0)  # type: ignore[misc]
    assert seen[-6:] == ["a", "b"] * 3
    assert [len(times) for times in found.values()] == [3, 3]
    seen.clear()
    assert clock.cold_seconds(lambda: seen.append("run"), lambda: seen.append("flush"), 2) > 0
    assert seen == ["flush", "run"] * 2


class FakeWorker:
    """Answers as a worker does, with times and counts that are set."""

    def __init__(self, tree: Path, core: int | None = None) -> None:
        self.answers: dict[str, Any] = ANSWERS[tree.name]

    def wait_ready(self) -> None:
        pass

    def bind(self, core: int | None) -> None:
        pass

    def send(self, request: dict[str, Any]) -> None:
        pass

    def receive(self) -> dict[str, Any]:
        return {}

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
    monkeypatch: pytest.MonkeyPatch, base: dict[str, Any], head: dict[str, Any], **options: Any
) -> rounds.Outcome:
    common = {"measure": {"seconds": 0.01}, "count": {"counts": {"calls": 3, "moved_bytes": 8}}}
    monkeypatch.setitem(ANSWERS, "base", common | base)
    monkeypatch.setitem(ANSWERS, "head", common | head)
    monkeypatch.setattr(rounds, "RunningWorker", FakeWorker)
    (outcome,) = rounds.compare(Path("base"), Path("head"), [CASE], **options)
    return outcome


def text_of(outcome: rounds.Outcome) -> str:
    return "\n".join(outputs.table([outcome]))


def test_an_unchanged_case_passes_after_few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = outcome_of(monkeypatch, {}, {})
    assert outcome.ratios == [1.0] * 5
    assert outcome.verdict is Verdict.PASSED
    assert not outcome.failed


def test_a_slower_case_fails_and_is_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = {"measure": {"seconds": 0.0115}}
    outcome = outcome_of(monkeypatch, {}, slow)
    assert_close(outcome.ratios, [1.15] * 7)
    assert outcome.failed
    text = text_of(outcome)
    assert text.startswith("SLOWER       +15.0 % (1.150 to 1.150, 7 rounds, threshold 1.05)")
    assert f"10 ms -> 11.5 ms  {CASE.name}" in text
    # Its own noise gives it another threshold.
    outcome = outcome_of(monkeypatch, {}, slow, thresholds={CASE.name: 1.2})
    assert outcome.verdict is Verdict.PASSED


def test_a_faster_case_is_named_and_does_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = outcome_of(monkeypatch, {}, {"measure": {"seconds": 0.008}})
    assert outcome.verdict is Verdict.FASTER
    assert not outcome.failed
    assert text_of(outcome).startswith("faster       -20.0 %")


def test_only_a_count_that_has_grown_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = outcome_of(monkeypatch, {}, {"count": {"counts": {"calls": 4, "moved_bytes": 7}}})
    assert outcome.verdict is Verdict.PASSED
    assert outcome.grown == ["calls"]
    assert outcome.failed
    assert "calls 3 -> 4: GROWN" in text_of(outcome)
    assert "moved_bytes 8 -> 7: fewer" in text_of(outcome)
    assert not outcome_of(
        monkeypatch, {}, {"count": {"counts": {"calls": 2, "moved_bytes": 8}}}
    ).failed


def test_on_a_red_gate_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = {"measure": {"seconds": 0.001}}
    outcome = outcome_of(monkeypatch, {}, fast, red={CASE.name: "FAILED test_x"})
    assert outcome.ratios == [] and outcome.counts is None
    assert outcome.failed
    assert "faster" not in text_of(outcome) and "ms" not in text_of(outcome)
    assert text_of(outcome).startswith("RED")
    assert "FAILED test_x" in text_of(outcome)
    assert outputs.action_json([outcome]) == [] and outputs.bencher_json([outcome]) == {}


def test_throttled_slices_are_dropped_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    hot = {"measure": {"seconds": 9.0, "throttled": ["power cap"]}}
    outcome = outcome_of(monkeypatch, {}, hot, most_rounds=1)
    assert outcome.ratios == []
    assert outcome.throttled["power cap"] >= rounds.LEAST_PAIRS
    assert "dropped: power cap" in text_of(outcome)


def test_a_failed_case_is_a_failure_and_a_missing_one_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = {"prepare": WorkerError("RuntimeError: no")}
    outcome = outcome_of(monkeypatch, {}, broken)
    assert outcome.failed
    assert "FAILED" in text_of(outcome) and "RuntimeError: no" in text_of(outcome)
    assert outcome_of(monkeypatch, broken, {}).failed
    assert outcome_of(monkeypatch, {}, {"measure": WorkerError("gone")}).failed
    lacking = {"prepare": WorkerError("ImportError: no such op", lacking=True)}
    outcome = outcome_of(monkeypatch, lacking, {})
    assert not outcome.failed
    assert "not in base" in text_of(outcome) and "ImportError" in text_of(outcome)
    outcome = outcome_of(monkeypatch, {}, {"prepare": {"skipped": "there is no CUDA device here"}})
    assert not outcome.failed
    assert "there is no CUDA device here" in text_of(outcome)


def outcomes() -> list[rounds.Outcome]:
    known = [case for case in cases.guarded_cases() if case.device == "cpu"]
    return [
        rounds.Outcome(known[0], ratios=[1.01] * 7, seconds=(1e-3, 1.01e-3),
                       verdict=Verdict.PASSED, counts=({"calls": 2}, {"calls": 2})),
        rounds.Outcome(known[1], ratios=[1.2] * 7, seconds=(1e-3, 1.2e-3), verdict=Verdict.SLOWER),
        rounds.Outcome(known[2], ratios=[0.5] * 7, seconds=(1e-3, 5e-4), verdict=Verdict.FASTER),
        rounds.Outcome(known[3], ratios=[1.1, 0.9] * 4, seconds=(1e-3, 1e-3)),
    ]  # fmt: skip


def test_the_table_begins_with_what_is_wrong_and_the_largest_effect() -> None:
    found = outcomes()
    named = [line.split()[0] for line in outputs.table(found)]
    assert named == ["SLOWER", "faster", "ok", "undecided"]
    tiers = {found[0].case.name: noise.Tier(1.05, 0.01, 30, 0.01)}
    close = outputs.closing(found, tiers, 3.0)
    assert f"WRONG {found[1].case.name}" in close
    assert f"UNDECIDED {found[3].case.name}" in close
    assert any(line.startswith("False alarms to expect: 1.0 %") for line in close)
    assert any(line.startswith("Thresholds of 3 cases are guesses") for line in close)
    text = outputs.markdown(found, "main", close)
    assert text.splitlines()[4].startswith("| **SLOWER** | +20.0 % | 1.200 to 1.200 | 1.05 |")
    assert all(line.count("|") == 8 for line in text.splitlines() if line.startswith("|"))


def test_the_formats_of_services() -> None:
    first, *_ = outputs.action_json(outcomes())
    assert set(first) == {"name", "unit", "value", "range", "extra"}
    assert (first["name"], first["unit"]) == (CASE.name, "ns/call")
    assert_close(first["value"], 1.01e6)
    measures = outputs.bencher_json(outcomes())[CASE.name]
    assert measures["calls"] == {"value": 2.0}
    latency = measures["latency"]
    assert_close(latency["value"], 1.01e6)
    assert latency["lower_value"] <= latency["value"] <= latency["upper_value"]
    whole = outputs.report(outcomes(), "main", {})
    json.dumps(whole, allow_nan=False)
    assert whole["false_alarms"] is None


@pytest.fixture
def no_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "tree_of", lambda revision: Path("base"))
    monkeypatch.setattr(bench, "build", lambda tree: None)
    monkeypatch.setattr(gate, "red_cases", lambda tree, cases: {})


@pytest.mark.usefixtures("no_build")
@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (rounds.Outcome(CASE, 0, [1.0] * 5, (1.0, 1.0), verdict=Verdict.PASSED), 0),
        (rounds.Outcome(CASE, 0, [0.5] * 5, (1.0, 0.5), verdict=Verdict.FASTER), 0),
        (rounds.Outcome(CASE, 0, [1.2] * 7, (1.0, 1.2), verdict=Verdict.SLOWER), 1),
        (rounds.Outcome(CASE, 0, [1.1] * 15, (1.0, 1.1), verdict=Verdict.UNDECIDED), 0),
        (rounds.Outcome(CASE, error="broken"), 1),
        (rounds.Outcome(CASE, red="a test fails"), 1),
        (rounds.Outcome(CASE, counts=({"calls": 1}, {"calls": 2}), grown=["calls"]), 1),
        (rounds.Outcome(CASE, skipped="no GPU"), 2),
    ],
)
def test_the_exit_status(
    monkeypatch: pytest.MonkeyPatch,
    outcome: rounds.Outcome,
    status: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bench, "compare", lambda *_, **__: [outcome])
    files = [tmp_path / name for name in ("a.json", "b.json", "c.json", "d.md")]
    options = ("--json", "--action-json", "--bencher-json", "--markdown")
    named = [str(x) for pair in zip(options, files, strict=True) for x in pair]
    assert bench.main(["compare", "HEAD", "--results", str(tmp_path), *named]) == status
    assert (f"WRONG {CASE.name}" in capsys.readouterr().out) == (status == 1)
    assert all(path.is_file() for path in files)


def test_the_gate_runs_the_tests_of_a_tree_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "CACHE", tmp_path / "cache")
    folder = tmp_path / "tree" / "tests" / "ops"
    folder.mkdir(parents=True)
    file = folder / f"test_{CASE.path}.py"
    file.write_text("def test_x():\n    assert 1 == 2\n")
    (reason,) = gate.red_cases(tmp_path / "tree", [CASE]).values()
    assert reason.startswith(f"FAILED tests/ops/test_{CASE.path}.py::test_x")
    ran: list[Any] = []
    monkeypatch.setattr(gate, "run_tests", lambda tree, files: ran.append(files))
    assert list(gate.red_cases(tmp_path / "tree", [CASE]).values()) == [reason]
    assert ran == []
    file.write_text("def test_x():\n    pass\n")
    assert gate.red_cases(tmp_path / "tree", [CASE]) == {}
    assert len(ran) == 1
    file.unlink()
    (reason,) = gate.red_cases(tmp_path / "tree", [CASE]).values()
    assert "has no tests of" in reason


def test_every_guarded_path_has_tests() -> None:
    for case in cases.guarded_cases():
        assert gate.tests_of(case, ROOT), case.path


def test_an_option_that_is_given_twice_adds_up() -> None:
    given = ["--only", "gated_gnn", "expand_params", "--only", "predict_warm"]
    for command in (["compare", "HEAD"], ["noise"], ["measure"]):
        only = bench.parser().parse_args([*command, *given]).only
        assert only == ["gated_gnn", "expand_params", "predict_warm"]


def test_a_revision_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    assert bench.main(["compare", "no-such-revision"]) == 2
    assert "git knows no revision 'no-such-revision'" in capsys.readouterr().err


def test_the_build_is_found_again_until_a_source_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees, "CACHE", tmp_path / "cache")
    compiled: list[Path] = []

    def compile_(tree: Path) -> None:
        compiled.append(tree)
        for name in ("_ops.abi3.so", "_aten.so"):
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
    assert [file.read_bytes() for file in trees.compiled(same / "ghn_fast")] == [b"a", b"a"]
    (one / "csrc" / "op.cpp").write_text("b")
    trees.build(one)
    assert compiled == [one, other]
    assert [file.read_bytes() for file in trees.compiled(one / "ghn_fast")] == [b"b", b"b"]
