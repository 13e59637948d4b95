"""Plans of the expansion of parameters: which block each parameter is made from, and how."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ghn_fast.ops import expand_params_triton
from ghn_fast.ops.transfers import Sent

# Device and sizes of the block tensors.
_Blocks = tuple[torch.device, tuple[int, ...]]
# Elements that are expanded at a time where outputs cannot be written directly.
_PIECE = 1 << 24


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

    @property
    def end(self) -> int:
        """Where the parameter ends in the flat buffer, in elements."""
        return self.offset + math.prod(self.shape)


class ParamPlan:
    """All parameter tensors that are expanded together.

    Args:
        rows: The parameters in the order of their offsets. The first one begins at 0; between
            them there may be gaps, for alignment.
        numel: Number of elements of the flat buffer.
    """

    def __init__(self, rows: Sequence[PlanRow], numel: int) -> None:
        self._rows: list[PlanRow] | None = list(rows)
        self.num_rows = len(self._rows)
        self.numel = numel
        self._pieces: tuple[tuple[tuple[int, ...], tuple[int, ...]], list[Piece]] | None = None
        self._packed: tuple[_Blocks, Sent[Tensor]] | None = None
        self._work: tuple[_Blocks, Sent[tuple[list[Tensor], bool]]] | None = None

    @classmethod
    def of_table(cls, table: npt.NDArray[np.int64], numel: int) -> ParamPlan:
        """A plan from its :attr:`table` (R, 13); the rows are made if they are asked for."""
        plan = cls((), numel)
        plan._rows, plan.num_rows = None, len(table)
        with torch.inference_mode(False):
            plan.__dict__["table"] = torch.from_numpy(table)
        return plan

    @property
    def rows(self) -> list[PlanRow]:
        """The parameters."""
        if self._rows is None:
            table = self.table.numpy()
            scales = table[:, 12].view(np.float64).tolist()
            self._rows = [
                PlanRow(r[0], r[1], tuple(r[2:6]), tuple(r[6:10]), Kind(r[10]), scale, r[11])
                for r, scale in zip(table.tolist(), scales, strict=True)
            ]
        return self._rows

    @cached_property
    def table(self) -> Tensor:
        """The rows as the compiled back ends read them, (R, 13) int64 on the CPU.

        Columns: block, source, block shape, shape, kind, offset, scale as the bits of a double.
        """
        # Inference tensors cannot be saved for a backward pass, and this one is kept.
        with torch.inference_mode(False):
            return torch.from_numpy(table_of(self.rows))

    def pieces(self, wanted: tuple[int, ...], whole: tuple[int, ...]) -> list[Piece]:
        """The wanted rows in portions of bounded size, large rows in parts.

        Kept for the next call, and with them what the back ends keep of each portion.

        Args:
            wanted: Which rows.
            whole: Which of them cannot be taken apart.

        Returns:
            Plans of the portions, and for each of its rows (row of this plan, first and last
            channel).
        """
        key = (wanted, whole)
        if self._pieces is None or self._pieces[0] != key:
            self._pieces = key, _find_pieces(self, wanted, whole)
        return self._pieces[1]

    def packed(self, blocks: Sequence[Tensor]) -> Tensor:
        """The plan with the order of work, on the device of the blocks; kept for the next call."""
        key = (blocks[0].device, tuple(block.numel() for block in blocks))
        kept = self._packed
        if kept is None or kept[0] != key:
            # As for the table.
            with torch.inference_mode(False):
                made = torch.ops.ghn_fast.expand_params_pack(
                    self.table, [block.detach() for block in blocks], self.numel
                )
                made = made.to(blocks[0].device, non_blocking=True)
            kept = self._packed = key, Sent(made, blocks[0].device)
        return kept[1].get()

    def work(self, blocks: Sequence[Tensor]) -> tuple[list[Tensor], bool]:
        """:meth:`packed` as the Triton kernels read it; the rows are checked when it is made."""
        key = (blocks[0].device, tuple(block.numel() for block in blocks))
        kept = self._work
        if kept is None or kept[0] != key:
            self.check(blocks)
            with torch.inference_mode(False):
                made = expand_params_triton.pack(self.table, blocks, self.numel)
            kept = self._work = key, Sent(made, blocks[0].device)
        return kept[1].get()

    def check(self, blocks: Sequence[Tensor]) -> None:
        """Raise what :func:`expand_params` promises where blocks and rows do not fit."""
        check_devices(blocks)
        check_types(blocks)
        end = 0
        for index, row in enumerate(self.rows):
            if not 0 <= row.block < len(blocks):
                raise ValueError(
                    f"plan.rows[{index}].block: got {row.block}, needs 0 to {len(blocks) - 1}"
                )
            if min(row.block_shape) < 1 or min(row.shape) < 0:
                raise ValueError(
                    f"plan.rows[{index}]: got shapes {row.block_shape} and {row.shape}"
                )
            if row.kind not in tuple(Kind):
                raise ValueError(f"plan.rows[{index}].kind: got {row.kind}, needs 0 to 3")
            size = math.prod(row.block_shape)
            if row.source < 0 or row.source + size > blocks[row.block].numel():
                raise ValueError(
                    f"plan.rows[{index}]: reads elements {row.source} to {row.source + size} of "
                    f"blocks[{row.block}], which has {blocks[row.block].numel()}"
                )
            if row.offset < end or (index == 0 and row.offset != 0):
                needs = f"at least {end}" if index else "0"
                raise ValueError(f"plan.rows[{index}].offset: got {row.offset}, needs {needs}")
            end = row.end
            if end > self.numel:
                raise ValueError(
                    f"plan.numel: got {self.numel}, needs at least {end}, the end of rows[{index}]"
                )
        if self.numel != 0 and not self.num_rows:
            raise ValueError(f"plan.numel: got {self.numel}, needs 0 for a plan without rows")


def table_of(plan_rows: Sequence[PlanRow]) -> npt.NDArray[np.int64]:
    """:attr:`ParamPlan.table` of some rows."""
    rows = [(r[0], r[1], *r[2], *r[3], r[4], r[6]) for r in plan_rows]
    table = np.empty((len(rows), 13), np.int64)
    if rows:
        try:
            table[:, :12] = rows
        except OverflowError as error:
            raise ValueError(f"plan.rows: a number needs more than 64 bits: {error}") from error
        table[:, 12] = np.array([r.scale for r in plan_rows], np.float64).view(np.int64)
    return table


Piece = tuple[ParamPlan, list[tuple[int, int, int]]]


def _find_pieces(plan: ParamPlan, wanted: Sequence[int], whole: Sequence[int]) -> list[Piece]:
    pieces: list[Piece] = []
    rows: list[PlanRow] = []
    places: list[tuple[int, int, int]] = []
    end = 0
    for index in wanted:
        row = plan.rows[index]
        channels = row.shape[0]
        # Parts begin at a multiple of the block's channels: each is a parameter like the whole.
        per_channel = max(math.prod(row.shape[1:]), 1)
        step = max(_PIECE // per_channel // row.block_shape[0], 1) * row.block_shape[0]
        if index in whole:
            step = max(channels, 1)
        for first in range(0, channels, step):
            last = min(first + step, channels)
            part = (last - first, *row.shape[1:])
            if rows and end + math.prod(part) > _PIECE:
                pieces.append((ParamPlan(rows, end), places))
                rows, places, end = [], [], 0
            rows.append(row._replace(shape=part, offset=end))
            places.append((index, first, last))
            end += math.prod(part)
    if rows:
        pieces.append((ParamPlan(rows, end), places))
    return pieces


def has_parts(row: PlanRow, tensor: Tensor | None) -> bool:
    """Whether a tensor can be seen in the shape of its row, so that channels can be taken apart."""
    if tensor is None or math.prod(row.shape) <= _PIECE:
        return True
    try:
        tensor.detach().view(row.shape)
    except RuntimeError:
        return False
    return True


def check_devices(blocks: Sequence[Tensor]) -> None:
    """Raise ValueError unless all blocks are on one device."""
    for index, block in enumerate(blocks):
        if block.device != blocks[0].device:
            raise ValueError(
                f"blocks[{index}]: got a tensor on {block.device}, needs it on "
                f"{blocks[0].device}, as blocks[0] is"
            )


def check_types(blocks: Sequence[Tensor]) -> None:
    """Raise TypeError unless all blocks are of one floating-point type."""
    for index, block in enumerate(blocks):
        if not block.is_floating_point() or block.dtype != blocks[0].dtype:
            raise TypeError(
                f"blocks[{index}]: got {block.dtype}, needs the floating-point type of blocks[0] "
                f"({blocks[0].dtype})"
            )
