"""The plan of expand_params, packed into what the programs of a Triton launch look up."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

# Elements that a program of the forward pass writes.
TILE = 1024
# Elements of a block that a program of the backward pass owns: few of them with 16 sums for each,
# or many with one sum, by how many copies there are.
PARTS, NARROW, WIDE = 16, 64, 1024
MANY_COPIES = 8
# Where a parameter or a block has as many elements, places in it are computed in 64 bits. Half of
# what 32 bits hold: a place may lie behind the end by as much as there is in front of it.
LARGE = 1 << 30

# Columns of Work.rows. A parameter is linear if it agrees with its block in height and width: its
# element e, o = e div ROW_LENGTH, t = e mod ROW_LENGTH, is then in row o mod ROWS, of STRIDE
# elements, of the block, at t mod PERIOD.
SOURCE = tl.constexpr(0)  # of the block in the joined ones
OFFSET = tl.constexpr(1)  # of the parameter in the flat buffer
SIZE = tl.constexpr(2)  # elements of the parameter
PADDED = tl.constexpr(3)  # and with the gap behind it
BLOCK_SIZE = tl.constexpr(4)
KIND = tl.constexpr(5)
SCALE = tl.constexpr(6)  # bits of a double
FIRST_TILE = tl.constexpr(7)
COPIES = tl.constexpr(8)  # most copies of an element
LINEAR = tl.constexpr(9)
ROW_LENGTH = tl.constexpr(10)
PERIOD = tl.constexpr(11)
STRIDE = tl.constexpr(12)
ROWS = tl.constexpr(13)
CHANNELS = tl.constexpr(14)
SHAPE = tl.constexpr(15)  # and the next three
BLOCK_SHAPE = tl.constexpr(19)  # and the next three
COLUMNS = tl.constexpr(23)
# Columns of Work.segments: elements [BEGIN, END) of the joined blocks and the rows that read them,
# order[FIRST] to order[LAST - 1].
BEGIN = tl.constexpr(0)
END = tl.constexpr(1)
FIRST = tl.constexpr(2)
LAST = tl.constexpr(3)
SEGMENT_TILE = tl.constexpr(4)  # its first tile
MANY = tl.constexpr(5)  # whether its elements have many copies
SEGMENT_COLUMNS = tl.constexpr(6)

_Array = npt.NDArray[np.int64]


class Work(NamedTuple):
    """A packed plan, int64 on the device of the blocks; columns are explained above.

    Attributes:
        rows: The parameters, (R, 23).
        tiles: Row of each tile of the forward pass, (T,).
        segments: Parts of the joined blocks that different rows read, (S, 6).
        segment_tiles: Segment of each tile of the backward pass, (U,).
        order: Rows by where they read, without empty ones, (at most R,).
    """

    rows: Tensor
    tiles: Tensor
    segments: Tensor
    segment_tiles: Tensor
    order: Tensor


def pack(
    table: Tensor, sizes: list[int], numel: int, device: torch.device
) -> tuple[list[Tensor], bool]:
    """The work of a plan, in one transfer.

    Args:
        table: ``ParamPlan.table`` (R, 13) of a plan that has been checked.
        sizes: Number of elements of each block tensor.
        numel: Number of elements of the flat buffer.
        device: Where the work goes.

    Returns:
        The tensors of :class:`Work`, and whether places need 64 bits.
    """
    rows, tiles = _pack_rows(table.numpy(), sizes, numel)
    segments, segment_tiles, order = _pack_segments(rows)
    arrays = Work(*(torch.from_numpy(a) for a in (rows, tiles, segments, segment_tiles, order)))
    # Each begins at a multiple of 16 bytes: Triton compiles a kernel anew where that changes.
    flat = [pad(array.reshape(-1), (0, array.numel() % 2)) for array in arrays]
    joined = torch.cat(flat).to(device, non_blocking=True)
    parts = joined.split([len(array) for array in flat])
    work = [p[: a.numel()].view(a.shape) for p, a in zip(parts, arrays, strict=True)]
    extents = rows[:, [PADDED.value, BLOCK_SIZE.value]]
    return work, bool((extents >= LARGE).any())


def _pack_rows(table: _Array, sizes: list[int], numel: int) -> tuple[_Array, _Array]:
    """Work.rows and Work.tiles. Formulas as in ExpandRow::derive of csrc/common/expand_params.h."""
    block_shape, shape = table[:, 2:6], table[:, 6:10].copy()
    offset = table[:, 11]
    size = shape.prod(axis=1)
    # A row without elements may have a gap behind it: one of shape 1 is divided by.
    shape[size == 0] = 1
    area = shape[:, 2] * shape[:, 3]
    stride = block_shape[:, 1:].prod(axis=1)
    linear = (block_shape[:, 2:] == shape[:, 2:]).all(axis=1)
    channels = shape[:, 0]
    held = np.minimum(block_shape[:, 0], channels)
    length = shape[:, 1] * area
    period = np.minimum(block_shape[:, 1], shape[:, 1]) * area
    # Nothing is cut off and nothing repeats within a channel: rows that touch are one row.
    one = linear & (length == period) & (period == stride)
    length, period = np.where(one, length * channels, length), np.where(one, period * held, period)
    stride = np.where(one, stride * block_shape[:, 0], stride)
    channels, held = np.where(one, 1, channels), np.where(one, 1, held)
    copies = np.where(
        linear,
        -(-channels // held) * -(-length // period),
        (-(-shape // block_shape)).prod(axis=1),
    )
    rows = np.empty((len(table), COLUMNS.value), np.int64)
    starts = np.cumsum([0, *sizes])
    rows[:, SOURCE.value] = starts[table[:, 0]] + table[:, 1]
    rows[:, OFFSET.value] = offset
    rows[:, SIZE.value] = size
    padded = rows[:, PADDED.value] = np.append(offset[1:], numel) - offset
    rows[:, BLOCK_SIZE.value] = block_shape.prod(axis=1)
    rows[:, KIND.value] = table[:, 10]
    rows[:, SCALE.value] = table[:, 12]
    tiles = -(-padded // TILE)
    rows[:, FIRST_TILE.value] = np.cumsum(tiles) - tiles
    rows[:, COPIES.value] = copies
    rows[:, LINEAR.value] = linear
    rows[:, ROW_LENGTH.value] = length
    rows[:, PERIOD.value] = period
    rows[:, STRIDE.value] = stride
    rows[:, ROWS.value] = held
    rows[:, CHANNELS.value] = channels
    rows[:, SHAPE.value : SHAPE.value + 4] = shape
    rows[:, BLOCK_SHAPE.value :] = block_shape
    return rows, np.repeat(np.arange(len(rows)), tiles)


def _pack_segments(rows: _Array) -> tuple[_Array, _Array, _Array]:
    """Work.segments, Work.segment_tiles and Work.order: rows that read the same are together."""
    filled = np.flatnonzero(rows[:, SIZE.value])
    order = filled[np.argsort(rows[filled, SOURCE.value], kind="stable")]
    begin = rows[order, SOURCE.value]
    # The furthest that a row has read so far; a row that begins behind it begins a segment.
    reach = np.maximum.accumulate(begin + rows[order, BLOCK_SIZE.value])
    first = np.flatnonzero(begin[1:] >= reach[:-1]) + 1
    if len(order):
        first = np.insert(first, 0, 0)
    last = np.append(first[1:], len(order))[: len(first)]
    many = np.zeros(len(first), bool)
    if len(first):
        many = np.maximum.reduceat(rows[order, COPIES.value], first) >= MANY_COPIES
    segments = np.empty((len(first), SEGMENT_COLUMNS.value), np.int64)
    segments[:, BEGIN.value] = begin[first]
    segments[:, END.value] = reach[last - 1]
    segments[:, FIRST.value] = first
    segments[:, LAST.value] = last
    elements = segments[:, END.value] - segments[:, BEGIN.value]
    tiles = -(-elements // np.where(many, NARROW, WIDE))
    segments[:, SEGMENT_TILE.value] = np.cumsum(tiles) - tiles
    segments[:, MANY.value] = many
    return segments, np.repeat(np.arange(len(segments)), tiles), order
