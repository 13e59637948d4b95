"""One meta-training step against the straightforward loop, on the same architectures.

    python benchmarks/step.py [--threads 2] [--repeats 5] [--device cpu] [--json report.json]

Both take turns; a line gives the medians and the median of the paired ratios. Two parts are told
apart: the candidate networks' own forward and backward passes, and everything else, which is the
hypernetwork's share (predicting, binding, its backward pass, the update); fresh_steps.py compares
two revisions on architectures that were never seen. Before anything is timed,
loss and gradients of both are compared. Images are random numbers of the shape of CIFAR-10. Freed
memory is kept by the process for both. Ours keeps nothing of an architecture for the next step,
except for CUDA graphs.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from suite.machine import about
from suite.peers.node_by_node import Baseline
from suite.peers.training import straightforward_step
from torch import nn

import ghn_fast
from ghn_fast.deepnets import SampledNets, meta_batches
from ghn_fast.graph.batch import GraphBatch
from ghn_fast.metatrain import functional_networks
from ghn_fast.metatrain.executor import Executor
from ghn_fast.metatrain.memory import keep_freed_memory
from ghn_fast.metatrain.precision import PRECISIONS, tensor_cores
from ghn_fast.metatrain.step import MetaTrainer

# Least multiples of the straightforward loop that a step on a CPU should reach.
TARGETS = {"hypernetwork": 8.0, "step": 1.3}
CLIP = 5.0

# In deep networks with ReLUs the gradient depends on the signs of values near zero. Gradients of
# single networks, computed in single precision in either way, differ by up to 3e-3 (in the norm)
# from those in double precision; the worst element of the sum differs by more.
LOSS_DIFFERENCE = 1e-4
GRADIENT_DIFFERENCE = 3e-2


class Case:
    """A meta-batch with both ways to take a step on it.

    Args:
        arguments: What the command line says.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        device = torch.device(arguments.device)
        torch.manual_seed(0)
        nets = SampledNets("train", 10_000, seed=1)
        batches = meta_batches(nets, arguments.meta_batch, seed=arguments.seed)
        self.architectures = next(batches)
        # Both find the graphs at hand, as a loader leaves them.
        self.graphs = [architecture.graph for architecture in self.architectures]
        batch = GraphBatch(self.graphs)
        self.messages = Baseline(batch.edges, batch.offsets).to(device)
        shape = (arguments.batch_size, 3, 32, 32)
        self.images = torch.randn(shape, device=device)
        self.targets = torch.randint(0, 10, shape[:1], device=device)
        config = ghn_fast.GHNConfig(
            hid=arguments.hid, max_shape=(2 * arguments.hid, 2 * arguments.hid, 11, 11)
        )
        self.slow = ghn_fast.GHN(config).to(device).train()
        self.fast = copy.deepcopy(self.slow)
        self.slow_optimizer = torch.optim.Adam(self.slow.parameters(), 1e-3, weight_decay=1e-5)
        self.trainer = MetaTrainer(
            self.fast,
            torch.optim.Adam(self.fast.parameters(), 1e-3, weight_decay=1e-5, fused=True),
            meta_batch=arguments.meta_batch,
            grad_clip=CLIP,
            executor=Executor(device, cuda_graphs=arguments.cuda_graphs),
        )
        self.device = device
        self.precision = arguments.precision

    def straightforward(self) -> tuple[float, float, float]:
        """Loss, seconds of the hypernetwork's share, seconds in all."""
        step = straightforward_step(
            self.slow,
            self.slow_optimizer,
            self.architectures,
            self.graphs,
            self.messages,
            self.images,
            self.targets,
            CLIP,
        )
        return step.loss, step.seconds - step.network_seconds, step.seconds

    def ours(self) -> tuple[float, float, float]:
        """Loss, seconds of the hypernetwork's share, seconds in all."""
        start = time.perf_counter()
        result = self.trainer.step(self.architectures, self.images, self.targets)
        seconds = time.perf_counter() - start
        return result.loss, seconds - result.network_seconds, seconds

    def compare(self) -> dict[str, float]:
        """Compare losses and gradients; both hypernetworks have the same weights.

        Raises:
            RuntimeError: If they differ by more than rounding explains.
        """
        # In float32, whatever is timed afterwards, and on a GPU without TF32.
        executor, timed = self.trainer.executor, self.precision
        executor.precision = "float32"
        with without_dropout(), tensor_cores("float32", self.device):
            first, *_ = self.straightforward()
            second, *_ = self.ours()
        executor.precision = timed
        worst = 0.0
        for have, want in zip(self.fast.parameters(), self.slow.parameters(), strict=True):
            if want.grad is not None and have.grad is not None:
                scale = float(want.grad.abs().max())
                worst = max(worst, float((have.grad - want.grad).abs().max()) / max(scale, 1e-12))
        found = {"loss": abs(first - second), "gradient": worst}
        if not (found["loss"] < LOSS_DIFFERENCE and worst < GRADIENT_DIFFERENCE):
            raise RuntimeError(f"results differ: {found}")
        return found


@contextmanager
def without_dropout() -> Iterator[None]:
    """Both ways draw different masks, so results are compared without any."""
    before = nn.Dropout.forward, functional_networks.dropout
    nn.Dropout.forward = lambda self, x: x  # type: ignore[assignment, method-assign]
    functional_networks.dropout = lambda x, p, generator: x
    try:
        yield
    finally:
        nn.Dropout.forward, functional_networks.dropout = before  # type: ignore[method-assign]


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Measure medians in milliseconds, and medians of the paired ratios."""
    pairs = []
    for _ in range(repeats):
        pairs.append((case.ours(), case.straightforward()))
    result: dict[str, Any] = {}
    parts: dict[str, Callable[[tuple[float, float, float]], float]] = {
        "hypernetwork": lambda run: run[1],
        "networks": lambda run: run[2] - run[1],
        "step": lambda run: run[2],
    }
    for name, part in parts.items():
        ratios = sorted(part(slow) / part(fast) for fast, slow in pairs)
        result[name] = {
            "ours_ms": 1e3 * statistics.median(part(fast) for fast, _ in pairs),
            "straightforward_ms": 1e3 * statistics.median(part(slow) for _, slow in pairs),
            "ratio": statistics.median(ratios),
            "ratio_least": ratios[0],
            "ratio_most": ratios[-1],
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--meta-batch", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--hid", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1, help="Of the choice of architectures.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=tuple(PRECISIONS))
    parser.add_argument("--cuda-graphs", type=int, default=64)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.device == "cpu":
        keep_freed_memory()
    case = Case(arguments)
    report: dict[str, Any] = {"about": about(arguments.threads), "options": vars(arguments).copy()}
    report["options"]["json"] = str(arguments.json)
    report["differences"] = case.compare()
    # Twice more: a CUDA graph is captured at the second sight.
    case.ours()
    report["parts"] = measure(case, arguments.repeats)
    print(
        f"{arguments.meta_batch} architectures x {arguments.batch_size} images, hid "
        f"{arguments.hid}, {arguments.device}, {arguments.threads} threads: ours, straightforward, "
        "ratio (least, most)"
    )
    for name, part in report["parts"].items():
        target = f"; target {TARGETS[name]:g}x" if name in TARGETS else ""
        print(
            f"  {name:13} {part['ours_ms']:9.1f} ms {part['straightforward_ms']:9.1f} ms "
            f"{part['ratio']:6.2f}x ({part['ratio_least']:.2f}, {part['ratio_most']:.2f}){target}"
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
