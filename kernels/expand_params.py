"""Expansion of decoded blocks into parameters, in Triton: one launch forward, one backward.

The contract is that of :func:`ghn_fast.ops.expand_params.expand_params`. Here the block tensors are
one, joined, and a plan is packed into what the programs of a launch look up.

Forward: a program writes a tile of one parameter, and of the gap behind it. Backward: a program
sums the copies of a tile of elements of the blocks, in a fixed order and without atomics, so that
gradients are deterministic; each of its threads has four loads of gradients in flight. Float16 and
bfloat16 are computed in float32.

Tested in Triton's interpreter, and compiled for a GPU (sm_90); the compiled code has not run on one
yet. The sizes of the tiles are not tuned.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .expand_params_plan import (
    BEGIN,
    BLOCK_SHAPE,
    BLOCK_SIZE,
    CHANNELS,
    COLUMNS,
    COPIES,
    END,
    FIRST,
    FIRST_TILE,
    KIND,
    LAST,
    LINEAR,
    MANY,
    NARROW,
    OFFSET,
    PADDED,
    PARTS,
    PERIOD,
    ROW_LENGTH,
    ROWS,
    SCALE,
    SEGMENT_COLUMNS,
    SEGMENT_TILE,
    SHAPE,
    SIZE,
    SOURCE,
    STRIDE,
    TILE,
    WIDE,
    Work,
    pack,
)
from .functions import tanh

__all__ = ["expand", "expand_backward", "pack"]

# As in Kind of ghn_fast/ops/expand_params.py.
_WEIGHT = tl.constexpr(1)
_SCALE_OF_NORM = tl.constexpr(2)
_SHIFT = tl.constexpr(3)

_TYPES = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.float16: tl.float32,
    torch.bfloat16: tl.float32,
}


def expand(blocks: Tensor, work: list[Tensor], large: bool, numel: int) -> Tensor:
    """Forward pass.

    Args:
        blocks: The joined blocks (M,), contiguous.
        work: Of :func:`pack`, as is ``large``.
        numel: Number of elements of the flat buffer.

    Returns:
        The flat buffer (numel,).

    Raises:
        TypeError: If the kernels do not know the dtype.
    """
    compute = _compute_type(blocks)
    plan = Work(*work)
    out = blocks.new_empty(numel)
    if plan.tiles.numel():
        with torch.cuda.device_of(blocks):
            _expand_kernel[(plan.tiles.numel(),)](
                blocks_ptr=blocks,
                rows_ptr=plan.rows,
                tiles_ptr=plan.tiles,
                out_ptr=out,
                TILE=TILE,
                INDEX=tl.int64 if large else tl.int32,
                COMPUTE=compute,
                num_warps=4,
            )
    return out


def expand_backward(grad: Tensor, blocks: Tensor, work: list[Tensor], large: bool) -> Tensor:
    """Backward pass.

    Args:
        grad: Gradient of the flat buffer (numel,), contiguous.
        blocks: As in :func:`expand`, as are ``work`` and ``large``.

    Returns:
        Gradient of the joined blocks (M,); 0 where no parameter reads.
    """
    compute = _compute_type(blocks)
    plan = Work(*work)
    out = torch.zeros_like(blocks)
    if plan.segment_tiles.numel():
        with torch.cuda.device_of(blocks):
            _expand_backward_kernel[(plan.segment_tiles.numel(),)](
                grad_ptr=grad,
                blocks_ptr=blocks,
                rows_ptr=plan.rows,
                segments_ptr=plan.segments,
                tiles_ptr=plan.segment_tiles,
                order_ptr=plan.order,
                out_ptr=out,
                PARTS=PARTS,
                NARROW=NARROW,
                WIDE=WIDE,
                INDEX=tl.int64 if large else tl.int32,
                COMPUTE=compute,
                num_warps=8,
            )
    return out


@triton.jit
def _expand_kernel(
    blocks_ptr,  # [M]
    rows_ptr,  # [R, COLUMNS]
    tiles_ptr,  # [T]
    out_ptr,  # [numel]
    TILE: tl.constexpr,
    INDEX: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """out[offset + e] = f(block[source + place(e)]) for elements e of a tile; 0 in the gap."""
    tile = tl.program_id(0).to(tl.int64)
    row = rows_ptr + tl.load(tiles_ptr + tile) * COLUMNS
    begin = (tile - tl.load(row + FIRST_TILE)) * TILE
    e = begin + tl.arange(0, TILE)  # [TILE]
    inside = e < tl.load(row + SIZE)
    place = _place(row, tl.where(inside, e, 0).to(INDEX), INDEX)
    x_ptr = blocks_ptr + tl.load(row + SOURCE) + place.to(tl.int64)
    x = tl.load(x_ptr, mask=inside, other=0.0).to(COMPUTE)
    y = tl.where(inside, _normalise(row, x, COMPUTE), 0.0)
    to_ptr = out_ptr + tl.load(row + OFFSET) + e
    tl.store(to_ptr, y.to(out_ptr.dtype.element_ty), mask=e < tl.load(row + PADDED))


@triton.jit
def _expand_backward_kernel(
    grad_ptr,  # [numel]
    blocks_ptr,  # [M]
    rows_ptr,  # [R, COLUMNS]
    segments_ptr,  # [S, SEGMENT_COLUMNS]
    tiles_ptr,  # [U]
    order_ptr,  # [R]
    out_ptr,  # [M]
    PARTS: tl.constexpr,
    NARROW: tl.constexpr,
    WIDE: tl.constexpr,
    INDEX: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """out[s] = sum of f'(block[s]) grad[e] over all elements e that are copies of element s."""
    tile = tl.program_id(0).to(tl.int64)
    segment = segments_ptr + tl.load(tiles_ptr + tile) * SEGMENT_COLUMNS
    number = tile - tl.load(segment + SEGMENT_TILE)
    if tl.load(segment + MANY) != 0:
        _sum_tile(
            grad_ptr, blocks_ptr, rows_ptr, segment, order_ptr, out_ptr, number,
            PARTS=PARTS, WIDTH=NARROW, INDEX=INDEX, COMPUTE=COMPUTE,
        )  # fmt: skip
    else:
        _sum_tile(
            grad_ptr, blocks_ptr, rows_ptr, segment, order_ptr, out_ptr, number,
            PARTS=1, WIDTH=WIDE, INDEX=INDEX, COMPUTE=COMPUTE,
        )  # fmt: skip


@triton.jit
def _sum_tile(
    grad_ptr,
    blocks_ptr,
    rows_ptr,
    segment,
    order_ptr,
    out_ptr,
    number,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    INDEX: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Tile ``number`` of a segment: WIDTH elements, the copies of each in PARTS sums."""
    element = tl.load(segment + BEGIN) + number * WIDTH + tl.arange(0, WIDTH)[None, :]  # [1, W]
    owned = element < tl.load(segment + END)
    x = tl.load(blocks_ptr + element, mask=owned, other=0.0).to(COMPUTE)  # [1, W]
    total = tl.full([PARTS, WIDTH], 0.0, COMPUTE)
    # A loop over a range of what was loaded fails in the interpreter of Triton 3.6 with NumPy 2.4.
    i = tl.load(segment + FIRST)
    last = tl.load(segment + LAST)
    while i < last:
        row = rows_ptr + tl.load(order_ptr + i) * COLUMNS
        s = element - tl.load(row + SOURCE)
        read = owned & (s >= 0) & (s < tl.load(row + BLOCK_SIZE))
        s = tl.where(read, s, 0).to(INDEX)
        values_ptr = grad_ptr + tl.load(row + OFFSET)
        if tl.load(row + LINEAR) != 0:
            sums = _gather_linear(values_ptr, row, s, read, PARTS, WIDTH, INDEX, COMPUTE)
        else:
            sums = _gather(values_ptr, row, s, read, PARTS, WIDTH, INDEX, COMPUTE)
        total += sums * _slope(row, x, COMPUTE)
        i += 1
    result = tl.sum(total, axis=0)[None, :]
    tl.store(out_ptr + element, result.to(out_ptr.dtype.element_ty), mask=owned)


@triton.jit
def _place(row, e, INDEX: tl.constexpr):
    """Where the block has element e of the parameter, counted from its beginning."""
    if tl.load(row + LINEAR) != 0:
        length = tl.load(row + ROW_LENGTH).to(INDEX)
        o = e // length
        t = (e - o * length) % tl.load(row + PERIOD).to(INDEX)
        at = o % tl.load(row + ROWS).to(INDEX) * tl.load(row + STRIDE).to(INDEX) + t
    else:
        width = tl.load(row + SHAPE + 3).to(INDEX)
        height = tl.load(row + SHAPE + 2).to(INDEX)
        ins = tl.load(row + SHAPE + 1).to(INDEX)
        line = e // width
        channel = line // height
        o = channel // ins
        at = o % tl.load(row + BLOCK_SHAPE).to(INDEX)
        block_ins = tl.load(row + BLOCK_SHAPE + 1).to(INDEX)
        at = at * block_ins + (channel - o * ins) % block_ins
        block_height = tl.load(row + BLOCK_SHAPE + 2).to(INDEX)
        at = at * block_height + (line - channel * height) % block_height
        block_width = tl.load(row + BLOCK_SHAPE + 3).to(INDEX)
        at = at * block_width + (e - line * width) % block_width
    return at


@triton.jit
def _gather_linear(
    values_ptr,
    row,
    s,  # [1, W]
    read,  # [1, W]
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    INDEX: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Sums [PARTS, W] over the copies of elements s of the block, in a linear parameter.

    Copy q is in the (q div repeats)-th of the channels that repeat the row of s, at the
    (q mod repeats)-th place of s in it.
    """
    length = tl.load(row + ROW_LENGTH).to(INDEX)
    period = tl.load(row + PERIOD).to(INDEX)
    stride = tl.load(row + STRIDE).to(INDEX)
    rows = tl.load(row + ROWS).to(INDEX)
    channels = tl.load(row + CHANNELS).to(INDEX)
    copies = tl.load(row + COPIES)
    repeats = (length + period - 1) // period
    r = s // stride
    t = s - r * stride
    sums = tl.full([PARTS, WIDTH], 0.0, COMPUTE)
    first = tl.full([], 0, tl.int64)
    while first < copies:
        q = first + tl.arange(0, PARTS)[:, None]  # [PARTS, 1]
        there = q < copies
        q = tl.where(there, q, 0).to(INDEX)
        turn = q // repeats
        channel = r + turn * rows  # [PARTS, W]
        column = t + (q - turn * repeats) * period
        mask = read & there & (channel < channels) & (column < length)
        place = (channel * length + column).to(tl.int64)
        sums += tl.load(values_ptr + place, mask=mask, other=0.0).to(COMPUTE)
        first += PARTS
    return sums


@triton.jit
def _gather(
    values_ptr,
    row,
    s,  # [1, W]
    read,  # [1, W]
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    INDEX: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Sums [PARTS, W] over the copies of elements s of the block, in any parameter."""
    outs = tl.load(row + SHAPE).to(INDEX)
    ins = tl.load(row + SHAPE + 1).to(INDEX)
    height = tl.load(row + SHAPE + 2).to(INDEX)
    width = tl.load(row + SHAPE + 3).to(INDEX)
    block_outs = tl.load(row + BLOCK_SHAPE).to(INDEX)
    block_ins = tl.load(row + BLOCK_SHAPE + 1).to(INDEX)
    block_height = tl.load(row + BLOCK_SHAPE + 2).to(INDEX)
    block_width = tl.load(row + BLOCK_SHAPE + 3).to(INDEX)
    copies = tl.load(row + COPIES)
    # How often an element comes in each direction, at most.
    many_ins = (ins + block_ins - 1) // block_ins
    many_height = (height + block_height - 1) // block_height
    many_width = (width + block_width - 1) // block_width
    line = s // block_width
    channel = line // block_height
    s_o = channel // block_ins
    s_i = channel - s_o * block_ins
    s_h = line - channel * block_height
    s_w = s - line * block_width
    sums = tl.full([PARTS, WIDTH], 0.0, COMPUTE)
    first = tl.full([], 0, tl.int64)
    while first < copies:
        q = first + tl.arange(0, PARTS)[:, None]  # [PARTS, 1]
        there = q < copies
        q = tl.where(there, q, 0).to(INDEX)
        o = s_o + q // many_width // many_height // many_ins * block_outs  # [PARTS, W]
        i = s_i + q // many_width // many_height % many_ins * block_ins
        h = s_h + q // many_width % many_height * block_height
        w = s_w + q % many_width * block_width
        mask = read & there & (o < outs) & (i < ins) & (h < height) & (w < width)
        place = (((o * ins + i) * height + h) * width + w).to(tl.int64)
        sums += tl.load(values_ptr + place, mask=mask, other=0.0).to(COMPUTE)
        first += PARTS
    return sums


@triton.jit
def _normalise(row, x, COMPUTE: tl.constexpr):
    """f(x): scale * x, 2 sigmoid(x / 2), tanh(x / 5) or x."""
    kind = tl.load(row + KIND)
    y = x
    if kind == _WEIGHT:
        y = x * _scale(row, COMPUTE)
    elif kind == _SCALE_OF_NORM:
        y = 2.0 / (1.0 + tl.exp(-0.5 * x))
    elif kind == _SHIFT:
        y = tanh(x * _fifth(COMPUTE))
    return y


@triton.jit
def _slope(row, x, COMPUTE: tl.constexpr):
    """f'(x)."""
    kind = tl.load(row + KIND)
    y = tl.full(x.shape, 1.0, COMPUTE)
    if kind == _WEIGHT:
        y = y * _scale(row, COMPUTE)
    elif kind == _SCALE_OF_NORM:
        sigmoid = 1.0 / (1.0 + tl.exp(-0.5 * x))
        y = sigmoid * (1.0 - sigmoid)
    elif kind == _SHIFT:
        t = tanh(x * _fifth(COMPUTE))
        y = _fifth(COMPUTE) * (1.0 - t * t)
    return y


@triton.jit
def _scale(row, COMPUTE: tl.constexpr):
    return tl.load(row + SCALE).to(tl.float64, bitcast=True).to(COMPUTE)


@triton.jit
def _fifth(COMPUTE: tl.constexpr):
    # A literal would be rounded to float32 in float64, too.
    return tl.full([], 1.0, COMPUTE) / tl.full([], 5.0, COMPUTE)


def _compute_type(blocks: Tensor) -> Any:
    if blocks.dtype not in _TYPES:
        raise TypeError(
            f"blocks[0]: got {blocks.dtype}, needs float32, float64, float16 or bfloat16"
        )
    return _TYPES[blocks.dtype]
