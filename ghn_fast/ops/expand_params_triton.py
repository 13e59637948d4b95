"""The Triton back end of expand_params as custom ops; the kernels are in kernels/expand_params.py.

They are loaded when they are first used, so that importing this module needs no Triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ghn_fast.ops import triton_kernels


def problem() -> str | None:
    """Why the Triton kernels cannot be used, or ``None`` where they can."""
    return triton_kernels.problem("expand_params")


def pack(table: Tensor, blocks: Sequence[Tensor], numel: int) -> tuple[list[Tensor], bool]:
    """The order of work on the device of the blocks, and whether places in them need 64 bits.

    Args:
        table: ``ParamPlan.table`` (R, 13) of a plan that has been checked against the blocks.
        blocks: The block tensors; their sizes and device matter.
        numel: Number of elements of the flat buffer.
    """
    sizes = [block.numel() for block in blocks]
    return _kernels().pack(table, sizes, numel, blocks[0].device)


def expand(blocks: Sequence[Tensor], work: tuple[list[Tensor], bool], numel: int) -> Tensor:
    """Flat buffer (numel,), differentiable once in the blocks; ``work`` is what :func:`pack` gives.

    Raises:
        TypeError: If the kernels do not know the dtype of the blocks.
    """
    flat = [block.reshape(-1) for block in blocks]
    joined = flat[0] if len(flat) == 1 else torch.cat(flat)
    return torch.ops.ghn_fast.expand_params_triton(joined, *work, numel)


def _kernels() -> ModuleType:
    return triton_kernels.load("expand_params")


def _expand(blocks: Tensor, work: Sequence[Tensor], large: bool, numel: int) -> Tensor:
    return _kernels().expand(blocks.contiguous(), work, large, numel)


def _expand_backward(grad: Tensor, blocks: Tensor, work: Sequence[Tensor], large: bool) -> Tensor:
    return _kernels().expand_backward(grad.contiguous(), blocks.contiguous(), work, large)


def _fake(blocks: Tensor, work: Sequence[Tensor], large: bool, numel: int) -> Tensor:
    return blocks.new_empty(numel)


def _backward_fake(grad: Tensor, blocks: Tensor, work: Sequence[Tensor], large: bool) -> Tensor:
    return torch.empty_like(blocks, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    blocks, work, large, _ = inputs
    ctx.large = large
    ctx.save_for_backward(blocks, *work)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    blocks, *work = ctx.saved_tensors
    grads = torch.ops.ghn_fast.expand_params_triton_backward(grad, blocks, work, ctx.large)
    return grads, [None] * len(work), None, None


# The blocks are joined before, where autograd knows how: an op has one gradient then, which is not
# a list of parts of one tensor.
triton_kernels.define(
    "expand_params_triton",
    "(Tensor blocks, Tensor[] work, bool large, int numel) -> Tensor",
    _expand,
    _fake,
)
triton_kernels.define(
    "expand_params_triton_backward",
    "(Tensor grad, Tensor blocks, Tensor[] work, bool large) -> Tensor",
    _expand_backward,
    _backward_fake,
)
torch.library.register_autograd(
    "ghn_fast::expand_params_triton", _backward, setup_context=_setup_context
)
