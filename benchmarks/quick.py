"""A quick look at times, with room for noise: compiled ops against the references, in one process.

    python benchmarks/quick.py [--seconds 150]

For every op the ratio of the reference's time to that of the compiled back end, of neighbouring
measurements of processor time. The floors are far below what is measured, so that a busy machine
passes and an op that has lost its speed does not. No case is begun after the time that is given;
one that was not reached by then is a failure. The exit status is 1 if a ratio is below its floor.
Without compiled ops there is nothing to compare: each case is then skipped by name, and the exit
status is 0.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import replace

os.environ.setdefault("OMP_NUM_THREADS", "1")

from measure import ROOT

sys.path.insert(0, str(ROOT))

import torch
from suite.cases import Case, all_cases
from suite.setups import Run, SkippedError, prepared

import ghn_fast

# Least ratios, about a third of what was measured on a busy machine with AVX-512 (torch 2.15).
FLOORS = {
    "gated_gnn.forward(cpu, cpu, hid=32, train x 8, float32)": 8.0,
    "gated_gnn.backward(cpu, cpu, hid=32, train x 8, float32)": 15.0,
    "expand_params.forward(cpu, cpu, hid=32, train x 1, float32)": 12.0,
    "expand_params.backward(cpu, cpu, hid=32, train x 1, float32)": 8.0,
    "shortest_distances.call(cpu, cpu, hid=32, deep x 1, float32)": 5.0,
    "collate_edges.call(cpu, cpu, hid=32, train x 8, float32)": 3.0,
}
PAIRS = 15
# Seconds of one measurement.
LEAST = 0.01


def seconds(run: Run, backend: str) -> float:
    """Measure the processor time of one call."""
    calls = 0
    with ghn_fast.backend(backend):
        begin = time.process_time()
        while True:
            run()
            calls += 1
            elapsed = time.process_time() - begin
            if elapsed >= LEAST:
                return elapsed / calls


def ratio(case: Case) -> float:
    """Measure the median ratio of the reference's time to that of the case's back end.

    Raises:
        suite.setups.SkippedError: If the case cannot run here.
    """
    with ExitStack() as stack:
        fast = stack.enter_context(prepared(case))
        slow = stack.enter_context(prepared(replace(case, backend="reference")))
        for run, backend in ((fast, case.backend), (slow, "reference")):
            seconds(run, backend)
        pairs = [(seconds(fast, case.backend), seconds(slow, "reference")) for _ in range(PAIRS)]
    return statistics.median(slow / fast for fast, slow in pairs)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=150)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    end = time.monotonic() + arguments.seconds
    known = {case.name: case for case in all_cases()}
    low = 0
    for name, floor in FLOORS.items():
        if time.monotonic() > end:
            print(f"{name}: not reached in {arguments.seconds:.0f} s")
            low += 1
            continue
        try:
            found = ratio(known[name])
        except SkippedError as reason:
            print(f"{name}: skipped, {reason}")
            continue
        wrong = found < floor
        low += wrong
        print(
            f"{name}: {found:.1f} times as fast as the reference, "
            f"floor {floor:g}{': TOO SLOW' if wrong else ''}",
            flush=True,
        )
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())
