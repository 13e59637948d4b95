"""A quick look at times, with room for noise: compiled ops against the references.

The floors are far below what is measured, so that a busy machine passes and an op that has lost its
speed does not.
"""

from __future__ import annotations

import time
from dataclasses import replace

from suite.cases import Case, find_case
from suite.measuring import measure_case
from suite.setups import SkippedError

# Least ratios, about a third of what was measured on a busy machine with AVX-512 (torch 2.15).
FLOORS = {
    "gated_gnn.forward(cpu, cpu, hid=32, train x 8, float32)": 8.0,
    "gated_gnn.backward(cpu, cpu, hid=32, train x 8, float32)": 15.0,
    "expand_params.forward(cpu, cpu, hid=32, train x 1, float32)": 12.0,
    "expand_params.backward(cpu, cpu, hid=32, train x 1, float32)": 8.0,
    "shortest_distances.call(cpu, cpu, hid=32, deep x 1, float32)": 5.0,
    "collate_edges.call(cpu, cpu, hid=32, train x 8, float32)": 3.0,
}


def ratio(case: Case) -> float:
    """Measure the median ratio of the reference's time to that of the case's back end.

    Raises:
        suite.setups.SkippedError: If the case cannot run here.
    """
    found = measure_case(case, replace(case, backend="reference"))
    return float(found["peer"]["ratio"]["median"])


def check(seconds: float = 150) -> int:
    """Print every ratio; returns 1 if one is below its floor or was not reached in time, 0 if not.

    Without compiled ops there is nothing to compare, and every case is skipped by name.
    """
    end, low = time.monotonic() + seconds, 0
    for name, floor in FLOORS.items():
        if time.monotonic() > end:
            print(f"{name}: not reached in {seconds:.0f} s")
            low += 1
            continue
        try:
            found = ratio(find_case(name))
        except SkippedError as reason:
            print(f"{name}: skipped, {reason}")
            continue
        low += found < floor
        print(
            f"{name}: {found:.1f} times as fast as the reference, "
            f"floor {floor:g}{': TOO SLOW' if found < floor else ''}",
            flush=True,
        )
    return 1 if low else 0
