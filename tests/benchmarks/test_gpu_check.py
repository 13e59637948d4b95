"""The GPU check, as far as it goes without a GPU: its report, its counts, its cases on CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import ghn_fast
from ghn_fast.hypernet.decode_plan import plan_decoding
from ghn_fast.ops import backend

ROOT = Path(__file__).resolve().parent.parent.parent
JUNIT = """<?xml version="1.0"?><testsuites><testsuite name="pytest" tests="5">
<testcase classname="tests.a" name="fine" time="1"/>
<testcase classname="tests.a" name="fine too" time="1"/>
<testcase classname="tests.a" name="wrong[cuda]"><failure message="no">...</failure></testcase>
<testcase classname="tests.b" name="broken"><error message="no">...</error></testcase>
<testcase classname="tests.b" name="left out"><skipped message="why">...</skipped></testcase>
</testsuite></testsuites>"""


class Parts:
    """The modules of benchmarks/, which is no package."""

    def __init__(self, load: Callable[[str], ModuleType]) -> None:
        self.measure: Any = load("measure")
        self.parts: Any = load("gpu_parts")
        self.check: Any = load("gpu_check")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Parts]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delenv("GHN_FAST_COMMIT", raising=False)
    before = set(sys.modules)
    parts = Parts(__import__)
    yield parts
    for name in set(sys.modules) - before:
        if name in ("measure", "baseline") or name.startswith(("bench_", "gpu_")):
            del sys.modules[name]


@pytest.fixture
def with_gpu(bench: Parts, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Everything that needs a GPU, replaced; what the replacements give can be changed."""
    tests = bench.parts.count_tests(None) | {"passed": 7}
    fake: dict[str, Any] = {
        "tests": tests,
        "sanitizer": None,
        "cases": [bench.measure.Measurement("op", 2.0, "ms", at_most=3.0)],
        "about": {"gpu": "NVIDIA Test 1", "commit": "", "driver": "1.2", "torch": "2"},
    }
    for name in ("need_gpu", "need_packages", "build", "need_cuda_ops"):
        monkeypatch.setattr(bench.parts, name, lambda: None)
    monkeypatch.setattr(bench.parts, "run_tests", lambda: fake["tests"])
    monkeypatch.setattr(bench.parts, "run_sanitizer", lambda: fake["sanitizer"])
    about = lambda commit: fake["about"] | {"commit": commit}  # noqa: E731
    monkeypatch.setattr(bench.parts, "about_gpu", about)
    monkeypatch.setattr(bench.check, "measurements", lambda repeats: fake["cases"])
    return fake


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    command = [sys.executable, "benchmarks/gpu_check.py", "--commit", "x", "--out", str(out)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert "no GPU" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_good_run_writes_one_report(
    bench: Parts, with_gpu: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "new" / "report.json"
    assert bench.check.main(["--out", str(out), "--commit", "abc123"]) == 0
    assert list(out.parent.iterdir()) == [out]
    report = json.loads(out.read_text())
    assert set(report) == {"date", "about", "tests", "sanitizer", "measurements", "failures"}
    assert report["about"]["commit"] == "abc123"
    assert report["tests"]["passed"] == 7
    assert report["failures"] == []
    (case,) = report["measurements"]
    assert (case["name"], case["value"], case["at_most"], case["met"]) == ("op", 2.0, 3.0, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cases": [("slow", 4.0, "ms", None, 3.0)]}, "slow: 4.0 ms misses its target"),
        ({"cases": [("slow", 4.0, "times", 9.0, None)]}, "slow: 4.0 times misses its target"),
        ({"cases": [("op", None, "", None, None, {}, "Error: no")]}, "op: Error: no"),
        ({"tests": {"failed": 1, "failed_names": ["a::b"]}}, "test failed: a::b"),
        ({"tests": {"passed": 0}}, "tests: none passed"),
        ({"tests": {"error": "pytest ended with status 4"}}, "pytest ended with status 4"),
        ({"sanitizer": {"memcheck": {"exit_status": 99, "summary": "1 error"}}}, "memcheck: 1"),
    ],
)
def test_what_is_wrong_is_reported_and_is_the_exit_status(
    bench: Parts,
    with_gpu: dict[str, Any],
    tmp_path: Path,
    change: dict[str, Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in change.items():
        if name == "cases":
            with_gpu[name] = [bench.measure.Measurement(*case) for case in value]
        else:
            with_gpu[name] = (with_gpu[name] or {}) | value
    out = tmp_path / "report.json"
    arguments = ["--out", str(out), "--commit", "abc", "--sanitize"]
    assert bench.check.main(arguments) == 1
    (failure,) = json.loads(out.read_text())["failures"]
    assert message in failure
    assert failure in capsys.readouterr().out


def test_a_build_that_fails_writes_nothing(
    bench: Parts, with_gpu: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise bench.parts.CannotCheckError("setup.py failed")

    monkeypatch.setattr(bench.parts, "build", fail)
    assert bench.check.main(["--out", str(tmp_path / "r.json"), "--commit", "abc"]) == 2
    assert bench.check.main(["--out", str(tmp_path / "r.json"), "--commit", "a", "--no-build"]) == 0


def test_a_build_without_cuda_is_an_error(bench: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        warning = "warning: ghn_fast is compiled without CUDA: nvcc is CUDA 12"
        return subprocess.CompletedProcess([], 0, "", f"running build_ext\n{warning}\n")

    monkeypatch.setattr(bench.parts.subprocess, "run", run)
    with pytest.raises(bench.parts.CannotCheckError, match="nvcc is CUDA 12"):
        bench.parts.build()
    monkeypatch.setattr(backend, "cuda_problem", lambda: "no device")
    with pytest.raises(bench.parts.CannotCheckError, match="no device"):
        bench.parts.need_cuda_ops()


def test_missing_packages_are_named(bench: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.parts.need_packages()
    monkeypatch.setattr(bench.parts, "PACKAGES", ("pytest", "no_such_package"))
    with pytest.raises(bench.parts.CannotCheckError, match="has no no_such_package, which the"):
        bench.parts.need_packages()


def test_tests_are_counted(bench: Parts) -> None:
    counts = bench.parts.count_tests(JUNIT)
    assert (counts["passed"], counts["failed"], counts["skipped"]) == (2, 2, 1)
    assert counts["failed_names"] == ["tests.a::wrong[cuda]", "tests.b::broken"]
    assert counts["skip_reasons"] == {"tests.b::left out": "why"}
    assert bench.parts.count_tests(None)["passed"] == 0


def test_the_gpu_tests_are_found(bench: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    only = [*bench.parts.PYTEST, "tests/ops/test_shortest_distances.py"]
    monkeypatch.setattr(bench.parts, "PYTEST", only)
    counts = bench.parts.run_tests()
    assert counts["error"] is None
    assert counts["passed" if torch.cuda.is_available() else "skipped"] == 1
    monkeypatch.setattr(bench.parts, "PYTEST", [sys.executable, "-c", "raise SystemExit(4)"])
    assert "status 4" in bench.parts.run_tests()["error"]


def test_the_commit_comes_from_the_argument_the_environment_or_git(
    bench: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_of = bench.measure.commit_of
    with pytest.raises(ValueError, match="name the commit with --commit or GHN_FAST_COMMIT"):
        commit_of(tmp_path)
    monkeypatch.setenv("GHN_FAST_COMMIT", "from-env")
    assert commit_of(tmp_path) == "from-env"
    assert commit_of(tmp_path, "named") == "named"


def test_a_report_is_not_written_over_another(bench: Parts, tmp_path: Path) -> None:
    def path() -> Path:
        return bench.parts.default_path("NVIDIA H100 80GB HBM3", "2026-01-02", tmp_path)

    assert path().name == "gpu-nvidia-h100-80gb-hbm3-2026-01-02.json"
    bench.parts.write_report({}, path())
    assert path().name == "gpu-nvidia-h100-80gb-hbm3-2026-01-02-2.json"


def test_a_report_is_whole_or_not_there(bench: Parts, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        bench.parts.write_report({"value": float("nan")}, tmp_path / "r.json")
    with pytest.raises(TypeError):
        bench.parts.write_report({"value": object()}, tmp_path / "r.json")
    assert list(tmp_path.iterdir()) == []


def test_a_case_that_fails_is_recorded(bench: Parts) -> None:
    def broken() -> list[Any]:
        raise RuntimeError("results differ")

    def endless() -> list[Any]:
        return [bench.measure.Measurement("ratio", float("nan"), "times", at_least=1.0)]

    for run, reason in ((broken, "results differ"), (endless, "ratio gave nan")):
        (case,) = bench.measure.attempt("op", run)
        assert case.value is None
        assert case.met is False
        assert reason in case.error
        json.dumps(case.to_dict(), allow_nan=False)


def test_a_measurement_without_a_target_meets_none(bench: Parts) -> None:
    assert bench.measure.Measurement("op", 1.0, "ms").met is None


@pytest.mark.extension
def test_the_gated_gnn_is_compared_before_it_is_timed(
    bench: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    case_module: Any = __import__("bench_gated_gnn")
    monkeypatch.setattr(case_module, "train_graphs", lambda count: two_networks())
    found = case_module.measure_gpu(1, "cpu")
    assert [case.unit for case in found] == ["times", "ms", "ms"]
    assert all(case.value > 0 for case in found)
    monkeypatch.setattr(
        case_module.Setup, "native", lambda self: 1.001 * self.gnn(self.x, self.batch)
    )
    with pytest.raises(RuntimeError, match="results differ"):
        case_module.measure_gpu(1, "cpu")


def test_expansion_is_compared_and_counted(bench: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    case_module: Any = __import__("bench_expand_params")
    config = ghn_fast.GHNConfig(max_shape=(16, 16, 5, 5), hid=8)
    plan = plan_decoding(two_networks(), config).params
    # The hypernetwork's own blocks are as large as those that the plan is measured with.
    ends = {r.block: 0 for r in plan.rows}
    for row in plan.rows:
        size = torch.Size(row.block_shape).numel()
        ends[row.block] = max(ends[row.block], row.source + size)
    blocks = case_module.blocks_for(plan, "cpu")
    assert {i: len(block) for i, block in enumerate(blocks)} == ends
    forward, backward = case_module.measure_plan("two networks", plan, 1, "cpu")
    assert (forward.at_least, backward.at_least) == (0.6, None)
    assert forward.details["bytes_written"] == 4 * plan.numel
    assert 4 * plan.numel < forward.details["bytes_moved"] <= 4 * (plan.numel + sum(ends.values()))
    assert case_module.same(blocks[0], blocks[0])
    assert not case_module.same(blocks[0], blocks[0] * (1 + 3e-5))
    assert not case_module.same(blocks[0], blocks[0][1:])


def test_a_batch_has_the_size_that_is_asked_for(bench: Parts) -> None:
    case_module: Any = __import__("bench_expand_params")
    plan = case_module.batch_of(10**7)
    assert 10**7 <= 4 * plan.numel < 10**8


@pytest.mark.extension
def test_distances_are_compared_and_measured(bench: Parts) -> None:
    case_module: Any = __import__("bench_shortest_distances")
    graph = two_networks()[0]
    (found,) = case_module.measure_cpu(1, graph)
    assert found.details["pairs"] == graph.num_edges
    assert found.details["bytes"] == 24 * graph.num_edges
    assert found.at_most == 3.0
    assert found.value > 0


def two_networks() -> list[ghn_fast.ArchGraph]:
    layers = [
        torch.nn.Conv2d(3, 24, 3),
        torch.nn.BatchNorm2d(24),
        torch.nn.Conv2d(24, 20, 3),
        torch.nn.Flatten(),
        torch.nn.LazyLinear(10),
    ]
    network = torch.nn.Sequential(*layers)
    network(torch.zeros(2, 3, 8, 8))
    return [ghn_fast.capture(network, input_shape=(3, 8, 8))] * 2
