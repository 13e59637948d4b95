"""The parts of gpu_check: what is there, how tests are counted, the report."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from suite.machine import RESULTS, ROOT, processor, write_whole

# Tests with this mark are those that need a GPU.
PYTEST = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider"]
# What the tests and the measurements import beside torch.
PACKAGES = ("pytest", "networkx", "numpy", "torchvision", "sklearn")
# The tools of compute-sanitizer that find what a kernel does wrong in memory.
SANITIZER_TOOLS = ("memcheck", "racecheck", "synccheck")
# What .ci/gpu_measure.py measures, the most wanted first.
CASES = ("ops", "step", "triton", "latency")


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


def cuda_problem() -> str | None:
    """Why the compiled CUDA ops cannot be used, as a new process finds it; ``None`` if they can."""
    code = "from ghn_fast.ops.backend import cuda_problem as p; print(p() or '')"
    command = [sys.executable, "-c", code]
    try:
        result = subprocess.run(
            command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60
        )
    except subprocess.TimeoutExpired:
        return "importing the package takes more than a minute"
    return result.stdout.strip() or (result.stderr[-500:] if result.returncode else None)


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


def sanitizer(rehearse: bool) -> list[str]:
    """What starts compute-sanitizer, or a stand-in for it; empty where it is not there."""
    if rehearse:
        code = "import subprocess, sys; i = sys.argv.index('99'); "
        code += "r = subprocess.run(sys.argv[i + 1:]); "
        code += "print('SUMMARY: a stand-in'); sys.exit(r.returncode)"
        return [sys.executable, "-c", code]
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    return [program] if Path(program).is_file() else []


def about(commit: str, device: str) -> dict[str, Any]:
    """Name GPU, driver, versions and commit."""
    import torch

    found: dict[str, Any] = {"commit": commit, "gpu": "none"}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "driver": output_of(
                ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
            ),
        }
    return found | {
        "cuda": torch.version.cuda,
        "nvcc": release_of_nvcc(),
        "torch": torch.__version__,
        "triton": version_of("triton"),
        "python": platform.python_version(),
        "cpu": processor(),
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


def write_report(report: dict[str, Any], path: Path) -> None:
    """Write a report, whole or not at all.

    Raises:
        ValueError: If it holds a number that JSON does not have (NaN, infinity).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(report, indent=2, allow_nan=False) + "\n")


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


def attempt(name: str, run: Callable[[], Sequence[Measurement]]) -> list[Measurement]:
    """Measure a case; if it fails, one measurement says why."""
    try:
        return list(run())
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        return [Measurement(name, None, "", error=reason)]
