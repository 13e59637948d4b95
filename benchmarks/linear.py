"""The decoder's largest product in float32: torch's BLAS against oneDNN.

python benchmarks/linear.py [--threads 1] [--repeats 25]
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial

import torch
from measure import seconds
from torch.nn import functional as F


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=25)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    weight, bias = torch.randn(64 * 64, 256), torch.randn(64 * 64)
    for rows in (16, 36, 49, 144, 900):
        x = torch.randn(rows, 256)
        calls = {
            "BLAS": partial(F.linear, x, weight, bias),
            "oneDNN": partial(torch.ops.mkldnn._linear_pointwise, x, weight, bias, "none", [], ""),
        }
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(arguments.repeats):
            for name, call in calls.items():
                times[name].append(seconds(call, 0.0))
        flop = 2 * x.numel() * len(weight)
        medians = {name: statistics.median(t) for name, t in times.items()}
        print(
            f"{rows:4} rows: "
            + ", ".join(f"{name} {flop / t / 1e9:.0f} GFLOP/s" for name, t in medians.items())
            + f", ratio {medians['BLAS'] / medians['oneDNN']:.2f}"
        )


if __name__ == "__main__":
    main()
