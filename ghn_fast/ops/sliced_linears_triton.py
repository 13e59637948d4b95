"""Linear layers with windows of one weight on a GPU, in one launch each way.

The kernels are in kernels/sliced_linears.py; they are loaded when they are first used.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ghn_fast.ops import triton_kernels
from ghn_fast.ops.backend import requested

Window = tuple[slice, ...]


def can_run(weight: Tensor, inputs: Sequence[Tensor]) -> bool:
    """Whether the kernels can run on tensors, and no other back end was asked for."""
    return (
        weight.is_cuda
        and weight.ndim <= 4
        and all(x.dtype == weight.dtype == torch.float32 for x in inputs)
        and requested() in ("auto", "cuda", "triton")
        and triton_kernels.problem("sliced_linears") is None
    )


def sliced_linears(
    inputs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    windows: Sequence[Window],
    relu: bool,
) -> list[Tensor]:
    """:func:`ghn_fast.hypernet.linear.sliced_linears` of at least one input, differentiable once.

    Args:
        inputs: G tensors (n_g, K).
        weight: (r_1, ..., r_k, K) with k up to three.
        bias: (r_1, ..., r_k).
        windows: Rows of each layer.
        relu: Whether to apply max(0, .).
    """
    ones = 4 - weight.ndim
    weight, bias = weight[(None,) * ones], bias[(None,) * ones]
    windows = [(slice(0, 1),) * ones + tuple(window) for window in windows]
    sizes = np.array([[part.stop - part.start for part in window] for window in windows])
    starts = np.array([[part.start for part in window] for window in windows])
    rows, outputs = np.array([len(x) for x in inputs]), sizes.prod(1)
    elements = rows * outputs
    joined = inputs[0] if len(inputs) == 1 else torch.cat(list(inputs))
    table = np.column_stack(
        (np.cumsum(rows) - rows, rows, outputs, np.cumsum(elements) - elements, starts, sizes)
    )
    flat = _SlicedLinears.apply(joined, weight, bias, table, relu)  # type: ignore[no-untyped-call]
    parts = flat.split(elements.tolist())
    shapes = zip(rows.tolist(), outputs.tolist(), strict=True)
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _kernels() -> ModuleType:
    return triton_kernels.load("sliced_linears")


def _tiles(table: Any, of_outputs: bool) -> Any:
    """Group, tile of rows and tile of outputs of each program (T, 3)."""
    module = _kernels()
    down = -(-table[:, 1] // module.ROWS)
    across = -(-table[:, 2] // module.TILE) if of_outputs else np.minimum(table[:, 2], 1)
    counts = down * across
    group = np.repeat(np.arange(len(table)), counts)
    within = np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts)
    width = across[group]
    return np.column_stack((group, within // np.maximum(width, 1), within % np.maximum(width, 1)))


class _SlicedLinears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, table: Any, relu: bool
    ) -> Tensor:
        parts = [table, _tiles(table, True), _tiles(table, False)]
        flat = torch.from_numpy(np.concatenate([part.ravel() for part in parts]).astype(np.int64))
        sent = flat.to(x.device, non_blocking=True).split([part.size for part in parts])
        groups, tiles, ctx.lines = (t.view(p.shape) for t, p in zip(sent, parts, strict=True))
        x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
        numel = int((table[:, 1] * table[:, 2]).sum())
        out: Tensor = _kernels().forward(x, weight, bias, groups, tiles, numel, relu)
        ctx.relu = relu
        ctx.save_for_backward(x, weight, groups, *((out,) if relu else ()))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, groups, *rest = ctx.saved_tensors
        grad, module = grad.contiguous(), _kernels()
        out = rest[0] if rest else grad
        d_x = d_weight = d_bias = None
        if ctx.needs_input_grad[0]:
            d_x = module.grad_inputs(grad, out, weight, groups, ctx.lines, len(x), ctx.relu)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            d_weight, d_bias = module.grad_weight(grad, out, x, weight, groups, ctx.relu)
        return d_x, d_weight, d_bias, None, None
