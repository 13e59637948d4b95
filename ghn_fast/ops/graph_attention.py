"""Attention over all nodes of each graph of a batch, with a bias by the distance of two nodes.

For node i of a graph, head h of width d, and all nodes j of the same graph,

    logits_ij = q_i k_j / sqrt(d) + table[code_ij, h]
    out_i     = sum_j softmax_j(logits_ij) v_j

where ``code_ij`` numbers what is known of the pair (arXiv 2303.04143, section 3; arXiv 2106.05234).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from ghn_fast.ops import graph_attention_triton
from ghn_fast.ops.backend import cuda_problem, library_problem, register_op, resolve
from ghn_fast.ops.graph_attention_gradient import backward_fake, differentiate, forward_fake

# Widest head of the CUDA kernels, and most codes, whose sums lie in the memory of a block.
_WIDEST = 32
_MOST_CODES = 256


def graph_attention(qkv: Tensor, codes: Tensor, offsets: Sequence[int], table: Tensor) -> Tensor:
    """Attention within each graph of a batch.

    Runs on the back ends ``reference``, ``cpu``, ``cuda`` and ``triton`` (see
    :mod:`ghn_fast.ops.backend`). Other types than float32 go to the reference, whichever is asked
    for, and so does what there are no kernels for: heads wider than 32, tables of more than 256
    codes on ``cuda`` and of more than 1,024 on ``triton``.

    Args:
        qkv: Queries, keys and values (N, 3, H, d) of all nodes, floating point.
        codes: For each graph the matrix (n, n) of codes, row by row, all in one tensor; uint8 or
            int16, from 0 to R - 1. Others are refused on ``cpu``; on a GPU they make
            outputs NaN.
        offsets: Number of the first node of each graph, and N at the end.
        table: Bias (R, H) of each code, of the type of ``qkv``.

    Returns:
        (N, H d), differentiable in ``qkv`` and ``table`` (once on the compiled back ends, any
        number of times on the reference); empty without nodes. A graph gets the same numbers in
        every batch, and the same for every number of threads.

    Raises:
        TypeError: If a tensor has another type.
        ValueError: If shapes, devices, codes or ``offsets`` do not fit; if the back end that is
            asked for cannot run.
    """
    _check(qkv, codes, offsets, table)
    backend = resolve("graph_attention", qkv.device.type)
    if backend == "reference" or qkv.dtype != torch.float32:
        return reference(qkv, codes, offsets, table)
    if backend == "triton":
        if not graph_attention_triton.has_instance(qkv.shape[3], len(table)):
            return reference(qkv, codes, offsets, table)
        return torch.ops.ghn_fast.graph_attention_triton(qkv, codes, list(offsets), table)[0]
    if backend == "cuda" and not (
        0 < qkv.shape[3] <= _WIDEST and 0 < len(table) <= _MOST_CODES and qkv.shape[2] > 0
    ):
        return reference(qkv, codes, offsets, table)
    return torch.ops.ghn_fast.graph_attention_forward(qkv, codes, list(offsets), table)[0]


def reference(qkv: Tensor, codes: Tensor, offsets: Sequence[int], table: Tensor) -> Tensor:
    """:func:`graph_attention` in plain PyTorch, graph by graph; differentiable without end."""
    results, start = [], 0
    for first, last in pairwise(offsets):
        size = last - first
        code = codes[start : start + size * size].view(size, size)
        start += size * size
        bias = table[code.long()].permute(2, 0, 1)  # (H, n, n)
        q, k, v = qkv[first:last].permute(1, 2, 0, 3).unbind(0)
        mixed = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=bias[None])
        results.append(mixed[0].transpose(0, 1).flatten(1))
    if not results:
        return qkv.new_zeros(0, qkv.shape[2] * qkv.shape[3])
    return torch.cat(results)


def _check(qkv: Tensor, codes: Tensor, offsets: Sequence[int], table: Tensor) -> None:
    if not qkv.is_floating_point():
        raise TypeError(f"qkv: got {qkv.dtype}, needs a floating-point type")
    if qkv.ndim != 4 or qkv.shape[1] != 3:
        raise ValueError(f"qkv: got shape {list(qkv.shape)}, needs (N, 3, H, d)")
    if table.dtype != qkv.dtype:
        raise TypeError(f"table: got {table.dtype}, needs {qkv.dtype}, as qkv has")
    if table.ndim != 2 or table.shape[1] != qkv.shape[2]:
        raise ValueError(f"table: got shape {list(table.shape)}, needs (R, {qkv.shape[2]})")
    if codes.dtype not in (torch.uint8, torch.int16):
        raise TypeError(f"codes: got {codes.dtype}, needs uint8 or int16")
    for name, tensor in (("codes", codes), ("table", table)):
        if tensor.device != qkv.device:
            raise ValueError(f"{name}: got a tensor on {tensor.device}, needs it on {qkv.device}")
    if (
        not offsets
        or offsets[0] != 0
        or offsets[-1] != len(qkv)
        or list(offsets) != sorted(offsets)
    ):
        raise ValueError(
            f"offsets: got {list(offsets)}, needs numbers that ascend from 0 to {len(qkv)}"
        )
    pairs = sum((last - first) ** 2 for first, last in pairwise(offsets))
    if codes.shape != (pairs,):
        raise ValueError(f"codes: got shape {list(codes.shape)}, needs ({pairs},)")


if library_problem() is None:
    torch.library.register_fake("ghn_fast::graph_attention_forward", forward_fake)
    torch.library.register_fake("ghn_fast::graph_attention_backward", backward_fake)
    differentiate("graph_attention_forward", "graph_attention_backward")

register_op(
    "graph_attention",
    {"cpu": library_problem, "cuda": cuda_problem, "triton": graph_attention_triton.problem},
)
