"""Batch normalisation by the statistics of the batch, with scale, shift and an optional ReLU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ghn_fast.ops.backend import extension_problem, register_op, resolve

# What the compiled op takes; the reference takes every floating-point type.
_COMPILED = (torch.float32, torch.bfloat16)


def batch_norm_act(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float = 1e-5, relu: bool = False
) -> Tensor:
    """Normalise images by the mean and the variance of each channel over the whole batch.

        y = (x - mean) / sqrt(variance + eps) weight + bias,    out = max(0, y) with `relu`, else y

    with the biased variance (arXiv 1502.03167). Statistics are put together in double precision
    from those of small portions of the batch, and the rest is computed in float32, also for
    bfloat16. What backward needs is ``x`` and two numbers per channel.

    Runs on the back ends ``reference`` and ``cpu`` (see :mod:`ghn_fast.ops.backend`); ``cpu`` is
    differentiable once and leaves types other than float32 and bfloat16 to the reference.

    Args:
        x: Images (N, C, H, W), floating point. Those that are not in ``torch.channels_last`` are
            copied.
        weight: Scale (C,), in float32 or the dtype of ``x``; 1 for ``None``.
        bias: Shift (C,), the same; 0 for ``None``.
        eps: What is added to the variance, at least 0.
        relu: Whether negative results become 0.

    Returns:
        Images (N, C, H, W) in ``torch.channels_last``; empty for an empty input. One value in a
        channel gives the shift. Values and gradients are the same for any number of threads.

    Raises:
        TypeError: If a tensor is not floating point, or a dtype does not fit.
        ValueError: If a shape does not fit, ``eps`` is negative, the tensors are on different
            devices, or the back end that is asked for cannot run.
    """
    _check(x, weight, bias, eps)
    chosen = resolve("batch_norm_act", x.device.type)
    if chosen == "reference" or x.dtype not in _COMPILED:
        return reference(x, weight, bias, eps, relu)
    out: Tensor = torch.ops.ghn_fast.batch_norm_act(x, weight, bias, eps, relu)[0]
    return out


def reference(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, relu: bool
) -> Tensor:
    """:func:`batch_norm_act` in plain PyTorch; differentiable any number of times."""
    x = x.contiguous(memory_format=torch.channels_last)
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    weight, bias = (None if t is None else t.to(wide.dtype) for t in (weight, bias))
    if x.numel() == 0 or x.numel() == x.shape[1]:
        # F.batch_norm takes at least two values in a channel.
        wide = wide - wide
        wide = wide if weight is None else wide * _by_channel(weight)
        wide = wide if bias is None else wide + _by_channel(bias)
    else:
        wide = F.batch_norm(wide, None, None, weight, bias, True, 0.0, eps)
    return (torch.relu(wide) if relu else wide).to(x.dtype)


def _by_channel(tensor: Tensor) -> Tensor:
    return tensor[:, None, None]


def _check(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x: got {got}, needs a floating-point tensor")
    if x.ndim != 4:
        raise ValueError(f"x: got shape {tuple(x.shape)}, needs (N, C, H, W)")
    if not eps >= 0:
        raise ValueError(f"eps: got {eps}, needs 0 or more")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor) or tensor.dtype not in (torch.float32, x.dtype):
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name}: got {got}, needs float32 or {x.dtype}, the type of x")
        if tensor.shape != x.shape[1:2]:
            raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, needs ({x.shape[1]},)")
        if tensor.device != x.device:
            raise ValueError(
                f"{name}: got a tensor on {tensor.device}, needs it on {x.device}, as x is"
            )


def _images(like: Tensor) -> Tensor:
    return torch.empty(
        like.shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def _per_channel(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[1:2], dtype=torch.float32)


def _fake(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _images(x), _per_channel(x), _per_channel(x)


def _backward_fake(grad: Tensor, x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _images(x), _per_channel(x), _per_channel(x)


if extension_problem() is None:
    torch.library.register_fake("ghn_fast::batch_norm_act", _fake)
    torch.library.register_fake("ghn_fast::batch_norm_act_backward", _backward_fake)

register_op("batch_norm_act", {"cpu": extension_problem})
