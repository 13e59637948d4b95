"""Decoders: from node embeddings to blocks of parameters.

A weight comes from a block of at most ``max_shape`` = (out, in, S, S): a linear layer to 4C
channels at each of S x S positions, ReLU, then two 1x1 convolutions (4C -> 8C, ReLU, -> out * in).
1-D parameters come from an MLP C -> 2C -> 2 * channels (row 0: scale, row 1: shift or bias). The
classifier's weight and bias have heads of their own (arXiv 2110.13100, appendix B).

Only what a group of parameters needs is computed: the first positions, and of the last product the
rows of the first out-channels and, in each, of the first in-channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ghn_fast.hypernet.config import GHNConfig
from ghn_fast.hypernet.decode_plan import DecodePlan, Shape4
from ghn_fast.hypernet.linear import sliced_linears
from ghn_fast.ops.decode_blocks import (
    Decoder,
    DecoderWeights,
    decode_blocks,
    is_compiled,
)


def decode(
    x: Tensor, plan: DecodePlan, blocks: BlockDecoder, vectors: VectorDecoder
) -> list[Tensor]:
    """Decode the blocks of all groups of a plan, differentiable.

    Args:
        x: Node embeddings (N, C).
        plan: The groups of nodes.
        blocks, vectors: The decoders. Where no gradients are needed and their layers are plain, a
            compiled op takes the place of some fifty calls.

    Returns:
        Per group a contiguous tensor: blocks (n, out, in, h, w), vectors (n, 2, channels), weights
        of classifiers (n, num_classes, in), or their biases (n, num_classes).
    """
    layers, others = plain_layers(blocks), plain_layers(vectors)
    if layers is not None and others is not None:
        weights = DecoderWeights(*layers, *others)
        middle = blocks.window == "middle"
        if is_compiled(x, weights):
            return plan.finish(decode_blocks(x, *plan.nodes_and_groups, weights, middle=middle))
    # No node is in two groups, so that the gradient of the selection is a plain copy.
    embeddings = x.index_select(0, plan.nodes(x.device)).split(
        [len(nodes) for nodes in plan.groups.values()]
    )
    in_blocks = [
        number
        for number, group in enumerate(plan.groups)
        if group.decoder in (Decoder.BLOCK, Decoder.HEAD_WEIGHT)
    ]
    shapes = [group.shape for group in plan.groups]
    decoded = blocks.decode_groups(
        [embeddings[number] for number in in_blocks], [shapes[number] for number in in_blocks]
    )
    of_group = dict(zip(in_blocks, decoded, strict=True))
    result = []
    for number, group in enumerate(plan.groups):
        if group.decoder == Decoder.VECTOR:
            result.append(vectors(embeddings[number]))
        elif group.decoder == Decoder.HEAD_BIAS:
            result.append(vectors.classifier(embeddings[number]))
        elif group.decoder == Decoder.HEAD_WEIGHT:
            result.append(blocks.classifier(of_group[number]))
        else:
            result.append(of_group[number])
    return plan.finish(result)


class BlockDecoder(nn.Module):
    """Decode weights and the weight of the classifier.

    Args:
        config: Uses ``hid``, ``max_shape``, ``num_classes`` and ``window``.
    """

    def __init__(self, config: GHNConfig) -> None:
        super().__init__()
        self.window = config.window
        out, in_, size, _ = config.max_shape
        self.max_shape = config.max_shape
        self.expand = nn.Linear(config.hid, 4 * config.hid * size * size)
        self.hidden = nn.Linear(4 * config.hid, 8 * config.hid)
        self.output = nn.Linear(8 * config.hid, out * in_)
        self.head = nn.Linear(out, config.num_classes)

    def forward(self, x: Tensor, shape: Shape4) -> Tensor:
        """Decode n blocks of one shape; see :meth:`decode_groups`."""
        return self.decode_groups([x], [shape])[0]

    def decode_groups(self, groups: Sequence[Tensor], shapes: Sequence[Shape4]) -> list[Tensor]:
        """Decode groups of blocks, the blocks of a group in one shape.

        Each layer is a few large products: the first one per kernel size, the second one for all
        groups together, the last one per numbers of channels.

        Args:
            groups: Per group the embeddings of its nodes (n, C).
            shapes: Per group the shape (out, in, h, w) of its blocks, at most ``max_shape``.

        Returns:
            Per group the blocks (n, out, in, h, w), contiguous.
        """
        if not groups:
            return []
        channels, size, hid = self.hidden.in_features, self.max_shape[2], self.expand.in_features
        order: dict[tuple[int, int], list[int]] = {}
        for index, shape in enumerate(shapes):
            order.setdefault(shape[2:], []).append(index)
        sizes = [(height, width) for height, width in order]
        first = sliced_linears(
            [torch.cat([groups[i] for i in members]) for members in order.values()],
            self.expand.weight.view(channels, size, size, hid),
            self.expand.bias.view(channels, size, size),
            [(channels, *kernel) for kernel in sizes],
            firsts=[(0, *self._first(kernel)) for kernel in sizes],
            relu=True,
        )
        # (n, channels, positions) -> (n * positions, channels)
        rows = [x.view(len(x), channels, -1).transpose(1, 2).reshape(-1, channels) for x in first]
        (features,) = sliced_linears(
            [torch.cat(rows)],
            self.hidden.weight,
            self.hidden.bias,
            [(self.hidden.out_features,)],
            relu=True,
        )
        members = [index for indices in order.values() for index in indices]
        counts = [len(groups[i]) * shapes[i][2] * shapes[i][3] for i in range(len(groups))]
        of_group = dict(zip(members, features.split([counts[i] for i in members]), strict=True))
        same: dict[tuple[int, int], list[int]] = {}
        for index in members:
            same.setdefault(shapes[index][:2], []).append(index)
        max_out, max_in = self.max_shape[:2]
        last = sliced_linears(
            [torch.cat([of_group[i] for i in indices]) for indices in same.values()],
            self.output.weight.view(max_out, max_in, -1),
            self.output.bias.view(max_out, max_in),
            list(same),
        )
        blocks = [features] * len(groups)
        for indices, product in zip(same.values(), last, strict=True):
            for index, block in zip(
                indices, product.split([counts[i] for i in indices]), strict=True
            ):
                out, in_, height, width = shapes[index]
                if height * width > 1:
                    # Positions are innermost in a kernel.
                    block = block.view(-1, height * width, out * in_).transpose(1, 2)
                blocks[index] = block.reshape(-1, out, in_, height, width)
        return blocks

    def _first(self, kernel: tuple[int, int]) -> tuple[int, ...]:
        """First row and column of the positions of a kernel."""
        if self.window == "corner":
            return 0, 0
        return tuple(self.max_shape[2] // 2 - size // 2 for size in kernel)

    def classifier(self, blocks: Tensor) -> Tensor:
        """Classifier weights (n, num_classes, in) from blocks (n, out, in, 1, 1) of full out."""
        blocks = F.relu(blocks.flatten(2)).transpose(1, 2)
        return self.head(blocks).transpose(1, 2).contiguous()


class VectorDecoder(nn.Module):
    """Decode 1-D parameters and the bias of the classifier.

    Args:
        config: Uses ``hid``, ``vector_channels`` and ``num_classes``.
    """

    def __init__(self, config: GHNConfig) -> None:
        super().__init__()
        self.channels = config.vector_channels
        self.layers = nn.Sequential(
            nn.Linear(config.hid, 2 * config.hid),
            nn.ReLU(),
            nn.Linear(2 * config.hid, 2 * self.channels),
        )
        self.head = nn.Linear(self.channels, config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Decode (n, C) to (n, 2, channels): row 0 the scale, row 1 the shift or bias."""
        return self.layers(x).view(len(x), 2, self.channels)

    def classifier(self, x: Tensor) -> Tensor:
        """Decode classifier biases: (n, C) to (n, num_classes)."""
        return self.head(F.relu(self(x)[:, 1]))


def plain_layers(decoder: BlockDecoder | VectorDecoder) -> list[Tensor] | None:
    """Weight and bias of each layer of a decoder, in the order in which they are applied.

    ``None`` where the decoder does anything else than apply them: a class of its own, another
    layer or activation, a weight that is computed (pruned, normalised), a hook.
    """
    if type(decoder) is BlockDecoder:
        layers: list[nn.Module] = [decoder.expand, decoder.hidden, decoder.output, decoder.head]
        others: list[nn.Module] = []
    elif type(decoder) is VectorDecoder:
        found = list(decoder.layers)
        if [type(layer) for layer in found] != [nn.Linear, nn.ReLU, nn.Linear]:
            return None
        layers = [found[0], found[2], decoder.head]
        others = [decoder.layers, found[1]]
    else:
        return None
    if any(m._forward_hooks or m._forward_pre_hooks for m in (decoder, *layers, *others)):
        return None
    tensors: list[Tensor] = []
    for layer in layers:
        weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
        if type(layer) is not nn.Linear or weight is None or bias is None:
            return None
        tensors += (weight, bias)
    return tensors
