"""Compiled ops against the straightforward implementation: ratios within one run.

    python benchmarks/native.py [--threads 2] [--repeats 5] [--json report.json]

Both are measured alternately; a line gives the medians of both and the median of the paired ratios.
Before it is timed, the result of a case is compared with the baseline's.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from baseline import Baseline

import ghn_fast
from ghn_fast.deepnets import SampledNets
from ghn_fast.graph import ArchGraph
from ghn_fast.graph.batch import GraphBatch
from ghn_fast.hypernet.config import GHNConfig
from ghn_fast.hypernet.propagate import GatedGNN

# Least multiples of the baseline that a case should reach.
TARGETS = {"forward": 40, "forward+backward": 25}


def seconds(run: Callable[[], Any], least: float) -> float:
    """Time of one call: the mean over as many as take ``least`` seconds."""
    count = 0
    start = time.perf_counter()
    while True:
        run()
        count += 1
        elapsed = time.perf_counter() - start
        if elapsed >= least:
            return elapsed / count


def compare(fast: Callable[[], Any], slow: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Medians in milliseconds and the median of the ratios of neighbouring measurements."""
    fast(), slow()
    pairs = [(seconds(fast, 0.05), seconds(slow, 0.0)) for _ in range(repeats)]
    ratios = sorted(slow / fast for fast, slow in pairs)
    return {
        "native_ms": 1e3 * statistics.median(fast for fast, _ in pairs),
        "baseline_ms": 1e3 * statistics.median(slow for _, slow in pairs),
        "ratio": statistics.median(ratios),
        "ratio_least": ratios[0],
        "ratio_most": ratios[-1],
    }


def propagation(graphs: list[ArchGraph], repeats: int) -> dict[str, dict[str, float]]:
    """The gated GNN of GHN-2 (hid 32, virtual edges) on one batch."""
    torch.manual_seed(0)
    batch = GraphBatch(graphs)
    gnn = GatedGNN(GHNConfig())
    slow = Baseline(batch.edges, batch.offsets)
    x = torch.randn(batch.num_nodes, gnn.update.hidden_size, requires_grad=True)
    direction = torch.randn_like(x)
    inputs = [x, *gnn.parameters()]

    def baseline() -> torch.Tensor:
        return slow(x, gnn.message, gnn.virtual_message, gnn.update)

    def native() -> torch.Tensor:
        return gnn(x, batch)

    def gradients(run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(run(), inputs, direction)

    def without_grad(run: Callable[[], torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            return run()

    with ghn_fast.backend("cpu"):
        pairs = zip([native(), *gradients(native)], [baseline(), *gradients(baseline)], strict=True)
        worst = max(float(((a - b).abs().max() / b.abs().max()).detach()) for a, b in pairs)
        if worst > 1e-4:
            raise RuntimeError(f"results differ by {worst:.1e} of the largest element")
        return {
            "forward": compare(
                lambda: without_grad(native), lambda: without_grad(baseline), repeats
            ),
            "forward+backward": compare(
                lambda: gradients(native), lambda: gradients(baseline), repeats
            ),
        }


def train_graphs(count: int) -> list[ArchGraph]:
    """Graphs of the first networks of the training split."""
    nets = SampledNets("train", count, seed=1)
    return [nets[index].graph for index in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cases = {
        "ResNet-50": lambda: [ghn_fast.capture(torchvision.models.resnet50(num_classes=10))],
        "ResNet-152": lambda: [ghn_fast.capture(torchvision.models.resnet152(num_classes=10))],
        "8 train graphs": lambda: train_graphs(8),
    }
    report: dict[str, Any] = {"about": about(arguments.threads), "gated_gnn": {}}
    print(f"gated_gnn, float32, {arguments.threads} threads: native, baseline, ratio (least, most)")
    for name, graphs in cases.items():
        report["gated_gnn"][name] = result = propagation(graphs(), arguments.repeats)
        for part, r in result.items():
            print(
                f"  {name:15} {part:17} {r['native_ms']:8.2f} ms {r['baseline_ms']:9.1f} ms "
                f"{r['ratio']:6.0f}x ({r['ratio_least']:.0f}, {r['ratio_most']:.0f}); "
                f"target {TARGETS[part]}x",
                flush=True,
            )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def about(threads: int) -> dict[str, Any]:
    """What the figures were measured with."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    ).stdout.strip()
    model = platform.processor()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model = f"{names[0]} x {len(names)}" if names else model
    return {
        "commit": commit,
        "cpu": model,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
