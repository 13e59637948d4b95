"""The gate before speed: the tests of what a case runs pass, or its times are not taken.

Tests run in the tree that is judged, with its own package. Their outcome is kept by the content of
the tree, so that a tree which has not changed is not tested again.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from suite.cases import Case
from suite.machine import CACHE, write_whole
from suite.processes import environment

# The tests of each path, files or folders of tests/.
TESTS: dict[str, tuple[str, ...]] = {
    "gated_gnn": ("ops/test_gated_gnn.py",),
    "expand_params": ("ops/test_expand_params.py",),
    "shortest_distances": ("ops/test_shortest_distances.py",),
    "collate_edges": ("ops/test_collate_edges.py",),
    "decode": ("ops/test_decode_blocks.py",),
    "capture": ("capturing/test_capture.py",),
    "predict_cold": ("hypernet/test_ghn.py", "capturing/test_cache.py"),
    "predict_warm": ("hypernet/test_ghn.py",),
    "predict_large": ("hypernet/test_ghn.py",),
    "compile_plan": ("hypernet/test_predictor.py",),
    "loader": ("deepnets/test_loader.py",),
    "generator": ("deepnets/test_generate.py",),
    "meta_step": ("metatrain/test_step.py",),
}
SECONDS = 900
# What decides about the outcome of a test.
_SOURCES = ("csrc", "ghn_fast", "kernels", "tests")


def content_of(tree: Path) -> str:
    """Name what the package and the tests of a tree consist of."""
    digest = hashlib.sha256(sys.executable.encode())
    for folder in _SOURCES:
        for path in sorted((tree / folder).rglob("*")):
            if path.is_file() and path.suffix in (".py", ".cpp", ".cu", ".h", ".json", ".yaml"):
                digest.update(f"\0{path.relative_to(tree).as_posix()}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def tests_of(case: Case, tree: Path) -> list[str]:
    """The test files of a case that a tree has."""
    files = [Path("tests") / name for name in TESTS.get(case.path, (f"ops/test_{case.path}.py",))]
    return [file.as_posix() for file in files if (tree / file).exists()]


def run_tests(tree: Path, files: list[str]) -> str | None:
    """Run tests in a tree; why they fail, or ``None``."""
    device = ["-p", "no:cacheprovider", "-q", "-x", "--no-header", "-W", "ignore"]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *device, *files],
            cwd=tree,
            env=environment(tree),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"not done after {SECONDS} s"
    if done.returncode == 0:
        return None
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return lines[0] if lines else f"pytest ended with status {done.returncode}"


def red_cases(tree: Path, cases: Iterable[Case]) -> dict[str, str]:
    """Run the tests of cases in a tree; the names of the cases that fail, with the reason."""
    kept = CACHE / "gates" / f"{content_of(tree)}.json"
    known: dict[str, str | None] = json.loads(kept.read_text()) if kept.is_file() else {}
    found = {}
    for case in cases:
        files = tests_of(case, tree)
        for file in files:
            if file not in known:
                known[file] = run_tests(tree, [file])
                write_whole(kept, json.dumps(known))
        reasons = [reason for file in files if (reason := known[file]) is not None]
        if not files:
            reasons = [f"tests/ has no tests of {case.path} (benchmarks/suite/gate.py)"]
        if reasons:
            found[case.name] = reasons[0]
    return found
