"""The Triton back end of graph_attention as custom ops; kernels are in kernels/graph_attention.py.

They are loaded when they are first used, so that importing this module needs no Triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from types import ModuleType

import torch
from torch import Tensor

from ghn_fast.ops import triton_kernels
from ghn_fast.ops.graph_attention_gradient import backward_fake, differentiate, forward_fake
from ghn_fast.utils.cache import BoundedCache

# Widest head that there is an instance of the kernels for (LARGEST in kernels/graph_attention.py),
# and most biases.
_LARGEST = 32
_MOST_BIASES = 1024
# By where graphs begin, and the device: a captured CUDA graph cannot copy them from the host.
_tiles: BoundedCache[tuple[tuple[int, ...], torch.device, int], Tensor] = BoundedCache(128)


def problem() -> str | None:
    """Why the Triton kernels cannot be used, or ``None`` where they can."""
    return triton_kernels.problem("graph_attention")


def has_instance(width: int, rows: int) -> bool:
    """Whether there are kernels for heads of a width and a number of biases."""
    return 0 < width <= _LARGEST and 0 < rows <= _MOST_BIASES


def _kernels() -> ModuleType:
    return triton_kernels.load("graph_attention")


def _tiles_of(offsets: Sequence[int], device: torch.device) -> Tensor:
    """First and last node of the graph, its first code and the first query of each tile (T, 4)."""
    step: int = _kernels().ROWS
    key = (tuple(offsets), device, step)
    found = _tiles.get(key)
    if found is None:
        rows, pair = [], 0
        for first, last in pairwise(offsets):
            rows += [(first, last, pair, row) for row in range(0, last - first, step)]
            pair += (last - first) ** 2
        with torch.inference_mode(False):
            made = torch.tensor(rows, dtype=torch.int64).reshape(-1, 4).to(device)
        found = _tiles.keep(key, made)
    return found


def _forward(
    qkv: Tensor, codes: Tensor, offsets: Sequence[int], table: Tensor
) -> tuple[Tensor, Tensor]:
    tiles = _tiles_of(offsets, qkv.device)
    result: tuple[Tensor, Tensor] = _kernels().forward(
        qkv.contiguous(), codes.contiguous(), tiles, table.contiguous()
    )
    return result


def _backward(
    grad: Tensor,
    qkv: Tensor,
    codes: Tensor,
    offsets: Sequence[int],
    table: Tensor,
    out: Tensor,
    logsum: Tensor,
) -> tuple[Tensor, Tensor]:
    tiles = _tiles_of(offsets, qkv.device)
    given = [t.contiguous() for t in (grad, qkv, codes)]
    rest = [t.contiguous() for t in (table, out, logsum)]
    result: tuple[Tensor, Tensor] = _kernels().backward(*given, tiles, *rest)
    return result


triton_kernels.define(
    "graph_attention_triton",
    "(Tensor qkv, Tensor codes, int[] offsets, Tensor table) -> (Tensor, Tensor)",
    _forward,
    forward_fake,
)
triton_kernels.define(
    "graph_attention_triton_backward",
    "(Tensor grad, Tensor qkv, Tensor codes, int[] offsets, Tensor table, Tensor out,"
    " Tensor logsum) -> (Tensor, Tensor)",
    _backward,
    backward_fake,
)
differentiate("graph_attention_triton", "graph_attention_triton_backward")
