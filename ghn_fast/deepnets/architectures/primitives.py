"""The primitives of DeepNets-1M: the layers of each, and its parameters.

This table is what modules (:mod:`.layers`), architecture graphs (:mod:`ghn_fast.deepnets.graphs`)
and estimates of work (:mod:`ghn_fast.metatrain.costs`) are made from. ``csrc/deepnets/`` has the
same in C++; the tests compare the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Final, NamedTuple

HEADS: Final = 8
"""Number of heads of self-attention."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of a chain.

    Attributes:
        kind: ``relu``, ``conv`` or ``norm``.
        kernel: Height and width of a convolution's kernel, odd numbers.
        halves: Whether a convolution halves the height and the width, in a primitive that does.
        depthwise: Whether a convolution has a group for each channel.
        dilation: Distance of the elements of a convolution's kernel.
    """

    kind: str
    kernel: tuple[int, int] = (1, 1)
    halves: tuple[bool, bool] = (False, False)
    depthwise: bool = False
    dilation: int = 1


@dataclass(frozen=True, slots=True)
class Primitive:
    """An operation of a cell.

    Attributes:
        kind: ``none``, ``skip``, ``max_pool``, ``avg_pool``, ``chain``, ``msa`` or ``cse``.
        layers: Layers of a chain.
        kernel: Height and width that a pooling covers.
        activations: Values that it writes per value of its result, for estimates of time.
    """

    kind: str
    layers: tuple[Layer, ...] = ()
    kernel: int = 0
    activations: int = 1


class Param(NamedTuple):
    """A parameter.

    Attributes:
        name: Its name in the module of its network.
        shape: Its shape.
        node_type: Type of the node that stands for it; ``None`` for the shift of a norm layer,
            which the node of the scale before it yields, too.
        positions: Number of positions of an image at which a weight is multiplied by features.
    """

    name: str
    shape: tuple[int, ...]
    node_type: str | None
    positions: int = 0


_BOTH = (True, True)
_RELU, _NORM, _POINTWISE = Layer("relu"), Layer("norm"), Layer("conv")


def _chain(*layers: Layer) -> Primitive:
    return Primitive("chain", layers, activations=len(layers))


def _full(kernel: int) -> Primitive:
    return _chain(_RELU, Layer("conv", (kernel, kernel), _BOTH), _NORM)


def _depthwise(kernel: int, dilation: int, halves: tuple[bool, bool] = _BOTH) -> tuple[Layer, ...]:
    return _RELU, Layer("conv", (kernel, kernel), halves, True, dilation), _POINTWISE, _NORM


def _separable(kernel: int) -> Primitive:
    return _chain(*_depthwise(kernel, 1), *_depthwise(kernel, 1, (False, False)))


TABLE: Final[dict[str, Primitive]] = {
    "none": Primitive("none"),
    "max_pool_3x3": Primitive("max_pool", kernel=3),
    "avg_pool_3x3": Primitive("avg_pool", kernel=3),
    "skip_connect": Primitive("skip"),
    "sep_conv_3x3": _separable(3),
    "sep_conv_5x5": _separable(5),
    "dil_conv_3x3": _chain(*_depthwise(3, 2)),
    "dil_conv_5x5": _chain(*_depthwise(5, 2)),
    "conv_1x1": _full(1),
    "conv_7x1_1x7": _chain(
        _RELU, Layer("conv", (1, 7), (False, True)), Layer("conv", (7, 1), (True, False)), _NORM
    ),
    "conv_3x3": _full(3),
    "conv_5x5": _full(5),
    "conv_7x7": _full(7),
    "msa": Primitive("msa", activations=16),
    "cse": Primitive("cse", activations=2),
}
"""The primitives by their names, in the order of the published generator."""

PRIMITIVES: Final[tuple[str, ...]] = tuple(TABLE)
"""Names of the operations that a genotype may use, in the order of the published generator."""


def halved(size: int) -> int:
    """Height or width of features after a layer with stride 2."""
    return (size + 1) // 2


def op_parameters(
    prefix: str, name: str, channels: int, size: int, stride: int, norm: bool
) -> list[Param]:
    """Parameters of an operation of a cell, in the module's order.

    Args:
        prefix: Name of its module.
        name: Its primitive.
        channels: Number of channels that it reads and yields.
        size: Height and width of what it reads.
        stride: 2 where it halves them.
        norm: Whether convolutions are followed by batch normalisation.
    """
    primitive = TABLE[name]
    if primitive.kind == "chain":
        return chain_parameters(f"{prefix}.op", primitive.layers, channels, size, stride, norm)
    if primitive.kind == "skip" and stride > 1:
        return factorized_parameters(prefix, channels, channels, size, norm)
    if primitive.kind == "cse":
        return [
            *linear_parameters(f"{prefix}.fc1", channels, channels // 2),
            *linear_parameters(f"{prefix}.fc2", channels // 2, channels),
        ]
    if primitive.kind == "msa":
        width, tokens = channels // HEADS * HEADS, size**2
        return [
            Param(f"{prefix}.to_qkv.weight", (3 * width, channels), "conv", tokens),
            *linear_parameters(f"{prefix}.to_out.0", width, channels, tokens),
            *_scale_and_shift(f"{prefix}.ln1", channels, "ln"),
            *_scale_and_shift(f"{prefix}.ln2", channels, "ln"),
            *linear_parameters(f"{prefix}.ff.net.0", channels, channels, tokens),
            *linear_parameters(f"{prefix}.ff.net.3", channels, channels, tokens),
        ]
    return []


def chain_parameters(
    prefix: str, layers: Sequence[Layer], channels: int, size: int, stride: int, norm: bool
) -> list[Param]:
    """Parameters of a chain of layers; for the arguments see :func:`op_parameters`."""
    result = []
    height = width = size
    for position, layer in enumerate(layers):
        name = f"{prefix}.{position}"
        if layer.kind == "conv":
            if stride > 1:
                height = halved(height) if layer.halves[0] else height
                width = halved(width) if layer.halves[1] else width
            # With one channel, there is one group: an ordinary convolution.
            kind = "conv"
            if layer.depthwise and channels > 1:
                kind = "sep_conv" if layer.dilation == 1 else "dil_conv"
            inputs = 1 if layer.depthwise else channels
            shape = (channels, inputs, *layer.kernel)
            result.append(Param(f"{name}.weight", shape, kind, height * width))
        elif layer.kind == "norm":
            result += norm_parameters(name, channels, norm)
    return result


def factorized_parameters(
    prefix: str, in_channels: int, out_channels: int, size: int, norm: bool
) -> list[Param]:
    """Parameters of two strided convolutions side by side, of features of height ``size``."""
    shape, pixels = (out_channels // 2, in_channels, 1, 1), halved(size) ** 2
    return [
        Param(f"{prefix}.conv_1.weight", shape, "conv", pixels),
        Param(f"{prefix}.conv_2.weight", shape, "conv", pixels),
        *norm_parameters(f"{prefix}.bn", out_channels, norm),
    ]


def linear_parameters(prefix: str, width: int, out: int, positions: int = 1) -> list[Param]:
    """Weight and bias of a linear layer."""
    return [
        Param(f"{prefix}.weight", (out, width), "conv", positions),
        Param(f"{prefix}.bias", (out,), "bias"),
    ]


def norm_parameters(prefix: str, channels: int, norm: bool) -> list[Param]:
    """Scale and shift of batch normalisation, if there is one."""
    return _scale_and_shift(prefix, channels, "bn") if norm else []


def op_multiply_adds(name: str, channels: int, size: int, params: Sequence[Param]) -> int:
    """Multiply-adds of an operation with parameters ``params`` per image, poolings aside."""
    return multiply_adds(params) + (
        # Products of queries and keys, and of attention and values.
        2 * size**4 * (channels // HEADS * HEADS) if TABLE[name].kind == "msa" else 0
    )


def multiply_adds(params: Sequence[Param]) -> int:
    """Multiply-adds of convolutions and linear layers per image."""
    return sum(prod(param.shape) * param.positions for param in params)


def _scale_and_shift(prefix: str, channels: int, kind: str) -> list[Param]:
    return [
        Param(f"{prefix}.weight", (channels,), kind),
        Param(f"{prefix}.bias", (channels,), None),
    ]
