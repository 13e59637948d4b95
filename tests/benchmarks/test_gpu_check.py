"""The GPU check, as far as it goes without a GPU: its report, its counts, its cases on CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu_check
import gpu_parts
import gpu_stages
import pytest
import torch
from suite import machine

ROOT = Path(__file__).resolve().parent.parent.parent
JUNIT = """<?xml version="1.0"?><testsuites><testsuite name="pytest" tests="5">
<testcase classname="tests.a" name="fine" time="1"/>
<testcase classname="tests.a" name="fine too" time="1"/>
<testcase classname="tests.a" name="wrong[cuda]"><failure message="no">...</failure></testcase>
<testcase classname="tests.b" name="broken"><error message="no">...</error></testcase>
<testcase classname="tests.b" name="left out"><skipped message="why">...</skipped></testcase>
</testsuite></testsuites>"""


class Parts:
    """The modules of .ci/."""

    check: Any = gpu_check
    parts: Any = gpu_parts
    stages: Any = gpu_stages
    machine: Any = machine


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Parts:
    monkeypatch.delenv("GHN_FAST_COMMIT", raising=False)
    return Parts()


def stage(label: str, code: str, **found: Any) -> Any:
    """A stage of one Python command, and what it is said to find."""

    def steps(check: Any) -> list[Any]:
        return [(label, [sys.executable, "-c", code], lambda ended: found)]

    return steps


@pytest.fixture
def stages(bench: Parts, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stages of a check that needs no GPU; they can be changed."""
    fake = {
        "build": stage("build", "print('built')"),
        "tests": stage("tests", "", passed=7, failed=0, skipped=1, failed_names=[]),
    }
    monkeypatch.setattr(bench.check, "_STAGES", fake)
    monkeypatch.setattr(bench.check, "SECONDS", dict.fromkeys(("build", "tests", "more"), 20))
    monkeypatch.setattr(bench.parts, "need_gpu", lambda: None)
    monkeypatch.setattr(bench.parts, "about", lambda commit, device: {"commit": commit})
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


def run_check(bench: Parts, out: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """The exit status and the report."""
    status = bench.check.main(["--out", str(out), "--commit", "abc123", *options])
    return status, json.loads(out.read_text())


def test_a_good_run_writes_one_report_and_its_logs(
    bench: Parts, stages: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "new" / "report.json"
    status, report = run_check(bench, out)
    assert (status, report["failures"]) == (0, [])
    names = {path.name for path in out.parent.iterdir()}
    assert names == {"report.json", "report-build.log", "report-tests.log"}
    assert report["about"]["commit"] == "abc123"
    assert report["stages"]["tests"]["tests"]["passed"] == 7
    assert "built" in (out.parent / report["stages"]["build"]["build"]["log"]).read_text()


MISSED = {"name": "op", "value": 4.0, "unit": "ms", "met": False, "error": None, "line": ""}


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (stage("build", "print('x.cu(3): error: no'); raise SystemExit(3)"), "x.cu(3): error: no"),
        (stage("build", "", warnings=["warning: ghn_fast is compiled without CUDA"]), "without"),
        (stage("build", "", problem="no device"), "the CUDA ops cannot run: no device"),
        (stage("tests", "", failed_names=["a::b"]), "test failed: a::b"),
        (stage("tests", "", passed=0, failed=0, skipped=3), "no test passed"),
        (stage("measure", "", measurements=[MISSED]), "op: 4.0 ms misses its target"),
        (stage("measure", "", measurements=[MISSED | {"error": "no"}]), "op: no"),
        (lambda check: [], "left out"),
    ],
)
def test_what_is_wrong_is_reported_and_stops_nothing(
    bench: Parts,
    stages: dict[str, Any],
    tmp_path: Path,
    steps: Any,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stages["build"] = steps
    status, report = run_check(bench, tmp_path / "report.json")
    assert status == 1
    (failure,) = report["failures"]
    assert message in failure
    assert failure in capsys.readouterr().out
    assert report["stages"]["tests"]["tests"]["passed"] == 7


def test_the_report_is_written_after_each_stage(
    bench: Parts, stages: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "report.json"

    def last(check: Any) -> list[Any]:
        raise KeyboardInterrupt

    stages["more"] = last
    with pytest.raises(KeyboardInterrupt):
        run_check(bench, out)
    assert list(json.loads(out.read_text())["stages"]) == ["build", "tests"]


def test_stages_that_the_budget_does_not_reach_are_named(
    bench: Parts, stages: dict[str, Any], tmp_path: Path
) -> None:
    status, report = run_check(bench, tmp_path / "r.json", "--budget", "1")
    assert status == 1
    assert report["failures"] == [
        f"{name}: left out: the 1 s are over" for name in ("build", "tests")
    ]


def test_a_process_is_over_with_all_its_children_when_its_time_is(
    bench: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The grandchild holds the output open, and takes no notice of a word.
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]);"
    code += "print('under way', flush=True); time.sleep(60)"
    log = tmp_path / "log"
    monkeypatch.setattr(bench.stages, "GRACE", 0.5)
    ended = bench.stages.run([sys.executable, "-c", code], log, 1.5)
    assert ended.status is None and ended.seconds < 30
    assert ended.reason.startswith("not done after 2 s")
    assert "under way" in log.read_text()


def test_the_lines_that_tell_are_found_wherever_they_are(bench: Parts) -> None:
    text = "\n".join(["ok"] * 50 + ["a.cu(7): error: ambiguous"] + ["ninja: stopped"] * 50)
    assert bench.stages.tell(text) == "a.cu(7): error: ambiguous\nninja: stopped"
    assert bench.stages.tell("one\ntwo") == "one\ntwo"


def test_a_copy_without_git_has_an_unknown_commit(
    bench: Parts, stages: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(named: str | None) -> str:
        raise ValueError("commit: no git checkout")

    monkeypatch.setattr(bench.check, "commit_of", fail)
    assert bench.check.main(["--out", str(tmp_path / "r.json")]) == 0
    assert json.loads((tmp_path / "r.json").read_text())["about"]["commit"] == "unknown"


@pytest.mark.extension
def test_a_rehearsal_goes_the_whole_way(tmp_path: Path) -> None:
    command = [sys.executable, ".ci/gpu_check.py", "--rehearse", "--commit", "x"]
    command += ["--out", str(tmp_path / "gpu.json"), "--repeats", "1"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert list(report["stages"]) == ["build", "smoke", "tests", "measure", "sanitize", "profile"]
    assert report["rehearsal"] and report["failures"] == []
    measured = report["stages"]["measure"]
    assert measured["measure-step"]["measurements"] and measured["measure-latency"]["measurements"]
    assert report["stages"]["tests"]["tests"]["skipped"] > 20
    assert all(path.is_file() and path.stat().st_size < 2**24 for path in tmp_path.iterdir())


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


def test_the_commit_comes_from_the_argument_the_environment_or_git(
    bench: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_of = bench.machine.commit_of
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

    (case,) = bench.parts.attempt("op", broken)
    assert case.value is None
    assert case.met is False
    assert "results differ" in case.error
