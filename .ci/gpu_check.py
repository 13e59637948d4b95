"""Build, test and measure on the GPU of this machine, in one call of at most nine minutes.

    python .ci/gpu_check.py [--out FILE] [--commit NAME] [--budget 540] [--only STAGE ...]
                                   [--skip STAGE ...] [--repeats 3] [--rehearse]

Stages: build, smoke, tests, measure, sanitize, profile. Each is a process with a deadline; one that
fails is reported with its reason, and does not stop the next. The report, one JSON file, is written
again after each stage, so that a call which is cut off leaves what it has found; logs, traces and
the results of the stages lie beside it. The exit status is 0 if all went well, 1 if not (the report
says what), and 2 if there is no GPU, or no package that is needed, where nothing is written.

It needs torch, Triton, nvcc, numpy, torchvision, scikit-learn and pytest; no network, no install,
and no git. `make gpu-check VENV_PYTHON=python3` runs it with an interpreter that has them.

`--rehearse` goes the same way on the CPU, with few tests, small sizes, and stand-ins for the
compiler and compute-sanitizer: every line of it, in less than two minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gpu_parts
from gpu_stages import Ended, run
from suite.machine import COMMIT_VARIABLE, ROOT, commit_of

# Stages in their order, and the most seconds that each may take.
SECONDS = {"build": 150, "smoke": 60, "tests": 180, "measure": 150, "sanitize": 60, "profile": 45}


@dataclass(frozen=True)
class Check:
    """One call.

    Attributes:
        out: The report.
        repeats: Repetitions of a measurement.
        rehearse: Whether it is a rehearsal on the CPU.
    """

    out: Path
    repeats: int
    rehearse: bool

    @property
    def device(self) -> str:
        """Where the stages compute."""
        return "cpu" if self.rehearse else "cuda"

    def beside(self, name: str) -> Path:
        """A file beside the report, with its name in front."""
        return self.out.with_name(f"{self.out.stem}-{name}")

    def stage(self, name: str, seconds: float) -> dict[str, Any]:
        """Run the processes of a stage one after the other; how each ended, and what it found."""
        found: dict[str, Any] = {}
        steps = _STAGES[name](self)
        started = time.monotonic()
        for label, command, read in steps:
            left = (seconds - (time.monotonic() - started)) / (len(steps) - len(found))
            log = self.beside(f"{label}.log")
            # The package need not be installed.
            ended = run(command, log, left, cwd=ROOT, env=gpu_parts.environment())
            found[label] = {**ended.to_dict(), **read(ended)}
        return found


Read = Callable[[Ended], dict[str, Any]]
# Name, command, and what reads its results.
Step = tuple[str, list[str], Read]


def _nothing(ended: Ended) -> dict[str, Any]:
    return {}


def _build(check: Check) -> list[Step]:
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    if check.rehearse:
        command = [sys.executable, "-c", "print('a stand-in for the compiler')"]

    def read(ended: Ended) -> dict[str, Any]:
        log = (check.out.parent / ended.log).read_text(errors="replace")
        warnings = [line for line in log.splitlines() if line.startswith("warning: ghn_fast")]
        problem = None if check.rehearse else gpu_parts.cuda_problem()
        return {"warnings": warnings, "problem": problem}

    return [("build", command, read)]


def _smoke(check: Check) -> list[Step]:
    command = [sys.executable, ".ci/gpu_smoke.py", "--device", check.device]
    return [("smoke", command, _nothing)]


def _tests(check: Check) -> list[Step]:
    xml = check.beside("tests.xml")
    command = [*gpu_parts.PYTEST, "--continue-on-collection-errors", f"--junitxml={xml}"]
    if check.rehearse:
        command += ["tests/ops/test_shortest_distances.py", "tests/kernels", "tests/metatrain"]

    def read(ended: Ended) -> dict[str, Any]:
        return gpu_parts.count_tests(xml.read_text() if xml.is_file() else None)

    return [("tests", command, read)]


def _measure(check: Check) -> list[Step]:
    steps: list[Step] = []
    for case in gpu_parts.CASES:
        path = check.beside(f"measure-{case}.json")
        command = [sys.executable, ".ci/gpu_measure.py", case, str(path)]
        command += ["--device", check.device, "--repeats", str(check.repeats)]

        def read(ended: Ended, path: Path = path) -> dict[str, Any]:
            return {"measurements": json.loads(path.read_text()) if path.is_file() else []}

        steps.append((f"measure-{case}", command, read))
    return steps


def _sanitize(check: Check) -> list[Step]:
    steps: list[Step] = []
    program = gpu_parts.sanitizer(check.rehearse)
    tools = gpu_parts.SANITIZER_TOOLS[: 1 if check.rehearse else None]
    for tool in tools if program else ():
        command = [*program, "--tool", tool, "--target-processes", "all", "--error-exitcode", "99"]
        command += [sys.executable, ".ci/gpu_calls.py", "--device", check.device]

        def read(ended: Ended) -> dict[str, Any]:
            log = (check.out.parent / ended.log).read_text(errors="replace")
            lines = [line.strip("= ") for line in log.splitlines() if "SUMMARY" in line]
            return {"summary": lines[-1] if lines else None}

        steps.append((f"sanitize-{tool}", command, read))
    return steps


def _profile(check: Check) -> list[Step]:
    trace = check.beside("trace.json.gz")
    command = [sys.executable, ".ci/gpu_profile.py", str(trace), "--device", check.device]
    return [("profile", command, _nothing)]


_STAGES: dict[str, Callable[[Check], list[Step]]] = {
    "build": _build,
    "smoke": _smoke,
    "tests": _tests,
    "measure": _measure,
    "sanitize": _sanitize,
    "profile": _profile,
}


def failures(stages: dict[str, dict[str, Any]], *, rehearse: bool = False) -> list[str]:
    """Say in words what keeps a report from being a good one."""
    found = []
    for parts in stages.values():
        for label, part in parts.items():
            if "left_out" in part:
                found.append(f"{label}: left out: {part['left_out']}")
                continue
            if part["status"] != 0 and not part.get("failed_names"):
                found.append(f"{label}: {part['reason']}")
            found += [f"{label}: {line}" for line in part.get("warnings", ())]
            if part.get("problem"):
                found.append(f"{label}: the CUDA ops cannot run: {part['problem']}")
            found += [f"test failed: {name}" for name in part.get("failed_names", ())]
            if part.get("passed") == 0 and not rehearse:
                found.append(f"{label}: no test passed")
            for case in part.get("measurements", ()):
                if case["error"] is not None:
                    found.append(f"{case['name']}: {case['error']}")
                elif case["met"] is False and not rehearse:
                    value = f"{case['value']} {case['unit']}"
                    found.append(f"{case['name']}: {value} misses its target")
    return found


def check_all(check: Check, stages: list[str], budget: float, commit: str) -> int:
    """Run the stages; returns the exit status."""
    started, date = time.monotonic(), datetime.now(UTC)
    # A rehearsal may share its machine with others, and nobody waits for it at a price.
    budget, longer = (10 * budget, 10) if check.rehearse else (budget, 1)
    report: dict[str, Any] = {
        "date": date.isoformat(timespec="seconds"),
        "about": gpu_parts.about(commit, check.device),
        "rehearsal": check.rehearse,
        "budget": budget,
        "stages": {},
    }
    for name in stages:
        left = budget - (time.monotonic() - started)
        if left < 5:
            report["stages"][name] = {name: {"left_out": f"the {budget:.0f} s are over"}}
        elif not _STAGES[name](check):
            report["stages"][name] = {name: {"left_out": "compute-sanitizer is not on the path"}}
        else:
            most = min(left, longer * SECONDS[name])
            print(f"{name}: at most {most:.0f} s", flush=True)
            report["stages"][name] = check.stage(name, most)
            if name == "build":
                report["about"] = gpu_parts.about(commit, check.device)
        report["failures"] = failures(report["stages"], rehearse=check.rehearse)
        report["seconds"] = time.monotonic() - started
        gpu_parts.write_report(report, check.out)
        for label, part in report["stages"][name].items():
            print(f"  {label}: {part.get('left_out') or outcome(part)}", flush=True)
    print(f"Wrote {check.out}")
    for line in report["failures"]:
        print(f"FAILED {line}")
    return 1 if report["failures"] else 0


def outcome(part: dict[str, Any]) -> str:
    """How a stage went, on one line or with a line for each measurement."""
    text = f"{part['seconds']:.0f} s"
    if "passed" in part:
        text += f", {part['passed']} passed, {part['failed']} failed, {part['skipped']} skipped"
    if part["status"] != 0:
        text += f", {(part['reason'] or '').splitlines()[0]}"
    lines = [f"\n    {case['line']}" for case in part.get("measurements", ())]
    return text + "".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="gpu/gpu-NAME-DATE.json if not set")
    parser.add_argument(
        "--commit", help=f"what is measured; {COMMIT_VARIABLE}, or what git says, if not set"
    )
    parser.add_argument("--budget", type=float, default=540, help="seconds for all stages")
    parser.add_argument(
        "--only", action="extend", nargs="+", choices=_STAGES, help="these stages alone"
    )
    parser.add_argument(
        "--skip", action="extend", nargs="+", choices=_STAGES, default=[], help="leave these out"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with stand-ins")
    arguments = parser.parse_args(argv)
    if arguments.repeats < 1:
        parser.error(f"--repeats: got {arguments.repeats}, needs at least 1")
    sys.path.insert(0, str(ROOT))
    try:
        gpu_parts.need_packages()
        if not arguments.rehearse:
            gpu_parts.need_gpu()
    except gpu_parts.CannotCheckError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 2
    try:
        commit = commit_of(named=arguments.commit)
    except ValueError as error:
        # A copy without git: what was found must not be lost for that.
        print(f"gpu-check: {error}", file=sys.stderr)
        commit = "unknown"
    out = arguments.out
    if out is None:
        name = "rehearsal" if arguments.rehearse else gpu_parts.about(commit, "cuda")["gpu"]
        out = gpu_parts.default_path(name, datetime.now(UTC).date().isoformat())
    out.parent.mkdir(parents=True, exist_ok=True)
    stages = [n for n in arguments.only or _STAGES if n not in arguments.skip]
    check = Check(out.resolve(), arguments.repeats, arguments.rehearse)
    return check_all(check, stages, arguments.budget, commit)


if __name__ == "__main__":
    sys.exit(main())
