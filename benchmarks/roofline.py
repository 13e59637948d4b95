"""Measure the machine's ceilings and how near the ops come to them; writes one JSON file.

    python benchmarks/roofline.py [--out FILE] [--commit NAME]

The file is benchmarks/results/roofline-MACHINE.json if not given. One thread on CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from measure import ROOT, about, commit_of

sys.path.insert(0, str(ROOT))

import torch
from run_asv import gpu, machine_name
from suite.processes import ALLOCATOR, environment
from suite.roofline import measure_all


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--commit", help="what is measured, if git cannot tell")
    arguments = parser.parse_args(argv)
    if not ALLOCATOR.items() <= os.environ.items():
        # The allocator reads its settings when the process starts.
        command = [sys.executable, __file__, *(sys.argv[1:] if argv is None else argv)]
        return subprocess.run(command, env=environment(ROOT)).returncode
    torch.set_num_threads(1)
    out = arguments.out or ROOT / "benchmarks" / "results" / f"roofline-{machine_name()}.json"
    commit = commit_of(named=arguments.commit)
    found = measure_all()
    date = datetime.now(UTC).isoformat(timespec="seconds")
    report = {"date": date, "about": about(1, commit) | {"gpu": gpu()}, **found}
    part = out.with_name(f".{out.name}.{os.getpid()}")
    part.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    os.replace(part, out)
    for name, case in found["cases"].items():
        print(f"{100 * case['achieved']:5.1f} %  {1e3 * case['seconds']:8.3f} ms  {name}")
    print(f"Wrote {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
