"""Linear layers with windows of one weight, all in one launch, in Triton.

The decoder applies one weight to groups of inputs, to each with other rows of it, a window in three
dimensions. Forward, and for the gradient of the inputs, a program computes a tile of the outputs of
one group. For the gradient of the weight a program owns a tile of the weight and adds up what each
group whose window it meets contributes, group after group: no atomics, and one order.

Float32, with products in float32. Tested in Triton's interpreter, and compiled for a GPU (sm_90);
the compiled code has not run on one yet. The sizes of the tiles are not tuned.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["ROWS", "TILE", "WARPS", "forward", "grad_inputs", "grad_weight"]

# Rows of the inputs and columns of the outputs of a tile, and inputs that are taken at a time.
ROWS, TILE, DEPTH = 32, 64, 32
WARPS = 8

# Columns of the table of groups.
FIRST_ROW = tl.constexpr(0)  # in the joined inputs
NUM_ROWS = tl.constexpr(1)
OUTPUTS = tl.constexpr(2)  # columns of the group's outputs
FIRST_OUT = tl.constexpr(3)  # in the joined outputs, in elements
START = tl.constexpr(4)  # of the window in each of three dimensions
SIZE = tl.constexpr(7)
COLUMNS = tl.constexpr(10)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: Tensor,
    tiles: Tensor,
    numel: int,
    relu: bool,
) -> Tensor:
    """Outputs of all groups, one after the other (numel,).

    Args:
        x: Joined inputs (R, K), contiguous.
        weight: (r_1, r_2, r_3, K), contiguous.
        bias: (r_1, r_2, r_3), contiguous.
        groups: Table of groups (G, 10), int64.
        tiles: Group, tile of rows and tile of outputs of each program (T, 3), int64.
        numel: Number of outputs.
        relu: Whether to apply max(0, .).
    """
    out = x.new_empty(numel)
    if len(tiles):
        with torch.cuda.device_of(x):
            _forward_kernel[(len(tiles),)](
                x_ptr=x,
                weight_ptr=weight,
                bias_ptr=bias,
                groups_ptr=groups,
                tiles_ptr=tiles,
                out_ptr=out,
                second=weight.shape[1],
                third=weight.shape[2],
                inputs=x.shape[1],
                RELU=relu,
                ROWS=ROWS,
                TILE=TILE,
                DEPTH=DEPTH,
                num_warps=WARPS,
            )
    return out


def grad_inputs(
    grad: Tensor, out: Tensor, weight: Tensor, groups: Tensor, tiles: Tensor, rows: int, relu: bool
) -> Tensor:
    """Gradient of the joined inputs (R, K).

    Args:
        grad: Gradient of the outputs (numel,), contiguous.
        out: The outputs, where there is a ReLU.
        weight, groups, relu: As in :func:`forward`.
        tiles: Of programs by groups and rows alone: their tile of outputs is 0.
        rows: R.
    """
    inputs = weight.shape[-1]
    result = grad.new_empty(rows, inputs)
    if len(tiles):
        with torch.cuda.device_of(grad):
            _grad_inputs_kernel[(len(tiles), triton.cdiv(inputs, DEPTH))](
                grad_ptr=grad,
                outputs_ptr=out,
                weight_ptr=weight,
                groups_ptr=groups,
                tiles_ptr=tiles,
                out_ptr=result,
                second=weight.shape[1],
                third=weight.shape[2],
                inputs=inputs,
                RELU=relu,
                ROWS=ROWS,
                TILE=TILE,
                DEPTH=DEPTH,
                num_warps=WARPS,
            )
    return result


def grad_weight(
    grad: Tensor, out: Tensor, x: Tensor, weight: Tensor, groups: Tensor, relu: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of weight and bias; zero for rows in no window.

    Args:
        grad, out, x, weight, groups, relu: As in the other passes.
    """
    inputs = weight.shape[-1]
    result, bias = torch.empty_like(weight), weight.new_empty(weight.shape[:3])
    outputs = bias.numel()
    with torch.cuda.device_of(grad):
        _grad_weight_kernel[(triton.cdiv(outputs, TILE), triton.cdiv(inputs, DEPTH))](
            grad_ptr=grad,
            outputs_ptr=out,
            x_ptr=x,
            groups_ptr=groups,
            weight_ptr=result,
            bias_ptr=bias,
            num_groups=len(groups),
            rows=outputs,
            second=weight.shape[1],
            third=weight.shape[2],
            inputs=inputs,
            RELU=relu,
            ROWS=ROWS,
            TILE=TILE,
            DEPTH=DEPTH,
            num_warps=WARPS,
        )
    return result, bias


@triton.jit
def _weight_row(group, j, second, third):
    """Row of the weight behind output j of a group."""
    size_2 = tl.load(group + SIZE + 1)
    size_3 = tl.load(group + SIZE + 2)
    line = j // size_3
    a = line // size_2
    at = (tl.load(group + START) + a) * second + tl.load(group + START + 1) + line - a * size_2
    return at * third + tl.load(group + START + 2) + j - line * size_3


@triton.jit
def _grads(grad_ptr, outputs_ptr, place, mask, RELU: tl.constexpr):
    """Gradients of outputs before the ReLU."""
    grad = tl.load(grad_ptr + place, mask=mask, other=0.0)
    if RELU:
        grad = tl.where(tl.load(outputs_ptr + place, mask=mask, other=0.0) > 0, grad, 0.0)
    return grad


@triton.jit
def _forward_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    groups_ptr,
    tiles_ptr,
    out_ptr,
    second,
    third,
    inputs,
    RELU: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """A tile of y = x W^T + b."""
    tile = tiles_ptr + tl.program_id(0) * 3
    group = groups_ptr + tl.load(tile) * COLUMNS
    m = tl.load(tile + 1) * ROWS + tl.arange(0, ROWS)
    j = tl.load(tile + 2) * TILE + tl.arange(0, TILE)
    outputs = tl.load(group + OUTPUTS)
    is_row = m < tl.load(group + NUM_ROWS)
    is_out = j < outputs
    row = _weight_row(group, tl.where(is_out, j, 0), second, third)
    source = x_ptr + (tl.load(group + FIRST_ROW) + m) * inputs
    sums = tl.zeros([ROWS, TILE], tl.float32)
    first = 0
    while first < inputs:
        k = first + tl.arange(0, DEPTH)
        is_in = k < inputs
        x = tl.load(
            source[:, None] + k[None, :], mask=is_row[:, None] & is_in[None, :], other=0.0
        )  # [ROWS, DEPTH]
        w = tl.load(
            weight_ptr + row[None, :] * inputs + k[:, None],
            mask=is_out[None, :] & is_in[:, None],
            other=0.0,
        )  # [DEPTH, TILE]
        sums += tl.dot(x, w, input_precision="ieee")
        first += DEPTH
    y = sums + tl.load(bias_ptr + row, mask=is_out, other=0.0)[None, :]
    if RELU:
        y = tl.maximum(y, 0.0)
    place = tl.load(group + FIRST_OUT) + m[:, None] * outputs + j[None, :]
    tl.store(out_ptr + place, y, mask=is_row[:, None] & is_out[None, :])


@triton.jit
def _grad_inputs_kernel(
    grad_ptr,
    outputs_ptr,
    weight_ptr,
    groups_ptr,
    tiles_ptr,
    out_ptr,
    second,
    third,
    inputs,
    RELU: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """A tile of dx = dy W."""
    tile = tiles_ptr + tl.program_id(0) * 3
    group = groups_ptr + tl.load(tile) * COLUMNS
    m = tl.load(tile + 1) * ROWS + tl.arange(0, ROWS)
    k = tl.program_id(1) * DEPTH + tl.arange(0, DEPTH)
    outputs = tl.load(group + OUTPUTS)
    is_row = m < tl.load(group + NUM_ROWS)
    is_in = k < inputs
    line = tl.load(group + FIRST_OUT) + m * outputs
    sums = tl.zeros([ROWS, DEPTH], tl.float32)
    first = tl.full([], 0, tl.int64)
    while first < outputs:
        j = first + tl.arange(0, TILE)
        is_out = j < outputs
        row = _weight_row(group, tl.where(is_out, j, 0), second, third)
        mask = is_row[:, None] & is_out[None, :]
        dy = _grads(grad_ptr, outputs_ptr, line[:, None] + j[None, :], mask, RELU)  # [ROWS, TILE]
        w = tl.load(
            weight_ptr + row[:, None] * inputs + k[None, :],
            mask=is_out[:, None] & is_in[None, :],
            other=0.0,
        )  # [TILE, DEPTH]
        sums += tl.dot(dy, w, input_precision="ieee")
        first += TILE
    place = (tl.load(group + FIRST_ROW) + m)[:, None] * inputs + k[None, :]
    tl.store(out_ptr + place, sums, mask=is_row[:, None] & is_in[None, :])


@triton.jit
def _grad_weight_kernel(
    grad_ptr,
    outputs_ptr,
    x_ptr,
    groups_ptr,
    weight_ptr,
    bias_ptr,
    num_groups,
    rows,
    second,
    third,
    inputs,
    RELU: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """A tile of dW = sum of dy^T x over the groups, and of db = sum of dy."""
    r = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    k = tl.program_id(1) * DEPTH + tl.arange(0, DEPTH)
    is_in = k < inputs
    line = r // third
    at_1 = line // second
    at_2 = line - at_1 * second
    at_3 = r - line * third
    sums = tl.zeros([TILE, DEPTH], tl.float32)
    bias = tl.zeros([TILE], tl.float32)
    number = 0
    while number < num_groups:
        group = groups_ptr + number * COLUMNS
        a = at_1 - tl.load(group + START)
        b = at_2 - tl.load(group + START + 1)
        c = at_3 - tl.load(group + START + 2)
        size_1 = tl.load(group + SIZE)
        size_2 = tl.load(group + SIZE + 1)
        size_3 = tl.load(group + SIZE + 2)
        inside = (a >= 0) & (a < size_1) & (b >= 0) & (b < size_2) & (c >= 0) & (c < size_3)
        inside = inside & (r < rows)
        count = tl.load(group + NUM_ROWS)
        # A tile that the window does not meet has no rows to add.
        count = tl.where(tl.max(inside.to(tl.int32), axis=0) > 0, count, 0)
        j = tl.where(inside, (a * size_2 + b) * size_3 + c, 0)
        outputs = tl.load(group + OUTPUTS)
        first_out = tl.load(group + FIRST_OUT)
        first_row = tl.load(group + FIRST_ROW)
        first = tl.full([], 0, tl.int64)
        while first < count:
            m = first + tl.arange(0, ROWS)
            is_row = m < count
            mask = inside[:, None] & is_row[None, :]
            place = first_out + m[None, :] * outputs + j[:, None]
            dy = _grads(grad_ptr, outputs_ptr, place, mask, RELU)  # [TILE, ROWS]
            x = tl.load(
                x_ptr + (first_row + m)[:, None] * inputs + k[None, :],
                mask=is_row[:, None] & is_in[None, :],
                other=0.0,
            )  # [ROWS, DEPTH]
            sums += tl.dot(dy, x, input_precision="ieee")
            bias += tl.sum(dy, axis=1)
            first += ROWS
        number += 1
    mask = (r < rows)[:, None] & is_in[None, :]
    tl.store(weight_ptr + r[:, None] * inputs + k[None, :], sums, mask=mask)
    if tl.program_id(1) == 0:
        tl.store(bias_ptr + r, bias, mask=r < rows)
