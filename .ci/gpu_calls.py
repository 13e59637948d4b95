"""A dozen small calls of the ops on a GPU, for compute-sanitizer and as a first look.

    python .ci/gpu_calls.py [--device cuda]

On the CPU they run on the CPU's back ends: that is a rehearsal.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from gpu_parts import ROOT

# Largest difference that is let pass, of the largest element: a first look, not the tests.
LOOSE = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 5e-2}


def same(name: str, found: Any, expected: Any) -> None:
    """Compare two tensors loosely.

    Raises:
        RuntimeError: If they differ, or are not finite.
    """
    scale = float(expected.abs().max()) or 1.0
    worst = float((found.cpu().double() - expected.cpu().double()).abs().max()) / scale
    kind = str(found.dtype).removeprefix("torch.")
    # Written so that NaN differs, too.
    if not worst <= LOOSE[kind]:
        raise RuntimeError(f"{name}: {kind} differs from the CPU by {worst:.1e} of the largest")
    print(f"{name}, {kind}: {worst:.1e}", flush=True)


def gated_gnn(device: str, width: int, dtype_name: str, *, compare: bool) -> None:
    """Forward and backward pass over two graphs of some width."""
    import torch

    import ghn_fast
    from ghn_fast.deepnets import SampledNets
    from ghn_fast.graph.batch import GraphBatch
    from ghn_fast.hypernet.propagate import GatedGNN

    torch.manual_seed(0)
    dtype = getattr(torch, dtype_name)
    nets = SampledNets("train", 3, seed=1)
    graphs = [nets[0].graph, nets[2].graph]
    config = ghn_fast.GHNConfig(hid=width, max_shape=(16, 16, 5, 5))
    gnn = GatedGNN(config).to(dtype)
    batch = GraphBatch(graphs)
    x = torch.randn(batch.num_nodes, width, dtype=dtype)
    here = run_gnn(gnn, x, batch) if compare else None
    there = run_gnn(gnn.to(device), x.to(device), GraphBatch(graphs).to(device))
    for index, tensor in enumerate(there):
        if here is not None:
            same(f"gated_gnn {width}, result {index}", tensor, here[index])


def run_gnn(gnn: Any, x: Any, batch: Any) -> list[Any]:
    """Value and gradients."""
    import torch

    x = x.detach().requires_grad_()
    out = gnn(x, batch)
    inputs = [x, *gnn.parameters()]
    return [out.detach(), *torch.autograd.grad(out.float().sum(), inputs)]


def expand_params(device: str, dtype_name: str, *, compare: bool) -> None:
    """Forward and backward pass of the expansion of a network's parameters."""
    import torch

    import ghn_fast
    from ghn_fast.deepnets import SampledNets
    from ghn_fast.hypernet.decode_plan import plan_decoding
    from ghn_fast.ops.expand_params import expand_params as op

    torch.manual_seed(0)
    dtype = getattr(torch, dtype_name)
    config = ghn_fast.GHNConfig(hid=8, max_shape=(16, 16, 5, 5))
    plan = plan_decoding([SampledNets("train", 1, seed=1)[0].graph], config).params
    sizes = [0] * (1 + max(row.block for row in plan.rows))
    for row in plan.rows:
        size = torch.Size(row.block_shape).numel()
        sizes[row.block] = max(sizes[row.block], row.source + size)
    blocks = [torch.randn(size, dtype=dtype) for size in sizes]

    def run(device: str) -> list[Any]:
        leaves = [block.to(device).requires_grad_() for block in blocks]
        flat = op(leaves, plan)
        return [flat.detach(), *torch.autograd.grad(flat.float().sum(), leaves)]

    here = run("cpu") if compare else None
    for index, tensor in enumerate(run(device)):
        if here is not None:
            same(f"expand_params, result {index}", tensor, here[index])


def predict(device: str) -> None:
    """A network predicted at once and by a Predictor, which replays a CUDA graph."""
    import torch
    import torchvision

    import ghn_fast

    torch.manual_seed(0)
    ghn = ghn_fast.GHN(ghn_fast.GHNConfig(hid=8, max_shape=(16, 16, 5, 5))).eval()
    models = [torchvision.models.resnet18(num_classes=10) for _ in range(2)]
    ghn.predict(models[0])
    predictor = ghn.to(device).compile_plan(models[1].to(device))
    for _ in range(3):
        predictor()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        if not torch.allclose(one, other.cpu(), rtol=1e-3, atol=1e-4):
            raise RuntimeError("Predictor: a parameter differs from the CPU's")
    print("Predictor: right", flush=True)


def steps(device: str) -> None:
    """Steps of meta-training, eager and replayed, from the same weights to the same losses."""
    from gpu_steps import Steps, Way

    losses = []
    for graphs in (False, device == "cuda"):
        run = Steps(Way("float32", True, graphs), device, small=True)
        found = []
        for number in range(4):
            result = run.trainer.step(run.architectures, run.images, run.targets, number)
            if result.skipped:
                raise RuntimeError(f"step {number}: skipped {result.failures}")
            found.append(result.loss)
        run.close()
        losses.append(found)
    if any(abs(a - b) > 1e-3 * abs(a) for a, b in zip(*losses, strict=True)):
        raise RuntimeError(f"losses of eager and replayed steps differ: {losses}")
    print(f"steps: {losses[0]}", flush=True)


def run_all(device: str, *, compare: bool) -> None:
    """All calls of ops, compared with the CPU or not."""
    for width, dtype in ((8, "float32"), (32, "float32"), (32, "float64"), (32, "bfloat16")):
        gated_gnn(device, width, dtype, compare=compare and dtype != "bfloat16")
    gated_gnn(device, 300, "float32", compare=compare)
    for dtype in ("float32", "float64", "bfloat16"):
        expand_params(device, dtype, compare=compare)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    run_all(arguments.device, compare=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
