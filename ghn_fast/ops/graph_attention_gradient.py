"""What autograd and tracing know of the ops of graph_attention, the compiled ones and Triton's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def forward_fake(
    qkv: Tensor, codes: Tensor, offsets: Sequence[int], table: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs (N, H d), and what logits are normalised by (N, H), without numbers."""
    nodes, _, heads, width = qkv.shape
    return qkv.new_empty(nodes, heads * width), qkv.new_empty(nodes, heads)


def backward_fake(
    grad: Tensor,
    qkv: Tensor,
    codes: Tensor,
    offsets: Sequence[int],
    table: Tensor,
    out: Tensor,
    logsum: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of ``qkv`` and ``table``, without numbers."""
    return qkv.new_empty(qkv.shape), table.new_empty(table.shape)


def differentiate(forward: str, backward: str) -> None:
    """Tell autograd the op ``backward`` for the gradients of the op ``forward``.

    Args:
        forward, backward: Names of ops, without ``ghn_fast::``, with the arguments of
            :func:`forward_fake` and :func:`backward_fake`.
    """

    def gradients(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
        if grad is None:
            return None, None, None, None
        qkv, codes, table, out, logsum = ctx.saved_tensors
        grad_qkv, grad_table = getattr(torch.ops.ghn_fast, backward)(
            grad, qkv, codes, ctx.offsets, table, out, logsum
        )
        return grad_qkv, None, None, grad_table

    torch.library.register_autograd(f"ghn_fast::{forward}", gradients, setup_context=_setup_context)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, codes, ctx.offsets, table = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(qkv, codes, table, *output)
