"""Expansion of parameters against the memory: filling it on CPU, copying it on a GPU."""

from __future__ import annotations

from math import prod

import torch
from measure import Clock, Measurement, compare, cuda_seconds, seconds, spread
from torch import Tensor

import ghn_fast
from ghn_fast.deepnets import SampledNets
from ghn_fast.graph import ArchGraph
from ghn_fast.hypernet.config import GHNConfig
from ghn_fast.hypernet.decode_plan import plan_decoding
from ghn_fast.ops import backend
from ghn_fast.ops.expand_params import ParamPlan, expand_params, expand_params_into

CPU_NETWORKS = ("resnet50", "wide_resnet101_2")
# Least part of the bandwidth of filling the same memory.
CPU_PART = 0.6
GPU_BYTES = 10**9
# Least part of the bandwidth of a copy, both counted in bytes read and written.
GPU_PART = 0.6


def batch_of(size: int) -> ParamPlan:
    """Plan the first training networks whose float32 parameters take ``size`` bytes together."""
    graphs: list[ArchGraph] = []
    elements = 0
    nets = SampledNets("train", 10**6, seed=1)
    while 4 * elements < size:
        graphs.append(nets[len(graphs)].graph)
        elements += sum(prod(target.shape) for target in graphs[-1].targets)
    return plan_decoding(graphs, GHNConfig()).params


def wide_networks(count: int) -> ParamPlan:
    """Plan ``count`` times wide_resnet101_2, whose blocks are repeated many times."""
    from torchvision.models import wide_resnet101_2

    graph = ghn_fast.capture(wide_resnet101_2(), input_shape=(3, 224, 224))
    return plan_decoding([graph] * count, GHNConfig(num_classes=1000)).params


def blocks_for(plan: ParamPlan, device: str) -> list[Tensor]:
    """Make random float32 blocks that a plan can read."""
    sizes: dict[int, int] = {}
    for row in plan.rows:
        end = row.source + prod(row.block_shape)
        sizes[row.block] = max(sizes.get(row.block, 0), end)
    generator = torch.Generator(device).manual_seed(0)
    return [
        torch.randn(sizes.get(block, 0), generator=generator, device=device)
        for block in range(max(sizes, default=-1) + 1)
    ]


def moved_bytes(plan: ParamPlan) -> int:
    """What has to be read, each element of a block once, and written, in float32."""
    used = {
        (row.block, row.source): prod(map(min, row.block_shape, row.shape)) for row in plan.rows
    }
    return 4 * (plan.numel + sum(used.values()))


def same(actual: Tensor, expected: Tensor, step: int = 1 << 26) -> bool:
    """Whether two tensors are equal within the tolerance of one float32 op, compared in parts."""
    if actual.shape != expected.shape:
        return False
    parts = zip(actual.split(step), expected.split(step), strict=True)
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in parts)


def copy_seconds(size: int, repeats: int, clock: Clock, device: str) -> list[float]:
    """Measure times of copying ``size`` bytes on a device, after a warm-up."""
    source = torch.ones(max(size // 4, 1), device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    return [clock(lambda: target.copy_(source), 0.05) for _ in range(repeats)]


def measure_plan(name: str, plan: ParamPlan, repeats: int, device: str) -> list[Measurement]:
    """Measure forward and backward of one plan, as parts of the bandwidth of a copy."""
    clock = cuda_seconds if device == "cuda" else seconds
    blocks = blocks_for(plan, device)
    with ghn_fast.backend("reference"):
        expected = expand_params(blocks, plan)
    copies = copy_seconds(4 * plan.numel, repeats, clock, device)
    bandwidth = 2 * 4 * plan.numel / spread(copies)["median_ms"]
    with ghn_fast.backend(device):
        if not same(expand_params(blocks, plan), expected):
            raise RuntimeError("results differ from the reference")
        forward = [clock(lambda: expand_params(blocks, plan), 0.05) for _ in range(repeats)]
        leaves = [block.requires_grad_() for block in blocks]
        out = expand_params(leaves, plan)
        backward = [
            clock(lambda: torch.autograd.grad(out, leaves, expected, retain_graph=True), 0.05)
            for _ in range(repeats)
        ]
    moved = moved_bytes(plan)
    found = []
    for what, times, least in (("forward", forward, GPU_PART), ("backward", backward, None)):
        details = {
            **spread(times),
            "rows": len(plan.rows),
            "bytes_written": 4 * plan.numel,
            "bytes_moved": moved,
            "copy_gb_per_s": bandwidth / 1e6,
        }
        part = moved / details["median_ms"] / bandwidth
        label = f"expand_params, {name}, {what}"
        found.append(
            Measurement(label, part, "of the bandwidth of a copy", at_least=least, details=details)
        )
    return found


def measure_cpu(repeats: int) -> list[Measurement]:
    """Compare expansion straight into a network's own storage with filling that storage.

    The floor is writing every element once. The two are timed in turns; a network is filled tensor
    by tensor.
    """
    found = []
    for name in CPU_NETWORKS:
        found += _measure_network(name, repeats)
    return found


def _measure_network(name: str, repeats: int) -> list[Measurement]:
    import torchvision

    model = torchvision.models.get_model(name, num_classes=10)
    decoding = plan_decoding([ghn_fast.capture(model)], GHNConfig())
    plan = decoding.params
    params = dict(model.named_parameters())
    out = [params[row] for row in decoding.ranges[0]]
    blocks = blocks_for(plan, "cpu")

    def fill() -> None:
        with torch.no_grad():
            for tensor in out:
                tensor.fill_(1.0)

    with ghn_fast.backend("reference"):
        expected = expand_params(blocks, plan)
    with ghn_fast.backend("cpu"):
        expand_params_into(blocks, plan, out)
        for row, tensor in zip(plan.rows, out, strict=True):
            want = expected[row.offset : row.offset + tensor.numel()].view(tensor.shape)
            if not same(tensor.detach(), want):
                raise RuntimeError("results differ from the reference")
        forward = compare(lambda: expand_params_into(blocks, plan, out), fill, repeats)
        leaves = [block.requires_grad_() for block in blocks]
        flat = expand_params(leaves, plan)
        backward = compare(
            lambda: torch.autograd.grad(flat, leaves, expected, retain_graph=True),
            expected.sum,
            repeats,
        )
    size = {"bytes": 4 * plan.numel}
    return [
        Measurement(
            f"expand_params, {name}, forward",
            forward["ratio"],
            "of the bandwidth of filling the same memory",
            at_least=CPU_PART,
            details=size | forward,
        ),
        Measurement(
            f"expand_params, {name}, backward",
            backward["ratio"],
            "of the bandwidth of summing the gradient",
            details=size | backward,
        ),
    ]


def need_backend(device: str) -> None:
    """Raise RuntimeError where the op has no compiled back end that can run on a device."""
    if "expand_params" not in backend.ops():
        raise RuntimeError("expand_params has no compiled back end")
    problem = backend.problem_of("expand_params", device, device)
    if problem is not None:
        raise RuntimeError(f"expand_params cannot run on {device}: {problem}")


def measure_gpu_train(repeats: int) -> list[Measurement]:
    """Measure many training networks, worth 1 GB of parameters, on the GPU."""
    need_backend("cuda")
    return measure_plan("1 GB of train networks", batch_of(GPU_BYTES), repeats, "cuda")


def measure_gpu_wide(repeats: int) -> list[Measurement]:
    """Measure two wide_resnet101_2, worth 1 GB of parameters, on the GPU."""
    need_backend("cuda")
    return measure_plan("2 x wide_resnet101_2", wide_networks(2), repeats, "cuda")
