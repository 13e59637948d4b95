"""Decoders: from node embeddings to blocks of parameters.

A weight comes from a block of at most ``max_shape`` = (out, in, S, S): a linear layer to 4C
channels at each of S x S positions, ReLU, then two 1x1 convolutions (4C -> 8C, ReLU, -> out * in).
1-D parameters come from an MLP C -> 2C -> 2 * channels (row 0: scale, row 1: shift or bias). The
classifier's weight and bias have heads of their own (arXiv 2110.13100, appendix B).

Only what a group of parameters needs is computed: the first positions, and of the last product the
rows of the first out-channels and, in each, of the first in-channels.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ghn_fast.hypernet.config import GHNConfig
from ghn_fast.hypernet.linear import linear


class BlockDecoder(nn.Module):
    """Decode weights and the weight of the classifier.

    Args:
        config: Uses ``hid``, ``max_shape`` and ``num_classes``.
    """

    def __init__(self, config: GHNConfig) -> None:
        super().__init__()
        out, in_, size, _ = config.max_shape
        self.max_shape = config.max_shape
        self.expand = nn.Linear(config.hid, 4 * config.hid * size * size)
        self.hidden = nn.Linear(4 * config.hid, 8 * config.hid)
        self.output = nn.Linear(8 * config.hid, out * in_)
        self.head = nn.Linear(out, config.num_classes)

    def forward(self, x: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
        """Decode n blocks of one shape.

        Args:
            x: Node embeddings (n, C).
            shape: Shape (out, in, h, w) of the blocks, at most ``max_shape``.

        Returns:
            Blocks (n, out, in, h, w), contiguous.
        """
        out, in_, height, width = shape
        n, hid = x.shape
        channels = self.hidden.in_features
        size = self.max_shape[2]
        weight: Tensor = self.expand.weight
        bias: Tensor = self.expand.bias
        if (height, width) != (size, size):
            weight = weight.view(channels, size, size, hid)[:, :height, :width].reshape(-1, hid)
            bias = bias.view(channels, size, size)[:, :height, :width].reshape(-1)
        # (n, channels, positions) -> (n, positions, channels)
        features = linear(x, weight, bias, relu=True).view(n, channels, -1).transpose(1, 2)
        features = features.reshape(n * height * width, channels)
        features = linear(features, self.hidden.weight, self.hidden.bias, relu=True)
        weight, bias = self.output.weight, self.output.bias
        if (out, in_) != self.max_shape[:2]:
            max_out, max_in = self.max_shape[:2]
            weight = weight.view(max_out, max_in, -1)[:out, :in_].reshape(out * in_, -1)
            bias = bias.view(max_out, max_in)[:out, :in_].reshape(-1)
        blocks = linear(features, weight, bias)
        if height * width > 1:
            # One large product over all nodes and positions; positions are innermost in a kernel.
            blocks = blocks.view(n, height * width, -1).transpose(1, 2)
        return blocks.reshape(n, out, in_, height, width)

    def classifier(self, x: Tensor, in_channels: int) -> Tensor:
        """Decode classifier weights: (n, C) to (n, num_classes, in_channels)."""
        blocks = self(x, (self.max_shape[0], in_channels, 1, 1)).flatten(2)
        return self.head(F.relu(blocks).transpose(1, 2)).transpose(1, 2).contiguous()


class VectorDecoder(nn.Module):
    """Decode 1-D parameters and the bias of the classifier.

    Args:
        config: Uses ``hid``, ``max_shape`` and ``num_classes``.
    """

    def __init__(self, config: GHNConfig) -> None:
        super().__init__()
        self.channels = max(config.max_shape[:2])
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
