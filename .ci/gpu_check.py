"""Build, test and measure on the GPU of this machine, and write one JSON report.

    python .ci/gpu_check.py [--out FILE] [--commit NAME] [--sanitize] [--no-build]

Nothing is written where there is no GPU or the CUDA ops cannot be built. The exit status is 0 if
every test passed and every target was met, 1 if not (the report says what), and 2 if the check
could not be made. `make gpu-check VENV_PYTHON=python3` runs it with an interpreter that has torch,
torchvision, pytest, hypothesis and networkx, and asks no package registry for anything.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from suite.machine import COMMIT_VARIABLE, RESULTS, ROOT, about, commit_of, write_whole

# Tests with this mark are those that need a GPU.
PYTEST = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider"]
# What the tests and the measurements import beside torch.
PACKAGES = ("pytest", "hypothesis", "networkx", "numpy", "torchvision")
# The tools of compute-sanitizer that find what a kernel does wrong in memory.
SANITIZER_TOOLS = ("memcheck", "racecheck")
SANITIZER_SECONDS = 1800


class CannotCheckError(Exception):
    """The check cannot be made; the message says why."""


def need_gpu() -> None:
    """Raise CannotCheckError, with the reason, where torch finds no GPU."""
    try:
        import torch
    except ImportError as error:
        raise CannotCheckError(f"{sys.executable} has no torch ({error})") from None
    if torch.version.cuda is None:
        raise CannotCheckError(f"no GPU: torch {torch.__version__} was built without CUDA")
    if not torch.cuda.is_available():
        raise CannotCheckError(
            f"no GPU: torch {torch.__version__}, built for CUDA {torch.version.cuda}, finds no "
            "device, or no driver that fits; nothing was measured"
        )


def need_packages() -> None:
    """Raise CannotCheckError where a package is missing: a test left out would not be noticed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise CannotCheckError(
            f"{sys.executable} has no {', '.join(missing)}, which the tests or measurements need"
        )


def environment() -> dict[str, str]:
    """The environment of child processes: they find the package without an install."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


def build() -> None:
    """Compile the extension in place.

    Raises:
        CannotCheckError: If the compiler fails.
    """
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    result = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, errors="replace"
    )
    warnings = [line for line in result.stderr.splitlines() if line.startswith("warning: ghn_fast")]
    if result.returncode != 0 or warnings:
        tail = "\n".join([*warnings, *result.stderr.splitlines()[-20:]])
        raise CannotCheckError(f"{' '.join(command)} failed:\n{tail}")


def need_cuda_ops() -> None:
    """Raise CannotCheckError where the compiled CUDA ops cannot run."""
    backend = importlib.import_module("ghn_fast.ops.backend")
    problem = backend.cuda_problem()
    if problem is not None:
        raise CannotCheckError(f"the CUDA ops cannot run: {problem}")


def run_tests(seconds: float = 3600) -> dict[str, Any]:
    """Run the GPU tests and count them."""
    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder) / "junit.xml"
        try:
            result = subprocess.run(
                [*PYTEST, "--continue-on-collection-errors", f"--junitxml={xml}"],
                cwd=ROOT,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            return {**count_tests(None), "error": f"not done after {seconds:.0f} s"}
        found = count_tests(xml.read_text() if xml.is_file() else None)
        # 1 stands for failed tests, which are counted; others for a run that did not take place.
        if result.returncode not in (0, 1) or not xml.is_file():
            tail = " / ".join(result.stdout.strip().splitlines()[-5:])
            found["error"] = f"pytest ended with status {result.returncode}: {tail}"
        return found


def count_tests(xml: str | None) -> dict[str, Any]:
    """Count the tests in a report of pytest in JUnit's format; errors count as failures."""
    counts: dict[str, Any] = {"passed": 0, "failed": 0, "skipped": 0}
    failed, reasons = [], {}
    for case in ElementTree.fromstring(xml).iter("testcase") if xml else ():
        name = f"{case.get('classname')}::{case.get('name')}"
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            # A test and its teardown can both fail, in two entries.
            counts["failed"] += 1
            failed.append(name)
        elif skip is not None:
            counts["skipped"] += 1
            reasons[name] = skip.get("message", "")
        else:
            counts["passed"] += 1
    return {**counts, "failed_names": failed, "skip_reasons": reasons, "error": None}


def run_sanitizer() -> dict[str, Any] | None:
    """Run the GPU tests under each tool of compute-sanitizer; ``None`` where it is not there."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        print("compute-sanitizer is not on the path; left out", flush=True)
        return None
    # Every allocation is one of CUDA's, so that each has bounds of its own.
    env = {**environment(), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    results: dict[str, dict[str, Any]] = {}
    for tool in SANITIZER_TOOLS:
        print(f"Running the GPU tests under compute-sanitizer, {tool}", flush=True)
        command = [program, "--tool", tool, "--target-processes", "all", "--error-exitcode", "99"]
        try:
            run = subprocess.run(
                [*command, *PYTEST, "tests/ops"],
                cwd=ROOT,
                env=env,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=SANITIZER_SECONDS,
            )
        except subprocess.TimeoutExpired:
            results[tool] = {"exit_status": None, "summary": f"over {SANITIZER_SECONDS} s"}
            continue
        lines = [line for line in run.stdout.splitlines() if "SUMMARY" in line]
        results[tool] = {
            "exit_status": run.returncode,
            "summary": lines[-1].strip("= ") if lines else " / ".join(run.stdout.split("\n")[-3:]),
        }
    return results


def about_gpu(commit: str) -> dict[str, Any]:
    """Name GPU, driver, versions and commit."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    return about(1, commit) | {
        "gpu": properties.name,
        "gpu_memory_bytes": properties.total_memory,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "driver": output_of(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
        ),
        "cuda": torch.version.cuda,
        "nvcc": release_of_nvcc(),
        "triton": version_of("triton"),
    }


def output_of(command: list[str]) -> str | None:
    """What a program prints, or ``None`` where it cannot."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None


def release_of_nvcc() -> str | None:
    """The release of the CUDA compiler, or ``None`` where it is not found."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    program = shutil.which("nvcc") or str(Path(home) / "bin" / "nvcc")
    found = re.search(r"release ([\d.]+)", output_of([program, "--version"]) or "")
    return found[1] if found else None


def version_of(module: str) -> str | None:
    """The version of a Python package, or ``None`` where it is not installed."""
    try:
        return str(importlib.import_module(module).__version__)
    except ImportError:
        return None


def default_path(gpu: str, date: str, folder: Path = RESULTS / "gpu") -> Path:
    """Find a file that is not there yet for the report: gpu-NAME-DATE.json, or with a number."""
    name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    stem, number = f"gpu-{name}-{date}", 1
    path = folder / f"{stem}.json"
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}.json"
    return path


@dataclass(frozen=True)
class Measurement:
    """One figure and what it should reach.

    Attributes:
        name: What was measured.
        value: The figure; ``None`` if the case failed.
        unit: Its unit.
        at_least: Least value that meets the target, if it is to be large.
        at_most: Largest value that meets the target, if it is to be small.
        details: What was measured along with it.
        error: Why the case failed.
    """

    name: str
    value: float | None
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    details: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; ``None`` where there is none. A failed case meets none."""
        if self.value is None:
            return False
        if self.at_least is not None:
            return self.value >= self.at_least
        return None if self.at_most is None else self.value <= self.at_most

    def line(self) -> str:
        """Write the figure for people, on one line."""
        if self.value is None:
            return f"{self.name}: FAILED, {self.error}"
        aim = "" if self.at_least is None else f", target at least {self.at_least:g}"
        aim = aim if self.at_most is None else f", target at most {self.at_most:g}"
        said = "" if self.met is None else ": met" if self.met else ": MISSED"
        return f"{self.name}: {self.value:.4g} {self.unit}{aim}{said}"


# Against the loop over the nodes; and the part of the bandwidth of a copy, over 1 GB of parameters.
RATIO, PART = 100.0, 0.6


def measurements() -> list[Measurement]:
    """Measure every guarded case of the GPU; one that fails is recorded as failed."""
    from suite.cases import all_cases, guarded_cases
    from suite.measuring import measure_case, peer_of
    from suite.roofline import measure_ceilings, roofline_of

    known = {case.name: case for case in all_cases()}
    cases = [case for case in guarded_cases() if case.device == "cuda"]
    large = [
        replace(case, graph="wide_resnet101_2", meta_batch=2)
        for case in cases
        if case.path == "expand_params" and case.graph == "resnet50"
    ]
    found = []
    for case in [*cases, *large]:
        try:
            times = measure_case(case, peer_of(case, known))
            seconds = times["seconds"]["median"]
            found.append(Measurement(case.name, 1e3 * seconds, "ms", details=times))
            if case.path == "gated_gnn":
                name, ratio = f"{case.name} against the loop", times["peer"]["ratio"]["median"]
                found.append(Measurement(name, ratio, "times", at_least=RATIO))
            if case in large:
                roof = roofline_of(case, seconds, measure_ceilings("cuda"))
                name, least = f"{case.name}, bandwidth", PART if case.part == "forward" else None
                found.append(
                    Measurement(name, roof["achieved"], "of a copy", at_least=least, details=roof)
                )
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            found.append(Measurement(case.name, None, "", error=reason))
    return found


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
        CannotCheckError: If there is no GPU or no build, before anything is written.
    """
    need_gpu()
    need_packages()
    try:
        commit = commit_of(named=arguments.commit)
    except ValueError as error:
        raise CannotCheckError(str(error)) from None
    started = datetime.now(UTC)
    if not arguments.no_build:
        print("Building the extension", flush=True)
        build()
    need_cuda_ops()
    print("Running the GPU tests", flush=True)
    tests = run_tests()
    print(
        f"  {tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped",
        flush=True,
    )
    sanitizer = run_sanitizer() if arguments.sanitize else None
    print("Measuring", flush=True)
    found = measurements()
    for case in found:
        print(f"  {case.line()}", flush=True)
    report: dict[str, Any] = {
        "date": started.isoformat(timespec="seconds"),
        "about": (facts := about_gpu(commit)),
        "tests": tests,
        "sanitizer": sanitizer,
        "measurements": [asdict(case) | {"met": case.met} for case in found],
    }
    report["failures"] = wrong = failures(report)
    out = arguments.out or default_path(facts["gpu"], started.date().isoformat())
    write_whole(out, json.dumps(report, indent=2, allow_nan=False) + "\n")
    print(f"Wrote {out}")
    for line in wrong:
        print(f"FAILED {line}")
    return 1 if wrong else 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, help="gpu/gpu-NAME-DATE.json in the folder of results if not set"
    )
    parser.add_argument(
        "--commit", help=f"what is measured; {COMMIT_VARIABLE}, or what git says, if not set"
    )
    parser.add_argument(
        "--sanitize", action="store_true", help="run tests under compute-sanitizer, if it is there"
    )
    parser.add_argument("--no-build", action="store_true", help="take the extension as it is")
    arguments = parser.parse_args(argv)
    # The package need not be installed.
    sys.path.insert(0, str(ROOT))
    try:
        return check(arguments)
    except CannotCheckError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
