"""Layers of the networks of DeepNets-1M.

Attribute names and the order in which layers are created give the parameter names of the published
networks; the sequence of tensor operations gives their architecture graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghn_fast.deepnets.architectures.primitives import HEADS, TABLE, Layer


class _FastOnMeta:
    """Leaves out the initialisation of values on the meta device, which has none.

    Training builds networks there in every step; initialisers are half of the time that this takes.
    """

    def reset_parameters(self) -> None:
        weight: Tensor = self.weight  # type: ignore[attr-defined]
        if not weight.is_meta:
            super().reset_parameters()  # type: ignore[misc]


class Conv2d(_FastOnMeta, nn.Conv2d):
    """``nn.Conv2d``, quick to create on the meta device."""


class Linear(_FastOnMeta, nn.Linear):
    """``nn.Linear``, quick to create on the meta device."""


class BatchNorm2d(_FastOnMeta, nn.BatchNorm2d):
    """``nn.BatchNorm2d``, quick to create on the meta device."""


class LayerNorm(_FastOnMeta, nn.LayerNorm):
    """``nn.LayerNorm``, quick to create on the meta device."""


def conv(
    in_channels: int,
    out_channels: int,
    kernel: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    *,
    dilation: int = 1,
    groups: int = 1,
) -> Conv2d:
    """A convolution without bias whose padding keeps the size at stride 1 (odd kernels)."""
    sizes = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (sizes[0] // 2 * dilation, sizes[1] // 2 * dilation)
    return Conv2d(
        in_channels,
        out_channels,
        sizes,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=False,
    )


def norm_layer(norm: bool, channels: int) -> nn.Module:
    """Batch normalisation by the statistics of the batch, in evaluation too; or nothing."""
    return BatchNorm2d(channels, track_running_stats=False) if norm else nn.Identity()


class ConvBlock(nn.Module):
    """A chain of layers under the name ``op``, as the convolutional primitives are built."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.op = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


def relu_conv(in_channels: int, out_channels: int, norm: bool) -> ConvBlock:
    """ReLU, 1x1 convolution, norm."""
    return ConvBlock(nn.ReLU(), conv(in_channels, out_channels, 1), norm_layer(norm, out_channels))


def chain(layers: Sequence[Layer], channels: int, stride: int, norm: bool) -> ConvBlock:
    """The layers of a primitive that is a chain of them."""
    modules: list[nn.Module] = []
    for layer in layers:
        if layer.kind == "relu":
            modules.append(nn.ReLU())
        elif layer.kind == "norm":
            modules.append(norm_layer(norm, channels))
        else:
            height, width = (stride if halves else 1 for halves in layer.halves)
            row = {"dilation": layer.dilation, "groups": channels if layer.depthwise else 1}
            modules.append(conv(channels, channels, layer.kernel, (height, width), **row))
    return ConvBlock(*modules)


class FactorizedReduce(nn.Module):
    """Halves height and width by two strided 1x1 convolutions, one of them shifted by a pixel."""

    def __init__(self, in_channels: int, out_channels: int, norm: bool) -> None:
        super().__init__()
        self.conv_1 = conv(in_channels, out_channels // 2, 1, 2)
        self.conv_2 = conv(in_channels, out_channels // 2, 1, 2)
        self.bn = norm_layer(norm, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        shifted = x
        if x.shape[-2] % 2 or x.shape[-1] % 2:
            # The last pixel of an odd row has no neighbour; both halves need the same size.
            shifted = F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))
        return self.bn(torch.cat((self.conv_1(x), self.conv_2(shifted[:, :, 1:, 1:])), dim=1))


class Stride(nn.Module):
    """Every second pixel of every second row."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, ::2, ::2]


class PosEnc(nn.Module):
    """Adds a learned positional encoding (arXiv 2010.11929, section 3.1).

    Args:
        channels: Number of channels of the features.
        size: Their height and width.
    """

    ghn_node_types: ClassVar[dict[str, str]] = {"weight": "pos_enc"}

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, channels, size, size))
        if not self.weight.is_meta:
            nn.init.normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


class SqueezeExcitation(nn.Module):
    """Squeeze and excitation of channels (arXiv 1709.01507) with a hard swish for its gate."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.fc1 = Linear(channels, channels // 2)
        self.fc2 = Linear(channels // 2, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        squeezed = x.reshape(batch, channels, -1).mean(dim=2)
        gate = F.hardswish(self.fc2(F.relu(self.fc1(squeezed))))
        x = x * gate.view(batch, channels, 1, 1)
        return x if self.stride == 1 else x[:, :, :: self.stride, :: self.stride]


class MLP(nn.Module):
    """Two linear layers with a GELU between them, under the published names."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Positions 2 and 4 are dropouts of probability 0 in the published networks.
        self.net = nn.Sequential(
            Linear(channels, channels), nn.GELU(), nn.Identity(), Linear(channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class SelfAttention(nn.Module):
    """Transformer block on the pixels of a feature map (arXiv 2010.11929, Eq. 2 and 3).

    Multi-head self-attention and an MLP, each on normalised features and with a residual
    connection.

    Args:
        channels: Number of channels, at least ``heads``. Channels that do not fill a head are left
            out of the attention.
        heads: Number of heads.
    """

    def __init__(self, channels: int, heads: int = HEADS) -> None:
        super().__init__()
        self.heads = heads
        width = channels // heads * heads
        self.to_qkv = Linear(channels, 3 * width, bias=False)
        self.to_out = nn.Sequential(Linear(width, channels))
        self.ln1 = LayerNorm(channels)
        self.ln2 = LayerNorm(channels)
        self.ff = MLP(channels)

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        # (batch, channels, height, width) -> (batch, pixels, channels)
        tokens = x.reshape(shape[0], shape[1], -1).permute(0, 2, 1)
        attended = self._attend(self.ln1(tokens)) + tokens
        result = self.ff(self.ln2(attended)) + attended
        return result.permute(0, 2, 1).view(shape)

    def _attend(self, tokens: Tensor) -> Tensor:
        batch, pixels, _ = tokens.shape
        # Each (batch, heads, pixels, channels of a head).
        query, key, value = (
            part.reshape(batch, pixels, self.heads, -1).permute(0, 2, 1, 3)
            for part in self.to_qkv(tokens).chunk(3, dim=-1)
        )
        scale = query.shape[-1] ** -0.5
        # einsum and not matmul or a fused attention: the recorded operations make the graph.
        weights = (torch.einsum("bnqc,bnkc->bnqk", query, key) * scale).softmax(dim=-1)
        merged = torch.einsum("bnqk,bnkc->bnqc", weights, value).permute(0, 2, 1, 3)
        return self.to_out(merged.reshape(batch, pixels, -1))


def make_op(primitive: str, channels: int, stride: int, norm: bool) -> nn.Module:
    """The layer of a primitive.

    Args:
        primitive: One of :data:`ghn_fast.deepnets.PRIMITIVES`.
        channels: Number of channels that it reads and yields.
        stride: 2 to halve height and width; ``msa`` does not.
        norm: Whether convolutions are followed by batch normalisation.
    """
    row = TABLE[primitive]
    if row.kind == "chain":
        return chain(row.layers, channels, stride, norm)
    if row.kind == "msa":
        return SelfAttention(channels)
    if row.kind == "cse":
        return SqueezeExcitation(channels, stride)
    padding = row.kernel // 2
    if row.kind == "max_pool":
        return nn.MaxPool2d(row.kernel, stride, padding=padding)
    if row.kind == "avg_pool":
        return nn.AvgPool2d(row.kernel, stride, padding=padding, count_include_pad=False)
    if row.kind == "skip" and stride > 1:
        return FactorizedReduce(channels, channels, norm)
    return nn.Identity()
