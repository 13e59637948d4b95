"""The GPU check, as far as it goes without a GPU: its report, its counts, its cases on CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu_check as check
import pytest
import torch
from suite import machine, measuring, roofline

from ghn_fast.ops import backend

ROOT = Path(__file__).resolve().parent.parent.parent
JUNIT = """<?xml version="1.0"?><testsuites><testsuite name="pytest" tests="5">
<testcase classname="tests.a" name="fine" time="1"/>
<testcase classname="tests.a" name="fine too" time="1"/>
<testcase classname="tests.a" name="wrong[cuda]"><failure message="no">...</failure></testcase>
<testcase classname="tests.b" name="broken"><error message="no">...</error></testcase>
<testcase classname="tests.b" name="left out"><skipped message="why">...</skipped></testcase>
</testsuite></testsuites>"""


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Everything that needs a GPU, replaced; what the replacements give can be changed."""
    monkeypatch.delenv("GHN_FAST_COMMIT", raising=False)
    fake: dict[str, Any] = {
        "tests": check.count_tests(None) | {"passed": 7},
        "sanitizer": None,
        "cases": [check.Measurement("op", 2.0, "ms", at_most=3.0)],
        "about": {"gpu": "NVIDIA Test 1", "commit": "", "driver": "1.2", "torch": "2"},
    }
    for name in ("need_gpu", "need_packages", "build", "need_cuda_ops"):
        monkeypatch.setattr(check, name, lambda: None)
    monkeypatch.setattr(check, "run_tests", lambda: fake["tests"])
    monkeypatch.setattr(check, "run_sanitizer", lambda: fake["sanitizer"])
    monkeypatch.setattr(check, "about_gpu", lambda commit: fake["about"] | {"commit": commit})
    monkeypatch.setattr(check, "measurements", lambda: fake["cases"])
    return fake


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    command = [sys.executable, ".ci/gpu_check.py", "--commit", "x", "--out", str(out)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert "no GPU" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_good_run_writes_one_report(with_gpu: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "new" / "report.json"
    assert check.main(["--out", str(out), "--commit", "abc123"]) == 0
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
    with_gpu: dict[str, Any],
    tmp_path: Path,
    change: dict[str, Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in change.items():
        if name == "cases":
            with_gpu[name] = [check.Measurement(*case) for case in value]
        else:
            with_gpu[name] = (with_gpu[name] or {}) | value
    out = tmp_path / "report.json"
    arguments = ["--out", str(out), "--commit", "abc", "--sanitize"]
    assert check.main(arguments) == 1
    (failure,) = json.loads(out.read_text())["failures"]
    assert message in failure
    assert failure in capsys.readouterr().out


def test_a_build_that_fails_writes_nothing(
    with_gpu: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise check.CannotCheckError("setup.py failed")

    monkeypatch.setattr(check, "build", fail)
    assert check.main(["--out", str(tmp_path / "r.json"), "--commit", "abc"]) == 2
    assert check.main(["--out", str(tmp_path / "r.json"), "--commit", "a", "--no-build"]) == 0


def test_a_build_without_cuda_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        warning = "warning: ghn_fast is compiled without CUDA: nvcc is CUDA 12"
        return subprocess.CompletedProcess([], 0, "", f"running build_ext\n{warning}\n")

    monkeypatch.setattr(check.subprocess, "run", run)
    with pytest.raises(check.CannotCheckError, match="nvcc is CUDA 12"):
        check.build()
    monkeypatch.setattr(backend, "cuda_problem", lambda: "no device")
    with pytest.raises(check.CannotCheckError, match="no device"):
        check.need_cuda_ops()


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check.need_packages()
    monkeypatch.setattr(check, "PACKAGES", ("pytest", "no_such_package"))
    with pytest.raises(check.CannotCheckError, match="has no no_such_package, which the"):
        check.need_packages()


def test_tests_are_counted() -> None:
    counts = check.count_tests(JUNIT)
    assert (counts["passed"], counts["failed"], counts["skipped"]) == (2, 2, 1)
    assert counts["failed_names"] == ["tests.a::wrong[cuda]", "tests.b::broken"]
    assert counts["skip_reasons"] == {"tests.b::left out": "why"}
    assert check.count_tests(None)["passed"] == 0


def test_the_gpu_tests_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    only = [*check.PYTEST, "tests/ops/test_shortest_distances.py"]
    monkeypatch.setattr(check, "PYTEST", only)
    counts = check.run_tests()
    assert counts["error"] is None
    assert counts["passed" if torch.cuda.is_available() else "skipped"] == 1
    monkeypatch.setattr(check, "PYTEST", [sys.executable, "-c", "raise SystemExit(4)"])
    assert "status 4" in check.run_tests()["error"]


def test_the_commit_comes_from_the_argument_the_environment_or_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_of = machine.commit_of
    with pytest.raises(ValueError, match="name the commit with --commit or GHN_FAST_COMMIT"):
        commit_of(tmp_path)
    monkeypatch.setenv("GHN_FAST_COMMIT", "from-env")
    assert commit_of(tmp_path) == "from-env"
    assert commit_of(tmp_path, "named") == "named"


def test_a_report_is_not_written_over_another(tmp_path: Path) -> None:
    def path() -> Path:
        return check.default_path("NVIDIA H100 80GB HBM3", "2026-01-02", tmp_path)

    assert path().name == "gpu-nvidia-h100-80gb-hbm3-2026-01-02.json"
    machine.write_whole(path(), "{}")
    assert path().name == "gpu-nvidia-h100-80gb-hbm3-2026-01-02-2.json"


def test_a_report_is_whole_or_not_there(
    with_gpu: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpu["about"] = {"gpu": "x", "value": float("nan")}
    with pytest.raises(ValueError):
        check.main(["--out", str(tmp_path / "r.json"), "--commit", "abc"])
    assert list(tmp_path.iterdir()) == []


def test_a_case_that_fails_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> dict[str, Any]:
        raise RuntimeError("results differ")

    monkeypatch.setattr(measuring, "measure_case", broken)
    found = check.measurements()
    assert found and all(case.value is None and case.met is False for case in found)
    assert "results differ" in (found[0].error or "")

    times = {"seconds": {"median": 0.001}, "peer": {"ratio": {"median": 120.0}}}
    monkeypatch.setattr(measuring, "measure_case", lambda *_: times)
    monkeypatch.setattr(roofline, "measure_ceilings", lambda device: None)
    monkeypatch.setattr(roofline, "roofline_of", lambda *_: {"achieved": 0.5})
    by_name = {case.name: case for case in check.measurements()}
    ratios = [case for name, case in by_name.items() if name.endswith("against the loop")]
    assert [case.met for case in ratios] == [True, True]
    bandwidths = [case for name, case in by_name.items() if name.endswith("bandwidth")]
    assert sorted(str(case.met) for case in bandwidths) == ["False", "None"]


def test_a_measurement_without_a_target_meets_none() -> None:
    assert check.Measurement("op", 1.0, "ms").met is None
