"""Show that bench-compare finds a slow-down of 15 % and lets an unchanged tree pass.

    python benchmarks/prove_compare.py [--runs 5] [--percent 15] [--only TEXT ...] [--json FILE]

Compares this checkout's last commit with itself in turn: unchanged, in all guarded cases or those
of --only, and the gated GNN with a copy in which it was made slower (benchmarks/suite/plants.py).
The exit status is 0 if every comparison with the slower copy failed because of that op and every
other one passed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import ROOT, about
from suite.plants import plant_slowdown
from suite.trees import CACHE, build, tree_of

CASE = "gated_gnn.forward"


def compare(only: list[str] | None, *more: str) -> dict[str, Any]:
    """Run compare.py: its status, its time, what it called wrong and every ratio."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "benchmarks/compare.py", "HEAD", *more, "--json", str(report)]
        command += ["--no-counts", *(["--only", *only] if only else [])]
        begin = time.monotonic()
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        lines = result.stdout.splitlines()
        cases = json.loads(report.read_text())["cases"] if report.is_file() else {}
    return {
        "status": result.returncode,
        "seconds": round(time.monotonic() - begin),
        "wrong": [line.removeprefix("WRONG ") for line in lines if line.startswith("WRONG ")],
        "ratios": {name: case["ratios"] for name, case in cases.items() if case["ratios"]},
        "error": result.stderr[-500:] if result.returncode not in (0, 1) else None,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--percent", type=int, default=15)
    parser.add_argument("--only", nargs="+", help="unchanged cases, by parts of names")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    base = tree_of("HEAD")
    planted = CACHE / "planted"
    shutil.rmtree(planted, ignore_errors=True)
    shutil.copytree(base, planted, symlinks=True)
    plant_slowdown(planted, arguments.percent)
    build(planted)
    found: dict[str, list[dict[str, Any]]] = {"unchanged": [], "slower": []}
    good = 0
    for number in range(arguments.runs):
        for kind, only, more in (
            ("unchanged", arguments.only, "--head=HEAD"),
            ("slower", [CASE], f"--head-tree={planted}"),
        ):
            result = compare(only, more)
            found[kind].append(result)
            if kind == "unchanged":
                right = result["status"] == 0
            else:
                right = result["status"] == 1 and any(CASE in name for name in result["wrong"])
            good += right
            print(
                f"run {number + 1}, {kind}: status {result['status']} after {result['seconds']} s, "
                f"{'as it should be' if right else 'NOT as it should be'}; "
                f"wrong: {', '.join(result['wrong']) or 'none'}",
                flush=True,
            )
    print(f"{good} of {2 * arguments.runs} comparisons came out as they should")
    if arguments.json is not None:
        report = {"about": about(1), "percent": arguments.percent, **found}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if good == 2 * arguments.runs else 1


if __name__ == "__main__":
    sys.exit(main())
