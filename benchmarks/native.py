"""Compiled ops against the straightforward implementation: ratios within one run.

    python benchmarks/native.py [--threads 2] [--repeats 5] [--json report.json] [--only OP ...]

Both are measured alternately; a line gives the medians of both and the median of the paired ratios.
Before it is timed, the result of a case is compared with the baseline's, or the reference's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_expand_params
import bench_gated_gnn
import bench_shortest_distances
import torch
from measure import about


def gated_gnn(repeats: int) -> dict[str, Any]:
    """Write the section of the gated GNN."""
    print("gated_gnn, float32: native, baseline, ratio (least, most)")
    results: dict[str, Any] = {}
    for name, graphs in bench_gated_gnn.cases().items():
        results[name] = bench_gated_gnn.measure_cpu(graphs(), repeats)
        for part, r in results[name].items():
            print(
                f"  {name:15} {part:17} {r['native_ms']:8.2f} ms {r['baseline_ms']:9.1f} ms "
                f"{r['ratio']:6.0f}x ({r['ratio_least']:.0f}, {r['ratio_most']:.0f}); "
                f"target {bench_gated_gnn.TARGETS[part]}x",
                flush=True,
            )
    return results


def shortest_distances(repeats: int) -> dict[str, Any]:
    """Write the section of the distances."""
    (result,) = bench_shortest_distances.measure_cpu(repeats)
    print(result.line())
    details = result.details
    fill = details["fill"]["median_ms"]
    print(
        f"  {details['least_ms']:.2f} to {details['most_ms']:.2f} ms; {details['pairs']} pairs, "
        f"{details['bytes'] / 1e6:.1f} MB; filling as much memory: {fill:.2f} ms",
        flush=True,
    )
    return result.to_dict()


def expand_params(repeats: int) -> dict[str, Any]:
    """Write the section of the expansion of parameters."""
    results: dict[str, Any] = {}
    for result in bench_expand_params.measure_cpu(repeats):
        d = result.details
        print(result.line())
        print(
            f"  {d['native_ms']:.2f} ms, floor {d['baseline_ms']:.2f} ms, ratio from "
            f"{d['ratio_least']:.2f} to {d['ratio_most']:.2f}; {d['bytes'] / 1e6:.0f} MB",
            flush=True,
        )
        results[result.name] = result.to_dict()
    return results


SECTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "gated_gnn": gated_gnn,
    "expand_params": expand_params,
    "shortest_distances": shortest_distances,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report: dict[str, Any] = {"about": about(arguments.threads)}
    print(f"{arguments.threads} threads")
    for name in arguments.only:
        report[name] = SECTIONS[name](arguments.repeats)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
