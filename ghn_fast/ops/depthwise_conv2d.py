"""Depthwise convolution of images in channels_last, and its gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ghn_fast.ops.backend import extension_problem, register_op, resolve

# What the compiled op takes; the reference takes every floating-point type.
_COMPILED = (torch.float32, torch.bfloat16)

Pair = tuple[int, int]


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
) -> Tensor:
    """Convolve each channel of a batch of images with a kernel of its own.

        out[n, c, i, j] = sum over h, w of weight[c, 0, h, w] x[n, c, i', j']
        i' = i stride - padding + h dilation,    j' = j stride - padding + w dilation

    where x is 0 outside of the image. The sums are in float32 also for bfloat16, and rounded once.

    Runs on the back ends ``reference`` and ``cpu`` (see :mod:`ghn_fast.ops.backend`); ``cpu`` is
    differentiable once and leaves types other than float32 and bfloat16 to the reference.

    Args:
        x: Images (N, C, H, W), floating point. Those that are not in ``torch.channels_last`` are
            copied.
        weight: Kernels (C, 1, height, width) in the dtype of ``x``, on its device.
        stride: Distance of the pixels that outputs stand for; one number, or one for rows and one
            for columns.
        padding: Zeros on each side of the image.
        dilation: Distance of the pixels under neighbouring elements of a kernel.

    Returns:
        Images (N, C, H', W') in ``torch.channels_last``, where H' is
        (H + 2 padding - dilation (height - 1) - 1) // stride + 1; empty for an empty batch or no
        channels. Values and gradients are the same for any number of threads.

    Raises:
        TypeError: If a tensor is not floating point, or the dtypes differ.
        ValueError: If a shape does not fit, a kernel is larger than the image with its padding, a
            stride or a dilation is below 1 or a padding below 0, the tensors are on different
            devices, or the back end that is asked for cannot run.
    """
    stride, padding = _pair(stride, "stride", 1), _pair(padding, "padding", 0)
    dilation = _pair(dilation, "dilation", 1)
    _check(x, weight, stride, padding, dilation)
    chosen = resolve("depthwise_conv2d", x.device.type)
    if chosen == "reference" or x.dtype not in _COMPILED:
        return reference(x, weight, stride, padding, dilation)
    out: Tensor = torch.ops.ghn_fast.depthwise_conv2d(x, weight, stride, padding, dilation)
    return out


def reference(x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """:func:`depthwise_conv2d` in plain PyTorch; differentiable any number of times."""
    if x.numel() == 0 or weight.numel() == 0:
        size = _output_size(x, weight.shape[2:], stride, padding, dilation)
        # A sum over nothing, so that both are differentiable.
        return (x.sum() + weight.sum()).expand(*x.shape[:2], *size)
    out = F.conv2d(x, weight, None, stride, padding, dilation, groups=x.shape[1])
    return out.contiguous(memory_format=torch.channels_last)


def _pair(value: int | Pair, name: str, least: int) -> Pair:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(n, int) and n >= least for n in pair):
        raise ValueError(f"{name}: got {value!r}, needs one or two numbers, {least} or more")
    return pair


def _output_size(x: Tensor, kernel: Any, stride: Pair, padding: Pair, dilation: Pair) -> list[int]:
    if min(stride) < 1:
        raise ValueError(f"stride: got {tuple(stride)}, needs one or two numbers, 1 or more")
    return [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    ]


def _check(x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> None:
    for name, tensor in (("x", x), ("weight", weight)):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name}: got {got}, needs a floating-point tensor")
    if x.ndim != 4:
        raise ValueError(f"x: got shape {tuple(x.shape)}, needs (N, C, H, W)")
    if weight.ndim != 4 or weight.shape[0] != x.shape[1] or weight.shape[1] != 1:
        raise ValueError(
            f"weight: got shape {tuple(weight.shape)}, needs ({x.shape[1]}, 1, height, width)"
        )
    if weight.dtype != x.dtype:
        raise TypeError(f"weight: got {weight.dtype}, needs {x.dtype}, the type of x")
    if weight.device != x.device:
        raise ValueError(
            f"weight: got a tensor on {weight.device}, needs it on {x.device}, as x is"
        )
    for size, kernel, p, d in zip(x.shape[2:], weight.shape[2:], padding, dilation, strict=True):
        if kernel < 1 or size + 2 * p <= d * (kernel - 1):
            raise ValueError(
                f"weight: got a kernel of {kernel} with dilation {d}, needs one of 1 to "
                f"{(size + 2 * p - 1) // d + 1} for {size} pixels with padding {p}"
            )


def _images(like: Tensor, size: Any) -> Tensor:
    return torch.empty(
        size, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def _fake(x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any) -> Tensor:
    size = _output_size(x, weight.shape[2:], stride, padding, dilation)
    return _images(x, (*x.shape[:2], *size))


def _grad_input_fake(grad: Tensor, weight: Tensor, height: Any, width: Any, *args: Any) -> Tensor:
    return _images(grad, (*grad.shape[:2], height, width))


def _grad_weight_fake(grad: Tensor, x: Tensor, height: Any, width: Any, *args: Any) -> Tensor:
    return x.new_empty((x.shape[1], 1, height, width))


if extension_problem() is None:
    torch.library.register_fake("ghn_fast::depthwise_conv2d", _fake)
    torch.library.register_fake("ghn_fast::depthwise_conv2d_grad_input", _grad_input_fake)
    torch.library.register_fake("ghn_fast::depthwise_conv2d_grad_weight", _grad_weight_fake)

register_op("depthwise_conv2d", {"cpu": extension_problem})
