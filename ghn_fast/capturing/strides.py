"""Shapes and strides of meta tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Size = int | Sequence[int]
"""One extent for all dimensions, or one for each."""


def is_floating(tensor: Tensor) -> bool:
    """Whether a tensor is a floating-point meta tensor."""
    return tensor.is_meta and tensor.is_floating_point()


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is a contiguous floating-point meta tensor."""
    return tensor.is_meta and tensor.is_floating_point() and tensor.is_contiguous()


def layout_of(tensor: Tensor) -> tuple[int, ...] | None:
    """Strides of a floating-point tensor, empty if it is contiguous, ``None`` if it has gaps."""
    if not (tensor.is_meta and tensor.is_floating_point()):
        return None
    if tensor.is_contiguous():
        return ()
    strides = tensor.stride()
    expected = 1
    for stride, size in sorted(zip(strides, tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return None
        expected *= size
    return strides


def joint_layout(tensors: Sequence[Tensor], shape: Sequence[int]) -> tuple[int, ...] | None:
    """Layout of an elementwise result, as :func:`layout_of`; ``None`` where it is not obvious."""
    layouts = [layout_of(tensor) for tensor in tensors]
    if None in layouts:
        return _closed(tensors[0]) if len(tensors) == 1 else None
    if not any(layouts):
        return ()
    full = [
        layout for layout, t in zip(layouts, tensors, strict=True) if t.shape == torch.Size(shape)
    ]
    if len(full) == len(tensors):
        return full[0] if full[0] == full[-1] else None
    # A scale or shift of one dimension takes the layout of the features.
    vectors = [t for t in tensors if t.shape != torch.Size(shape)]
    one = sum(size > 1 for size in vectors[0].shape) <= 1
    return full[0] if len(full) == 1 and one else None


def _closed(tensor: Tensor) -> tuple[int, ...] | None:
    """Strides of a tensor once its gaps are closed, which is what an elementwise result has."""
    if not is_floating(tensor):
        return None
    shape, strides = tensor.shape, tensor.stride()
    large = [(stride, size) for stride, size in zip(strides, shape, strict=True) if size > 1]
    if len(dict(large)) < len(large) or any(stride == 0 for stride, _ in large):
        return None
    closed, step = [0] * len(shape), 1
    for place in sorted(range(len(shape)), key=lambda n: (strides[n], shape[n])):
        closed[place] = step
        step *= shape[place]
    return tuple(closed)


def joins_contiguous(tensor: Tensor) -> bool:
    """Whether a concatenation of such tensors is contiguous, and floating-point on meta."""
    if not is_floating(tensor):
        return False
    # Otherwise it could be channels last.
    dims = tensor.dim()
    return tensor.is_contiguous() or dims < 4 or tensor.stride(1) > tensor.stride(-1)


def sizes(value: Any, dims: int) -> tuple[int, ...]:
    """One extent per dimension, as PyTorch reads the arguments of a convolution."""
    if isinstance(value, int):
        return (value,) * dims
    sizes = tuple(value)
    return sizes * dims if len(sizes) == 1 else sizes


def broadcast(first: Sequence[int], second: Sequence[int]) -> Sequence[int] | None:
    """Common shape of two shapes, ``None`` if there is none."""
    if first == second:
        return first
    if len(first) < len(second):
        first, second = second, first
    result = list(first)
    for place in range(1, len(second) + 1):
        have, want = result[-place], second[-place]
        if have == 1:
            result[-place] = want
        elif want not in (1, have):
            return None
    return result
