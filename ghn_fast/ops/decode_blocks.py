"""From node embeddings to blocks of parameters: all layers of the decoder, for all groups at once.

A block of (out, in, h, w) is the corner, or the middle, of what three layers make of an embedding,

    relu(expand)  C -> 4C at each of S x S positions
    relu(hidden)  4C -> 8C, at each position
    output        8C -> out x in, at each position

and a vector is last(relu(first)), C -> 2C -> (2, V). The classifier's weight is a linear layer over
the out-channels of relu(block), its bias one over relu(row 1 of the vector) (arXiv 2110.13100,
appendix B).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ghn_fast.ops.backend import library_problem, register_op, resolve

# As errors name them, in the order of DecoderWeights.
_LAYERS = (
    "weights of expand",
    "weights of hidden",
    "weights of output",
    "weights of the classifier's weight",
    "weights of the first layer of vectors",
    "weights of the last layer of vectors",
    "weights of the classifier's bias",
)


class Decoder(IntEnum):
    """What decodes a group of parameters."""

    BLOCK = 0
    VECTOR = 1
    HEAD_WEIGHT = 2
    HEAD_BIAS = 3


class GroupRow(NamedTuple):
    """One group of parameters.

    Attributes:
        decoder: What decodes it.
        shape: Shape (out, in, h, w) of its blocks. Of a ``HEAD_WEIGHT`` only ``in`` counts, of
            vectors and biases nothing.
        nodes: Number of its nodes.
    """

    decoder: Decoder
    shape: tuple[int, int, int, int]
    nodes: int


class DecoderWeights(NamedTuple):
    """Weight (outputs, inputs) and bias (outputs,) of the seven layers of the decoders.

    With hid = C, blocks of at most (out, in, S, S), V channels of a vector and K classes, they lead
    C -> 4C S S, 4C -> 8C, 8C -> out in, out -> K, and C -> 2C, 2C -> 2V, V -> K.
    """

    expand_weight: Tensor
    expand_bias: Tensor
    hidden_weight: Tensor
    hidden_bias: Tensor
    output_weight: Tensor
    output_bias: Tensor
    head_weight: Tensor
    head_bias: Tensor
    first_weight: Tensor
    first_bias: Tensor
    last_weight: Tensor
    last_bias: Tensor
    bias_head_weight: Tensor
    bias_head_bias: Tensor


def group_numbers(rows: Sequence[GroupRow]) -> list[int]:
    """The rows as the op reads them, six numbers for each."""
    return [int(n) for row in rows for n in (row.decoder, *row.shape, row.nodes)]


def is_compiled(x: Tensor, weights: DecoderWeights) -> bool:
    """Whether :func:`decode_blocks` runs on a compiled back end.

    That takes float32 on the CPU without gradients; everything else goes to the reference.

    Raises:
        ValueError: If a back end was asked for that cannot run.
    """
    tensors = (x, *weights)
    fits = all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
    needs_gradients = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return fits and not needs_gradients and resolve("decode_blocks", "cpu") != "reference"


def decode_blocks(
    x: Tensor,
    nodes: Tensor,
    groups: Sequence[int],
    weights: DecoderWeights,
    *,
    middle: bool = False,
) -> list[Tensor]:
    """Decode groups of parameters from node embeddings (arXiv 2110.13100, appendix B).

    Runs on the back ends ``reference`` and ``cpu`` (see :mod:`ghn_fast.ops.backend`); what
    :func:`is_compiled` says no to runs on the reference, whichever is asked for. On ``cpu`` values
    are independent of the number of threads and of what else is decoded.

    Args:
        x: Node embeddings (N, C).
        nodes: Rows of ``x``, those of the first group first; int64 on the CPU.
        groups: The groups (:func:`group_numbers`).
        weights: The layers, of the dtype and on the device of ``x``.
        middle: Which of the S positions along a side the k of a smaller kernel are: the first ones,
            or those from S // 2 - k // 2 on.

    Returns:
        Per group a contiguous tensor: blocks (n, out, in, h, w), vectors (n, 2, V), weights of
        classifiers (n, K, in), or their biases (n, K); differentiable in ``x`` and the weights, any
        number of times.

    Raises:
        TypeError: If a tensor has another dtype.
        ValueError: If shapes or devices do not fit, a group is larger than the decoder's largest
            block, or a node is not a row of ``x``; if the back end that is asked for cannot run.
    """
    if is_compiled(x, weights):
        if nodes.dtype != torch.int64:
            raise TypeError(f"nodes: got {nodes.dtype}, needs torch.int64")
        return torch.ops.ghn_fast.decode_blocks(x, nodes, groups, weights, middle)
    return reference(x, nodes, groups, weights, middle=middle)


def reference(
    x: Tensor,
    nodes: Tensor,
    groups: Sequence[int],
    weights: DecoderWeights,
    *,
    middle: bool = False,
) -> list[Tensor]:
    """:func:`decode_blocks` in plain PyTorch, group by group, differentiable without end."""
    largest = _check(x, weights)
    rows = _read_groups(groups, nodes, largest, len(x))
    result = []
    for row, index in zip(rows, nodes.split([row.nodes for row in rows]), strict=True):
        h = x[index.to(x.device)]
        if row.decoder == Decoder.BLOCK:
            result.append(_block(h, row.shape, largest, weights, middle))
        elif row.decoder == Decoder.HEAD_WEIGHT:
            block = _block(h, row.shape, largest, weights, middle).flatten(2)
            head = F.linear(F.relu(block).transpose(1, 2), weights.head_weight, weights.head_bias)
            result.append(head.transpose(1, 2).contiguous())
        else:
            h = F.relu(F.linear(h, weights.first_weight, weights.first_bias))
            h = F.linear(h, weights.last_weight, weights.last_bias).unflatten(1, (2, -1))
            if row.decoder == Decoder.HEAD_BIAS:
                h = F.linear(F.relu(h[:, 1]), weights.bias_head_weight, weights.bias_head_bias)
            result.append(h)
    return result


def _block(
    h: Tensor,
    shape: tuple[int, int, int, int],
    largest: tuple[int, int, int, int],
    weights: DecoderWeights,
    middle: bool,
) -> Tensor:
    """Blocks (n, out, in, h, w) of nodes (n, C): only what is needed is computed, at all layers."""
    out, in_, height, width = shape
    top, left = (largest[2] // 2 - n // 2 if middle else 0 for n in (height, width))
    rows, columns = slice(top, top + height), slice(left, left + width)
    sizes = (-1, largest[2], largest[3])
    weight = weights.expand_weight.unflatten(0, sizes)[:, rows, columns].flatten(0, 2)
    bias = weights.expand_bias.unflatten(0, sizes)[:, rows, columns].flatten()
    h = F.relu(F.linear(h, weight, bias)).unflatten(1, (-1, height * width)).transpose(1, 2)
    h = F.relu(F.linear(h, weights.hidden_weight, weights.hidden_bias))
    weight = weights.output_weight.unflatten(0, largest[:2])[:out, :in_].flatten(0, 1)
    bias = weights.output_bias.unflatten(0, largest[:2])[:out, :in_].flatten()
    h = F.linear(h, weight, bias).transpose(1, 2)  # (n, out * in, h * w)
    return h.reshape(len(h), out, in_, height, width).contiguous()


def _check(x: Tensor, weights: DecoderWeights) -> tuple[int, int, int, int]:
    """The shape (out, in, S, S) of the largest block, once all layers fit."""
    if not x.is_floating_point():
        raise TypeError(f"x: got {x.dtype}, needs a floating-point type")
    if x.ndim != 2:
        raise ValueError(f"x: got shape {list(x.shape)}, needs (N, C)")
    for name, weight, bias in zip(_LAYERS, weights[::2], weights[1::2], strict=True):
        for tensor in (weight, bias):
            if tensor.dtype != x.dtype:
                raise TypeError(f"{name}: got {tensor.dtype}, needs {x.dtype}, as x has")
            if tensor.device != x.device:
                raise ValueError(f"{name}: got a tensor on {tensor.device}, needs it on {x.device}")
        if weight.ndim != 2 or weight.numel() == 0:
            raise ValueError(
                f"{name}: got a weight of shape {list(weight.shape)}, needs (outputs, inputs)"
            )
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"{name}: got shape {list(bias.shape)}, needs [{len(weight)}]")
    expand, hidden, output, head_weight, first, last, head_bias = (w.shape for w in weights[::2])
    size, channels = isqrt(expand[0] // hidden[1]), last[0] // 2
    out, in_ = head_weight[1], output[0] // head_weight[1]
    fits = (
        (*expand, *output) == (hidden[1] * size**2, x.shape[1], out * in_, hidden[0])
        and (first[1], *last) == (x.shape[1], 2 * channels, first[0])
        and head_bias == (head_weight[0], channels)
    )
    if not fits:
        raise ValueError(f"weights: the layers do not fit each other or x of width {x.shape[1]}")
    return out, in_, size, size


def _read_groups(
    groups: Sequence[int], nodes: Tensor, largest: tuple[int, int, int, int], num_nodes: int
) -> list[GroupRow]:
    """The rows of the groups, once everything is in range; a classifier's with its whole block."""
    if nodes.dtype != torch.int64:
        raise TypeError(f"nodes: got {nodes.dtype}, needs int64")
    if nodes.device.type != "cpu" or nodes.ndim != 1:
        raise ValueError(
            f"nodes: got shape {list(nodes.shape)} on {nodes.device}, needs (M,) on the CPU"
        )
    if len(groups) % 6:
        raise ValueError(f"groups: got {len(groups)} numbers, needs six for each group")
    rows: list[GroupRow] = []
    left = len(nodes)
    for first in range(0, len(groups), 6):
        decoder, out, in_, height, width, count = groups[first : first + 6]
        where = f"groups[{len(rows)}]"
        if decoder not in tuple(Decoder):
            raise ValueError(f"{where}: got decoder {decoder}, needs 0 to 3")
        if not 0 <= count <= left:
            raise ValueError(f"{where}: got {count} nodes, needs 0 to {left}, those that are left")
        head = decoder == Decoder.HEAD_WEIGHT
        shape = (largest[0], in_, 1, 1) if head else (out, in_, height, width)
        fits = all(1 <= n <= most for n, most in zip(shape, largest, strict=True))
        if not fits and (head or decoder == Decoder.BLOCK):
            raise ValueError(
                f"{where}: got a block of shape {shape}, needs at least 1 and at most {largest}"
            )
        left -= count
        rows.append(GroupRow(Decoder(decoder), shape, count))
    if left:
        raise ValueError(
            f"nodes: got {len(nodes)}, needs {len(nodes) - left}, as many as the groups count"
        )
    wrong = ((nodes < 0) | (nodes >= num_nodes)).nonzero()
    if len(wrong):
        index = int(wrong[0])
        raise ValueError(f"nodes[{index}]: got {int(nodes[index])}, needs 0 to {num_nodes - 1}")
    return rows


def _fake(
    x: Tensor,
    nodes: Tensor,
    groups: Sequence[int],
    weights: Sequence[Tensor],
    middle: bool = False,
) -> list[Tensor]:
    given = DecoderWeights(*weights)
    classes = given.head_weight.shape[0]
    result = []
    for first in range(0, len(groups), 6):
        decoder, *shape, count = groups[first : first + 6]
        sizes: tuple[int, ...] = tuple(shape)
        if decoder == Decoder.VECTOR:
            sizes = (2, given.last_weight.shape[0] // 2)
        elif decoder == Decoder.HEAD_WEIGHT:
            sizes = (classes, shape[1])
        elif decoder == Decoder.HEAD_BIAS:
            sizes = (classes,)
        result.append(x.new_empty(count, *sizes))
    return result


if library_problem() is None:
    torch.library.register_fake("ghn_fast::decode_blocks", _fake)

register_op("decode_blocks", {"cpu": library_problem})
