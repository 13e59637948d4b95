"""The parts of gpu_check: what is there, the build, the tests, the sanitizer, the report."""

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
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from measure import ROOT, processor

RESULTS = ROOT / "benchmarks" / "results"
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
    return {
        "commit": commit,
        "gpu": properties.name,
        "gpu_memory_bytes": properties.total_memory,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "driver": output_of(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
        ),
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


def default_path(gpu: str, date: str, folder: Path = RESULTS) -> Path:
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
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
