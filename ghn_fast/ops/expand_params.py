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
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ghn_fast.ops import expand_params_triton
from ghn_fast.ops.backend import cuda_problem, library_problem, register_op, resolve
from ghn_fast.ops.expand_params_plan import (
    Kind,
    ParamPlan,
    PlanRow,
    check_devices,
    check_types,
    has_parts,
)

# Block tensors that a launch on CUDA takes (csrc/cuda/expand_params.h); more are joined first.
_MOST_BLOCKS = 160


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
    if not plan.num_rows:
        plan.check(blocks)
        return blocks[0].new_zeros(0) if blocks else torch.zeros(0)
    device = blocks[0].device.type if blocks else "cpu"
    chosen = resolve("expand_params", device)
    if chosen == "reference" or not blocks:
        return reference(blocks, plan)
    blocks = list(blocks)
    check_devices(blocks)
    check_types(blocks)
    if chosen == "triton":
        return expand_params_triton.expand(blocks, plan.work(blocks), plan.numel)
    narrow = chosen == "cpu" and blocks[0].dtype in (torch.float16, torch.bfloat16)
    dtype = blocks[0].dtype
    if narrow:
        plan.check(blocks)
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
        size = math.prod(row.shape)
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
        check_devices(blocks)
        on_cpu = all(tensor.device.type == "cpu" for tensor in to)
        compiled = {torch.float32, torch.float64, torch.float16, torch.bfloat16}
        if chosen == "cpu" and blocks and on_cpu and {t.dtype for t in to} <= compiled:
            table = plan.table if len(wanted) == len(out) else plan.table[wanted]
            if blocks[0].dtype in (torch.float16, torch.bfloat16):
                blocks = [block.float() for block in blocks]
            check_types(blocks)
            torch.ops.ghn_fast.expand_params_into(blocks, table, to)
            # So that autograd notices where an overwritten value was kept for a backward pass.
            torch.autograd.graph.increment_version(to)
            return
        whole = tuple(index for index in wanted if not has_parts(plan.rows[index], out[index]))
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
                flat[row.offset : row.end].view(tensor.shape)
                for row, tensor in zip(piece.rows, tensors, strict=True)
            ]
            torch._foreach_copy_(tensors, values)


def reference(blocks: Sequence[Tensor], plan: ParamPlan) -> Tensor:
    """:func:`expand_params` in plain PyTorch; differentiable any number of times."""
    plan.check(blocks)
    pieces = []
    end = 0
    for row in plan.rows:
        if row.offset > end:
            pieces.append(blocks[0].new_zeros(row.offset - end))
        pieces.append(_expand(blocks[row.block], row).reshape(-1))
        end = row.end
    if plan.numel > end:
        pieces.append(blocks[0].new_zeros(plan.numel - end))
    return torch.cat(pieces)


def _joined(blocks: Sequence[Tensor], plan: ParamPlan) -> tuple[list[Tensor], ParamPlan]:
    """All blocks in one tensor, and the plan for it."""
    plan.check(blocks)
    starts = np.cumsum([0] + [block.numel() for block in blocks]).tolist()
    rows = [row._replace(block=0, source=starts[row.block] + row.source) for row in plan.rows]
    return [torch.cat([block.reshape(-1) for block in blocks])], ParamPlan(rows, plan.numel)


def _expand(blocks: Tensor, row: PlanRow) -> Tensor:
    block = blocks.reshape(-1)[row.source : row.source + math.prod(row.block_shape)]
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


if library_problem() is None:
    torch.library.register_fake("ghn_fast::expand_params", _fake)
    torch.library.register_fake("ghn_fast::expand_params_backward", _backward_fake)
    torch.library.register_fake("ghn_fast::expand_params_into", lambda blocks, table, out: None)
    torch.library.register_autograd(
        "ghn_fast::expand_params", _backward, setup_context=_setup_context
    )

register_op(
    "expand_params",
    {"cpu": library_problem, "cuda": cuda_problem, "triton": expand_params_triton.problem},
)
