"""Linear layers that share one weight, of which each takes a slice; on the fastest library.

The decoder computes with the first rows of its weights only, with another number of them for every
group of parameters. Sliced by autograd, each group would allocate, clear and add a gradient of the
whole weight; here all groups add to one gradient.

On CPUs with AVX-512 that are not Intel's, oneDNN is twice as fast at float32 products of the
decoder's sizes as the BLAS that torch calls (240 against 110 GFLOP/s on one core of an AMD
EPYC). torch offers it through an op without gradients, which are made here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ghn_fast.ops import sliced_linears_triton

# Elements of a weight below which the setting up of a call of oneDNN outweighs the gain. The number
# of inputs does not count: the same node gets the same numbers in a small batch and in a large one.
_LEAST_WEIGHT = 1 << 15

Window = tuple[slice, ...]
Key = tuple[tuple[int, int], ...]


def sliced_linears(
    inputs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    sizes: Sequence[tuple[int, ...]],
    *,
    firsts: Sequence[tuple[int, ...]] | None = None,
    relu: bool = False,
) -> list[Tensor]:
    """Linear layers with some rows of one weight, each optionally followed by a ReLU.

    Differentiable once in inputs, weight and bias.

    Args:
        inputs: G tensors (n_g, in).
        weight: (r_1, ..., r_k, in); rows in k dimensions.
        bias: (r_1, ..., r_k).
        sizes: For each input the numbers (c_1, ..., c_k) of rows that its layer has.
        firsts: For each input the first of them in each dimension, 0 by default.
        relu: Whether to apply max(0, .).

    Returns:
        G tensors (n_g, c_1 * ... * c_k).
    """
    if not inputs:
        return []
    windows = tuple(
        tuple(slice(start, start + count) for start, count in zip(first, size, strict=True))
        for first, size in zip(firsts or [(0,) * len(size) for size in sizes], sizes, strict=True)
    )
    if sliced_linears_triton.can_run(weight, inputs):
        return sliced_linears_triton.sliced_linears(inputs, weight, bias, windows, relu)
    if not torch.is_grad_enabled() or not any(
        tensor.requires_grad for tensor in (weight, bias, *inputs)
    ):
        return _sliced_linears(inputs, _rows(weight, windows), bias, windows, relu)
    return list(_SlicedLinears.apply(weight, bias, windows, relu, *inputs))  # type: ignore[no-untyped-call]


class _SlicedLinears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        bias: Tensor,
        windows: tuple[Window, ...],
        relu: bool,
        *inputs: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.windows, ctx.relu = windows, relu
        # Kept, because copying them again takes as long as a small product.
        ctx.rows = _rows(weight, windows)
        outputs = _sliced_linears(inputs, ctx.rows, bias, windows, relu)
        ctx.save_for_backward(weight, bias, *inputs, *(outputs if relu else ()))
        return tuple(outputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        weight, bias, *rest = ctx.saved_tensors
        inputs, outputs = rest[: len(ctx.windows)], rest[len(ctx.windows) :]
        need_weight, need_bias = ctx.needs_input_grad[:2]
        grad_weight = torch.zeros_like(weight) if need_weight else None
        grad_bias = torch.zeros_like(bias) if need_bias else None
        grad_inputs: list[Tensor | None] = []
        for i, (window, grad) in enumerate(zip(ctx.windows, grads, strict=True)):
            if grad is None:
                grad_inputs.append(None)
                continue
            if ctx.relu:
                grad = torch.ops.aten.threshold_backward(grad, outputs[i], 0)
            count, grad = len(grad), _padded(grad)
            size = [part.stop - part.start for part in window]
            if grad_weight is not None:
                numel = math.prod(size) * weight.shape[-1]
                x = _padded(inputs[i])
                product = _product(grad.t().contiguous(), x.t(), None, False, numel)
                grad_weight[window] += product.view(*size, -1)
            if grad_bias is not None:
                grad_bias[window] += grad.sum(0).view(size)
            needed = ctx.needs_input_grad[4 + i]
            rows = ctx.rows[_key(window)]
            grad_inputs.append(_product(grad, rows.t(), None, False)[:count] if needed else None)
        return grad_weight, grad_bias, None, None, *grad_inputs


def _sliced_linears(
    inputs: Sequence[Tensor],
    rows: dict[Key, Tensor],
    bias: Tensor,
    windows: Sequence[Window],
    relu: bool,
) -> list[Tensor]:
    return [
        _linear(x, rows[_key(window)], bias[window].reshape(-1).contiguous(), relu)
        for x, window in zip(inputs, windows, strict=True)
    ]


def _rows(weight: Tensor, windows: Sequence[Window]) -> dict[Key, Tensor]:
    """Rows of a weight as matrices (c_1 * ... * c_k, in), contiguous, one for each window."""
    return {
        key: weight[window].reshape(-1, weight.shape[-1]).contiguous()
        for key, window in {_key(window): window for window in windows}.items()
    }


def _key(window: Window) -> Key:
    """A window to look up by: slices cannot be."""
    return tuple((part.start, part.stop) for part in window)


def product(a: Tensor, b: Tensor) -> Tensor:
    """A B^T (n, m) of (n, r) and (m, r) on the fastest library, without gradients."""
    return _linear(a, b, None, relu=False)


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """A whole linear layer (n, in) -> (n, out) on the fastest library, differentiable."""
    grads = torch.is_grad_enabled() and (x.requires_grad or layer.weight.requires_grad)
    if grads or layer.weight.numel() < _LEAST_WEIGHT:
        return F.linear(x, layer.weight, layer.bias)
    return _linear(x, layer.weight, layer.bias, relu=False)


def _padded(x: Tensor) -> Tensor:
    """Rows of zeros behind (n, in), contiguous, so that few numbers of rows occur.

    oneDNN compiles a kernel for each of them, which takes as long as a product of some ten million
    multiplications.
    """
    rows = len(x)
    if x.dtype != torch.float32 or x.device.type != "cpu" or not _has_onednn():
        return x.contiguous()
    # At most an eighth more.
    step = max(4, 1 << max(rows.bit_length() - 4, 0))
    missing = -rows % step
    return F.pad(x, (0, 0, 0, missing)) if missing else x.contiguous()


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    """x W^T + b, then a ReLU if it is asked for."""
    return _product(_padded(x), weight, bias, relu)[: len(x)]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, numel: int = 0) -> Tensor:
    """x W^T + b; ``numel`` elements in the layer's weight, where ``weight`` is none of its own."""
    if (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and (numel or weight.numel()) >= _LEAST_WEIGHT
        and x.numel() > 0
        and _has_onednn()
    ):
        after = "relu" if relu else "none"
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, after, [], "")
    result = F.linear(x, weight, bias)
    return result.relu_() if relu else result


@cache
def _has_onednn() -> bool:
    """Whether torch has the op, as it is called here, and the CPU gains from it."""
    if not torch.backends.mkldnn.is_available():
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or _is_intel():
        return False
    try:
        x, weight, bias = torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)
        found = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "relu", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.equal(found, torch.full((2, 4), 4.0))


def _is_intel() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            return "GenuineIntel" in file.read(2000)
    except OSError:
        return True
