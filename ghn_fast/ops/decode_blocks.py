"""All layers of the decoder for all groups of parameters, in one call and without gradients.

The plain-PyTorch way, with gradients and on every device, is :mod:`ghn_fast.hypernet.decode`; this
op is what prediction on CPU takes instead of its some fifty small calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from ghn_fast.ops.backend import extension_problem, register_op, requested, resolve


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


def can_decode(x: Tensor) -> bool:
    """Whether :func:`decode_blocks` takes node embeddings: float32, on the CPU, no gradients.

    Nobody has to ask for this op: where another back end is asked for, its caller does without.
    """
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and not (torch.is_grad_enabled() and x.requires_grad)
        and requested() in ("auto", "cpu")
        and resolve("decode_blocks", "cpu") == "cpu"
    )


def takes_weights(weights: DecoderWeights) -> bool:
    """Whether it takes the weights, too."""
    return not _needs_gradients(weights) and all(
        weight.dtype == torch.float32 and weight.device.type == "cpu" for weight in weights
    )


def decode_blocks(
    x: Tensor, nodes: Tensor, groups: Sequence[int], weights: DecoderWeights
) -> list[Tensor]:
    """Decode groups of parameters from node embeddings (arXiv 2110.13100, appendix B).

    Runs on the back end ``cpu`` alone; see :func:`can_decode`. Values are independent of the number
    of threads and of what else is decoded.

    Args:
        x: Node embeddings (N, C), float32 on the CPU.
        nodes: Rows of ``x``, those of the first group first; int64 on the CPU.
        groups: The groups (:func:`group_numbers`).
        weights: The layers.

    Returns:
        Per group a contiguous tensor: blocks (n, out, in, h, w), vectors (n, 2, V), weights of
        classifiers (n, K, in), or their biases (n, K).

    Raises:
        TypeError: If a tensor has another dtype.
        ValueError: If shapes do not fit, a group is larger than the decoder's largest block, a node
            is not a row of ``x``, or gradients are needed.
    """
    if _needs_gradients((x, *weights)):
        raise ValueError(
            "x, weights: one of them requires gradients, which this op does not have; call it "
            "under torch.no_grad()"
        )
    return torch.ops.ghn_fast.decode_blocks(x, nodes, groups, weights)


def _needs_gradients(tensors: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _fake(
    x: Tensor, nodes: Tensor, groups: Sequence[int], weights: Sequence[Tensor]
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


if extension_problem() is None:
    torch.library.register_fake("ghn_fast::decode_blocks", _fake)

register_op("decode_blocks", {"cpu": extension_problem})
