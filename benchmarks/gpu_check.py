"""Build, test and measure on the GPU of this machine, and write one JSON report.

    python benchmarks/gpu_check.py [--out FILE] [--commit NAME] [--repeats 9] [--sanitize]
                                   [--no-build]

Nothing is written where there is no GPU or the CUDA ops cannot be built. The exit status is 0 if
every test passed and every target was met, 1 if not (the report says what), and 2 if the check
could not be made. `make gpu-check VENV_PYTHON=python3` runs it with an interpreter that has torch,
torchvision, pytest, hypothesis and networkx, and asks no package registry for anything.
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gpu_parts
from measure import COMMIT_VARIABLE, ROOT, Measurement, attempt, commit_of


def measurements(repeats: int) -> list[Measurement]:
    """Measure every case, one after the other; one that fails is recorded as failed."""

    def gated_gnn() -> list[Measurement]:
        from bench_gated_gnn import measure_gpu

        return measure_gpu(repeats)

    def expand_train() -> list[Measurement]:
        from bench_expand_params import measure_gpu_train

        return measure_gpu_train(repeats)

    def expand_wide() -> list[Measurement]:
        from bench_expand_params import measure_gpu_wide

        return measure_gpu_wide(repeats)

    cases = {
        "gated_gnn": gated_gnn,
        "expand_params, train networks": expand_train,
        "expand_params, wide networks": expand_wide,
    }
    return [found for name, case in cases.items() for found in attempt(name, case)]


def failures(report: dict[str, Any]) -> list[str]:
    """Say in words what keeps a report from being a good one."""
    tests = report["tests"]
    found = [f"test failed: {name}" for name in tests["failed_names"]]
    if tests["error"] is not None:
        found.append(f"tests: {tests['error']}")
    elif tests["passed"] == 0:
        found.append("tests: none passed")
    for tool, result in (report["sanitizer"] or {}).items():
        if result["exit_status"] != 0:
            found.append(f"compute-sanitizer {tool}: {result['summary']}")
    for case in report["measurements"]:
        if case["error"] is not None:
            found.append(f"{case['name']}: {case['error']}")
        elif case["met"] is False:
            found.append(f"{case['name']}: {case['value']} {case['unit']} misses its target")
    return found


def check(arguments: argparse.Namespace) -> int:
    """Make the whole check; returns the exit status.

    Raises:
        gpu_parts.CannotCheckError: If there is no GPU or no build, before anything is written.
    """
    gpu_parts.need_gpu()
    gpu_parts.need_packages()
    try:
        commit = commit_of(named=arguments.commit)
    except ValueError as error:
        raise gpu_parts.CannotCheckError(str(error)) from None
    started = datetime.now(UTC)
    if not arguments.no_build:
        print("Building the extension", flush=True)
        gpu_parts.build()
    gpu_parts.need_cuda_ops()
    print("Running the GPU tests", flush=True)
    tests = gpu_parts.run_tests()
    print(
        f"  {tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped",
        flush=True,
    )
    sanitizer = gpu_parts.run_sanitizer() if arguments.sanitize else None
    print("Measuring", flush=True)
    found = measurements(arguments.repeats)
    for case in found:
        print(f"  {case.line()}", flush=True)
    about = gpu_parts.about_gpu(commit)
    report: dict[str, Any] = {
        "date": started.isoformat(timespec="seconds"),
        "about": about,
        "tests": tests,
        "sanitizer": sanitizer,
        "measurements": [case.to_dict() for case in found],
    }
    report["failures"] = wrong = failures(report)
    out = arguments.out or gpu_parts.default_path(about["gpu"], started.date().isoformat())
    gpu_parts.write_report(report, out)
    print(f"Wrote {out}")
    for line in wrong:
        print(f"FAILED {line}")
    return 1 if wrong else 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="benchmarks/results/gpu-NAME-DATE.json if not set")
    parser.add_argument(
        "--commit", help=f"what is measured; {COMMIT_VARIABLE}, or what git says, if not set"
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--sanitize", action="store_true", help="run tests under compute-sanitizer, if it is there"
    )
    parser.add_argument("--no-build", action="store_true", help="take the extension as it is")
    arguments = parser.parse_args(argv)
    if arguments.repeats < 1:
        parser.error(f"--repeats: got {arguments.repeats}, needs at least 1")
    # The package need not be installed.
    sys.path.insert(0, str(ROOT))
    try:
        return check(arguments)
    except gpu_parts.CannotCheckError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
