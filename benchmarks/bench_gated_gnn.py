"""The gated GNN of GHN-2 against the node-by-node loop of the published system."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from baseline import Baseline
from measure import Measurement, compare, cuda_seconds, seconds
from torch import Tensor

import ghn_fast
from ghn_fast.deepnets import SampledNets
from ghn_fast.graph import ArchGraph
from ghn_fast.graph.batch import GraphBatch
from ghn_fast.hypernet.config import GHNConfig
from ghn_fast.hypernet.propagate import GatedGNN

# Least multiples of the baseline that a case should reach, on CPU.
TARGETS = {"forward": 40, "forward+backward": 25}
# On a GPU, forward and backward of a meta-batch of 8: the ratio on the same GPU, and milliseconds.
GPU_RATIO, GPU_MS = 100, 1.5


def train_graphs(count: int) -> list[ArchGraph]:
    """Graphs of the first networks of the training split."""
    nets = SampledNets("train", count, seed=1)
    return [nets[index].graph for index in range(count)]


def cases() -> dict[str, Callable[[], list[ArchGraph]]]:
    """The batches that are measured on CPU."""
    from torchvision.models import resnet50, resnet152

    return {
        "ResNet-50": lambda: [ghn_fast.capture(resnet50(num_classes=10))],
        "ResNet-152": lambda: [ghn_fast.capture(resnet152(num_classes=10))],
        "8 train graphs": lambda: train_graphs(8),
    }


class Setup:
    """The op and the baseline, float32, on the same batch, weights and device."""

    def __init__(self, graphs: Sequence[ArchGraph], device: str) -> None:
        torch.manual_seed(0)
        batch = GraphBatch(graphs)
        self.slow = Baseline(batch.edges, batch.offsets).to(device)
        self.batch = batch.to(device)
        self.gnn = GatedGNN(GHNConfig()).to(device)
        width = self.gnn.update.hidden_size
        self.x = torch.randn(batch.num_nodes, width).to(device).requires_grad_()
        self.direction = torch.randn(batch.num_nodes, width).to(device)
        self.inputs = [self.x, *self.gnn.parameters()]

    def native(self) -> Tensor:
        """Run the op."""
        return self.gnn(self.x, self.batch)

    def baseline(self) -> Tensor:
        """Run the node-by-node loop."""
        gnn = self.gnn
        return self.slow(self.x, gnn.message, gnn.virtual_message, gnn.update)

    def gradients(self, run: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        """Run forward and backward."""
        return torch.autograd.grad(run(), self.inputs, self.direction)

    def check(self) -> None:
        """Compare value and gradients.

        Raises:
            RuntimeError: If they differ.
        """
        fast = [self.native(), *self.gradients(self.native)]
        slow = [self.baseline(), *self.gradients(self.baseline)]
        for a, b in zip(fast, slow, strict=True):
            worst = float(((a - b).abs().max() / b.abs().max()).detach())
            # Written so that NaN differs, too.
            if not worst <= 1e-4:
                raise RuntimeError(f"results differ by {worst:.1e} of the largest element")


def measure_cpu(graphs: list[ArchGraph], repeats: int) -> dict[str, dict[str, float]]:
    """Measure forward, and forward with backward, of one batch on CPU."""
    with ghn_fast.backend("cpu"):
        case = Setup(graphs, "cpu")
        case.check()
        with torch.no_grad():
            forward = compare(case.native, case.baseline, repeats)
        both = compare(
            lambda: case.gradients(case.native), lambda: case.gradients(case.baseline), repeats
        )
        return {"forward": forward, "forward+backward": both}


def measure_gpu(repeats: int, device: str = "cuda") -> list[Measurement]:
    """Measure forward and backward of a meta-batch of 8 train graphs on the GPU."""
    with ghn_fast.backend(device):
        case = Setup(train_graphs(8), device)
        case.check()
        clock = cuda_seconds if device == "cuda" else seconds
        result = compare(
            lambda: case.gradients(case.native),
            lambda: case.gradients(case.baseline),
            repeats,
            clock,
        )
        with torch.no_grad():
            forward = compare(case.native, case.baseline, repeats, clock)
    details: dict[str, Any] = {"nodes": case.batch.num_nodes, "edges": len(case.batch.edges)}
    name = "gated_gnn, 8 train graphs, forward and backward"
    return [
        Measurement(
            f"{name}, against the loop over the nodes",
            result["ratio"],
            "times",
            at_least=GPU_RATIO,
            details=details | result,
        ),
        Measurement(name, result["native_ms"], "ms", at_most=GPU_MS, details=details),
        Measurement(
            "gated_gnn, 8 train graphs, forward",
            forward["native_ms"],
            "ms",
            details=details | forward,
        ),
    ]
