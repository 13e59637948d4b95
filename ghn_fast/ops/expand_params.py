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

import math
from collections.abc import Sequence
from enum import IntEnum
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ghn_fast.ops import expand_params_triton
from ghn_fast.ops.backend import cuda_problem, extension_problem, register_op, resolve

# Block tensors that a launch on CUDA takes (csrc/cuda/expand_params.h); more are joined first.
_MOST_BLOCKS = 160
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


class ParamPlan:
    """All parameter tensors that are expanded together.

    Args:
        rows: The parameters in the order of their offsets. The first one begins at 0; between
            them there may be gaps, for alignment.
        numel: Number of elements of the flat buffer.
    """

    def __init__(self, rows: Sequence[PlanRow], numel: int) -> None:
        self.rows = list(rows)
        self.numel = numel
        self._pieces: tuple[tuple[tuple[int, ...], tuple[int, ...]], list[Piece]] | None = None
        self._packed: tuple[tuple[torch.device, tuple[int, ...]], Tensor] | None = None
        self._work: tuple[tuple[torch.device, tuple[int, ...]], Any] | None = None

    @cached_property
    def table(self) -> Tensor:
        """The rows as the compiled back ends read them, (R, 13) int64 on the CPU.

        Columns: block, source, block shape, shape, kind, offset, scale as the bits of a double.
        """
        rows = [(r[0], r[1], *r[2], *r[3], r[4], r[6]) for r in self.rows]
        table = np.empty((len(rows), 13), np.int64)
        if rows:
            try:
                table[:, :12] = rows
            except OverflowError as error:
                raise ValueError(f"plan.rows: a number needs more than 64 bits: {error}") from error
            table[:, 12] = np.array([r.scale for r in self.rows], np.float64).view(np.int64)
        return torch.from_numpy(table)

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
            made = torch.ops.ghn_fast.expand_params_pack(self.table, list(blocks), self.numel)
            if blocks[0].is_cuda:
                made = made.pin_memory()
            kept = key, made.to(blocks[0].device, non_blocking=True)
            self._packed = kept
        return kept[1]

    def work(self, blocks: Sequence[Tensor]) -> tuple[list[Tensor], bool]:
        """:meth:`packed` as the Triton kernels read it; the rows are checked when it is made."""
        key = (blocks[0].device, tuple(block.numel() for block in blocks))
        kept = self._work
        if kept is None or kept[0] != key:
            _check(blocks, self)
            kept = self._work = key, expand_params_triton.pack(self.table, blocks, self.numel)
        return kept[1]


Piece = tuple[ParamPlan, list[tuple[int, int, int]]]


def expand_params(blocks: Sequence[Tensor], plan: ParamPlan) -> Tensor:
    """Expand decoded blocks into the flat buffer of all parameters.

    Runs on the back ends ``reference``, ``cpu``, ``cuda`` and ``triton`` (see
    :mod:`ghn_fast.ops.backend`). The compiled ones are differentiable once, the reference any
    number of times.

    Args:
        blocks: Floating-point tensors of any shape with the blocks inside, in the order of their
            elements, all on one device.
        plan: Where each parameter comes from, and goes.

    Returns:
        Flat tensor (plan.numel,) of the dtype of the blocks, differentiable in ``blocks``; gaps
        between parameters are 0; empty for an empty plan. Values and gradients are deterministic
        and independent of the number of threads on the compiled back ends.

    Raises:
        TypeError: If the blocks differ in dtype or are not floating point.
        ValueError: If the blocks differ in device, a row reads outside its block tensor, or rows
            overlap in the buffer or overrun it; if the back end that is asked for cannot run.
    """
    if not plan.rows:
        _check(blocks, plan)
        return blocks[0].new_zeros(0) if blocks else torch.zeros(0)
    device = blocks[0].device.type if blocks else "cpu"
    chosen = resolve("expand_params", device)
    if chosen == "reference" or not blocks:
        return reference(blocks, plan)
    blocks = list(blocks)
    _check_devices(blocks)
    if chosen == "triton":
        _check_types(blocks)
        return expand_params_triton.expand(blocks, plan.work(blocks), plan.numel)
    narrow = chosen == "cpu" and blocks[0].dtype in (torch.float16, torch.bfloat16)
    dtype = blocks[0].dtype
    if narrow:
        _check(blocks, plan)
        blocks = [block.float() for block in blocks]
    packed = None
    if chosen == "cuda":
        if len(blocks) > _MOST_BLOCKS:
            blocks, plan = _joined(blocks, plan)
        packed = plan.packed(blocks)
    flat = torch.ops.ghn_fast.expand_params(blocks, plan.table, packed, plan.numel)
    return flat.to(dtype) if narrow else flat


def expand_params_into(
    blocks: Sequence[Tensor], plan: ParamPlan, out: Sequence[Tensor | None]
) -> None:
    """Expand decoded blocks straight into existing tensors; no flat buffer is made on CPU.

    Args:
        blocks: As in :func:`expand_params`; not differentiated.
        plan: As in :func:`expand_params`; the offsets do not matter.
        out: For each row of the plan the tensor to overwrite: as many elements as the row has, in
            any shape, of any floating-point type and on any device. ``None`` leaves a row out.

    Raises:
        TypeError: As in :func:`expand_params`, or if an output is not floating point.
        ValueError: As in :func:`expand_params`, or if the outputs do not fit the plan.
    """
    if len(out) != len(plan.rows):
        raise ValueError(f"out: got {len(out)} tensors, needs {len(plan.rows)}, one for each row")
    for index, (row, tensor) in enumerate(zip(plan.rows, out, strict=True)):
        size = _numel(row.shape)
        if tensor is None:
            continue
        if tensor.numel() != size:
            raise ValueError(
                f"out[{index}]: got a tensor of shape {tuple(tensor.shape)}, needs {size} elements"
            )
        if not tensor.is_floating_point():
            raise TypeError(f"out[{index}]: got {tensor.dtype}, needs a floating-point type")
    wanted = [index for index, tensor in enumerate(out) if tensor is not None]
    to = [tensor.detach() for tensor in out if tensor is not None]
    if not wanted:
        return
    with torch.no_grad():
        device = blocks[0].device.type if blocks else "cpu"
        chosen = resolve("expand_params", device)
        blocks = [block.detach() for block in blocks]
        _check_devices(blocks)
        on_cpu = all(tensor.device.type == "cpu" for tensor in to)
        compiled = {torch.float32, torch.float64, torch.float16, torch.bfloat16}
        if chosen == "cpu" and blocks and on_cpu and {t.dtype for t in to} <= compiled:
            table = plan.table if len(wanted) == len(out) else plan.table[wanted]
            if blocks[0].dtype in (torch.float16, torch.bfloat16):
                blocks = [block.float() for block in blocks]
            torch.ops.ghn_fast.expand_params_into(blocks, table, to)
            return
        whole = tuple(index for index in wanted if not _has_parts(plan.rows[index], out[index]))
        for piece, places in plan.pieces(tuple(wanted), whole):
            flat = expand_params(blocks, piece)
            tensors = []
            for index, first, last in places:
                tensor = out[index]
                assert tensor is not None
                tensor = tensor.detach()
                if (first, last) != (0, plan.rows[index].shape[0]):
                    tensor = tensor.view(plan.rows[index].shape)[first:last]
                tensors.append(tensor)
            values = [
                flat[row.offset : _end(row)].view(tensor.shape)
                for row, tensor in zip(piece.rows, tensors, strict=True)
            ]
            torch._foreach_copy_(tensors, values)


def reference(blocks: Sequence[Tensor], plan: ParamPlan) -> Tensor:
    """:func:`expand_params` in plain PyTorch; differentiable any number of times."""
    _check(blocks, plan)
    pieces = []
    end = 0
    for row in plan.rows:
        if row.offset > end:
            pieces.append(blocks[0].new_zeros(row.offset - end))
        pieces.append(_expand(blocks[row.block], row).reshape(-1))
        end = row.offset + _numel(row.shape)
    if plan.numel > end:
        pieces.append(blocks[0].new_zeros(plan.numel - end))
    return torch.cat(pieces)


def _joined(blocks: Sequence[Tensor], plan: ParamPlan) -> tuple[list[Tensor], ParamPlan]:
    """All blocks in one tensor, and the plan for it."""
    _check(blocks, plan)
    starts = np.cumsum([0] + [block.numel() for block in blocks]).tolist()
    rows = [row._replace(block=0, source=starts[row.block] + row.source) for row in plan.rows]
    return [torch.cat([block.reshape(-1) for block in blocks])], ParamPlan(rows, plan.numel)


def _has_parts(row: PlanRow, tensor: Tensor | None) -> bool:
    """Whether a tensor can be seen in the shape of its row, so that channels can be taken apart."""
    if tensor is None or _numel(row.shape) <= _PIECE:
        return True
    try:
        tensor.detach().view(row.shape)
    except RuntimeError:
        return False
    return True


def _find_pieces(plan: ParamPlan, wanted: Sequence[int], whole: Sequence[int]) -> list[Piece]:
    pieces: list[Piece] = []
    rows: list[PlanRow] = []
    places: list[tuple[int, int, int]] = []
    end = 0
    for index in wanted:
        row = plan.rows[index]
        channels = row.shape[0]
        # Parts begin at a multiple of the block's channels: each is a parameter like the whole.
        per_channel = max(_numel(row.shape[1:]), 1)
        step = max(_PIECE // per_channel // row.block_shape[0], 1) * row.block_shape[0]
        if index in whole:
            step = max(channels, 1)
        for first in range(0, channels, step):
            last = min(first + step, channels)
            part = (last - first, *row.shape[1:])
            if rows and end + _numel(part) > _PIECE:
                pieces.append((ParamPlan(rows, end), places))
                rows, places, end = [], [], 0
            rows.append(row._replace(shape=part, offset=end))
            places.append((index, first, last))
            end += _numel(part)
    if rows:
        pieces.append((ParamPlan(rows, end), places))
    return pieces


def _end(row: PlanRow) -> int:
    return row.offset + _numel(row.shape)


def _numel(shape: Sequence[int]) -> int:
    return math.prod(shape)


def _expand(blocks: Tensor, row: PlanRow) -> Tensor:
    block = blocks.reshape(-1)[row.source : row.source + _numel(row.block_shape)]
    block = block.view(row.block_shape)
    for dim, (have, want) in enumerate(zip(row.block_shape, row.shape, strict=True)):
        block = block.narrow(dim, 0, min(have, want))
    # Normalised before it is repeated: the block is the smaller of the two.
    block = _normalise(block, row)
    if tuple(block.shape) == row.shape:
        return block
    if 0 in row.shape:
        return block.reshape(row.shape)
    block = block.repeat(
        [-(-want // have) for have, want in zip(block.shape, row.shape, strict=True)]
    )
    for dim, want in enumerate(row.shape):
        block = block.narrow(dim, 0, want)
    return block


def _normalise(block: Tensor, row: PlanRow) -> Tensor:
    if row.kind == Kind.WEIGHT:
        return block * row.scale
    if row.kind == Kind.SCALE:
        return 2 * torch.sigmoid(0.5 * block)
    if row.kind == Kind.SHIFT:
        return torch.tanh(0.2 * block)
    return block


def _check_devices(blocks: Sequence[Tensor]) -> None:
    for index, block in enumerate(blocks):
        if block.device != blocks[0].device:
            raise ValueError(
                f"blocks[{index}]: got a tensor on {block.device}, needs it on "
                f"{blocks[0].device}, as blocks[0] is"
            )


def _check_types(blocks: Sequence[Tensor]) -> None:
    for index, block in enumerate(blocks):
        if not block.is_floating_point() or block.dtype != blocks[0].dtype:
            raise TypeError(
                f"blocks[{index}]: got {block.dtype}, needs the floating-point type of blocks[0] "
                f"({blocks[0].dtype})"
            )


def _check(blocks: Sequence[Tensor], plan: ParamPlan) -> None:
    _check_devices(blocks)
    _check_types(blocks)
    end = 0
    for index, row in enumerate(plan.rows):
        if not 0 <= row.block < len(blocks):
            raise ValueError(
                f"plan.rows[{index}].block: got {row.block}, needs 0 to {len(blocks) - 1}"
            )
        if min(row.block_shape) < 1 or min(row.shape) < 0:
            raise ValueError(f"plan.rows[{index}]: got shapes {row.block_shape} and {row.shape}")
        if row.kind not in tuple(Kind):
            raise ValueError(f"plan.rows[{index}].kind: got {row.kind}, needs 0 to 3")
        size = _numel(row.block_shape)
        if row.source < 0 or row.source + size > blocks[row.block].numel():
            raise ValueError(
                f"plan.rows[{index}]: reads elements {row.source} to {row.source + size} of "
                f"blocks[{row.block}], which has {blocks[row.block].numel()}"
            )
        if row.offset < end or (index == 0 and row.offset != 0):
            needs = f"at least {end}" if index else "0"
            raise ValueError(f"plan.rows[{index}].offset: got {row.offset}, needs {needs}")
        end = row.offset + _numel(row.shape)
        if end > plan.numel:
            raise ValueError(
                f"plan.numel: got {plan.numel}, needs at least {end}, the end of rows[{index}]"
            )
    if plan.numel != 0 and not plan.rows:
        raise ValueError(f"plan.numel: got {plan.numel}, needs 0 for a plan without rows")


def _fake(blocks: Sequence[Tensor], table: Tensor, packed: Tensor | None, numel: int) -> Tensor:
    return blocks[0].new_empty(numel)


def _backward_fake(
    grad: Tensor, blocks: Sequence[Tensor], table: Tensor, packed: Tensor | None
) -> list[Tensor]:
    return [block.new_empty(block.shape) for block in blocks]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    blocks, table, packed, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.num_blocks = len(blocks)
    ctx.save_for_backward(*blocks, table, *(() if packed is None else (packed,)))


def _backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
    if grad is None:
        return [None] * ctx.num_blocks, None, None, None
    saved = ctx.saved_tensors
    blocks, table = saved[: ctx.num_blocks], saved[ctx.num_blocks]
    packed = saved[-1] if len(saved) == ctx.num_blocks + 2 else None
    grads = torch.ops.ghn_fast.expand_params_backward(grad, list(blocks), table, packed)
    return grads, None, None, None


if extension_problem() is None:
    torch.library.register_fake("ghn_fast::expand_params", _fake)
    torch.library.register_fake("ghn_fast::expand_params_backward", _backward_fake)
    torch.library.register_fake("ghn_fast::expand_params_into", lambda blocks, table, out: None)
    torch.library.register_autograd(
        "ghn_fast::expand_params", _backward, setup_context=_setup_context
    )

register_op(
    "expand_params",
    {"cpu": extension_problem, "cuda": cuda_problem, "triton": expand_params_triton.problem},
)
