"""From decoded blocks to parameter tensors: slice, repeat and normalise into one flat buffer.

Element (o, i, h, w) of a parameter is

    f(block[o mod B_o, i mod B_i, h mod B_h, w mod B_w])

where (B_o, B_i, B_h, B_w) is the shape of its block: a larger block is sliced, a smaller one is
repeated. f depends on the kind of the parameter (arXiv 2110.13100, section 4.2):

    WEIGHT   f(x) = scale * x        scale = sqrt(beta / fan_in)
    SCALE    f(x) = 2 sigmoid(x / 2) scale of a norm layer
    SHIFT    f(x) = tanh(x / 5)      shift of a norm layer, bias
    COPY     f(x) = x                positional encodings; everything without normalisation
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor


class Kind(IntEnum):
    """How the elements of a parameter are normalised."""

    COPY = 0
    WEIGHT = 1
    SCALE = 2
    SHIFT = 3


class PlanRow(NamedTuple):
    """One parameter tensor of a plan.

    Attributes:
        block: Index into the list of block tensors.
        source: Offset of the parameter's block in that tensor, in elements.
        block_shape: Shape (B_o, B_i, B_h, B_w) of the block, contiguous.
        shape: Shape (O, I, H, W) of the parameter, padded with ones.
        kind: Normalisation.
        scale: Factor of a ``WEIGHT``.
        offset: Offset of the parameter in the flat buffer, in elements.
    """

    block: int
    source: int
    block_shape: tuple[int, int, int, int]
    shape: tuple[int, int, int, int]
    kind: Kind
    scale: float
    offset: int


class ParamPlan(NamedTuple):
    """All parameter tensors that are expanded together.

    Attributes:
        rows: The parameters; they fill the flat buffer in order, without gaps.
        numel: Number of elements of the flat buffer.
    """

    rows: list[PlanRow]
    numel: int


def expand_params(blocks: Sequence[Tensor], plan: ParamPlan) -> Tensor:
    """Expand decoded blocks into the flat buffer of all parameters.

    Args:
        blocks: Floating-point tensors of any shape, contiguous, with the blocks inside.
        plan: Where each parameter comes from, and goes.

    Returns:
        Flat tensor (plan.numel,), differentiable in ``blocks``; empty for an empty plan.

    Raises:
        TypeError: If the blocks differ in dtype or are not floating point.
        ValueError: If a row reads outside its block tensor, or the rows do not fill the buffer.
    """
    _check(blocks, plan)
    if not plan.rows:
        return blocks[0].new_zeros(0) if blocks else torch.zeros(0)
    return torch.cat([_expand(blocks[row.block], row).reshape(-1) for row in plan.rows])


def _expand(blocks: Tensor, row: PlanRow) -> Tensor:
    size = row.block_shape[0] * row.block_shape[1] * row.block_shape[2] * row.block_shape[3]
    block = blocks.reshape(-1)[row.source : row.source + size].view(row.block_shape)
    for dim, (have, want) in enumerate(zip(row.block_shape, row.shape, strict=True)):
        block = block.narrow(dim, 0, min(have, want))
    # Normalised before it is repeated: the block is the smaller of the two.
    block = _normalise(block, row)
    if tuple(block.shape) == row.shape:
        return block
    block = block.repeat(
        [-(-want // have) for have, want in zip(block.shape, row.shape, strict=True)]
    )
    for dim, want in enumerate(row.shape):
        block = block.narrow(dim, 0, want)
    return block


def _normalise(block: Tensor, row: PlanRow) -> Tensor:
    if row.kind is Kind.WEIGHT:
        return block * row.scale
    if row.kind is Kind.SCALE:
        return 2 * torch.sigmoid(0.5 * block)
    if row.kind is Kind.SHIFT:
        return torch.tanh(0.2 * block)
    return block


def _check(blocks: Sequence[Tensor], plan: ParamPlan) -> None:
    for index, block in enumerate(blocks):
        if not block.is_floating_point() or block.dtype != blocks[0].dtype:
            raise TypeError(
                f"blocks[{index}]: got {block.dtype}, needs the floating-point type of blocks[0] "
                f"({blocks[0].dtype})"
            )
    end = 0
    for index, row in enumerate(plan.rows):
        if not 0 <= row.block < len(blocks):
            raise ValueError(
                f"plan.rows[{index}].block: got {row.block}, needs 0 to {len(blocks) - 1}"
            )
        size = row.block_shape[0] * row.block_shape[1] * row.block_shape[2] * row.block_shape[3]
        if min(row.block_shape) < 1 or min(row.shape) < 0:
            raise ValueError(f"plan.rows[{index}]: got shapes {row.block_shape} and {row.shape}")
        if row.source < 0 or row.source + size > blocks[row.block].numel():
            raise ValueError(
                f"plan.rows[{index}]: reads elements {row.source} to {row.source + size} of "
                f"blocks[{row.block}], which has {blocks[row.block].numel()}"
            )
        if row.offset != end:
            raise ValueError(f"plan.rows[{index}].offset: got {row.offset}, needs {end}")
        end += row.shape[0] * row.shape[1] * row.shape[2] * row.shape[3]
    if end != plan.numel:
        raise ValueError(f"plan.numel: got {plan.numel}, needs {end}, the end of the last row")
