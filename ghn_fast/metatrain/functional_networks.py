"""The networks of DeepNets-1M as functions of their parameters.

:func:`forward` walks the specification of a network and calls one function for each primitive.
Nothing is built for an architecture, so one that has never been seen costs no more than one that
has. The numbers are those of :class:`ghn_fast.deepnets.architectures.network.Network` in training,
with three differences that change rounding and the source of random numbers only: batch
normalisation has exact statistics, attention is one fused operation that never stores its weights,
and the masks of dropout come from a generator of their own, so that networks may run side by side.

Parameters are found by the names that they have in the module; ``at`` is the name of the layer that
a function computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ghn_fast.deepnets.architectures import spec
from ghn_fast.deepnets.architectures.primitives import HEADS
from ghn_fast.metatrain import exact_batch_norm
from ghn_fast.ops.backend import resolve
from ghn_fast.ops.batch_norm_act import batch_norm_act
from ghn_fast.ops.depthwise_conv2d import depthwise_conv2d

# torch's default for both kinds of normalisation.
EPS = 1e-5
DROPOUT = 0.5

# Pixels up to which attention in bfloat16 on a CPU stores its weights.
MOST_PIXELS = 256

# Of activations that our ops for CPUs compute; float64 by their references, for tests.
_TYPES = (torch.float32, torch.bfloat16, torch.float64)


class Weights(NamedTuple):
    """Parameters of a network.

    Attributes:
        by_name: The parameters.
        norm: Whether convolutions are followed by batch normalisation.
        rectified: Activations of the running cell with their ReLUs, by ``id``. Many primitives of
            a cell read the same activation and begin with a ReLU, which is computed once.
    """

    by_name: Mapping[str, Tensor]
    norm: bool
    rectified: dict[int, tuple[Tensor, Tensor]]

    def relu(self, x: Tensor) -> Tensor:
        """ReLU of an activation that several primitives read."""
        # The activation is kept beside its ReLU, so that no other one gets its id.
        if id(x) not in self.rectified:
            self.rectified[id(x)] = x, F.relu(x)
        return self.rectified[id(x)][1]


def forward(
    network: spec.NetworkSpec,
    parameters: Mapping[str, Tensor],
    images: Tensor,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Logits (B, classes) of images (B, 3, S, S).

    Args:
        network: The specification; must have a path from its input to its output.
        parameters: By their names in the module, at least those of all layers that are executed.
        images: The images.
        generator: Source of the masks of dropout; torch's own by default.

    Raises:
        KeyError: If a parameter is missing.
    """
    weights = Weights(parameters, network.norm, {})
    before: Tensor | None
    last: Tensor | None
    before, last = _stem(images, network, weights)
    for index, cell in enumerate(network.cells):
        before, last = last, _cell(before, last, cell, weights, f"cells.{index}")
    if last is None:
        raise RuntimeError("the last cell has no output")
    if network.glob_avg:
        last = F.adaptive_avg_pool2d(last, 1)
    x = last.reshape(last.shape[0], -1)
    for layer in range(len(network.classifier) - 1):
        if layer:
            x = dropout(F.relu(x), DROPOUT, generator)
        x = linear(x, weights, f"classifier.{3 * layer}")
    return x


def _stem(
    images: Tensor, network: spec.NetworkSpec, weights: Weights
) -> tuple[Tensor, Tensor | None]:
    """What the first cell reads."""
    stem, by_name = network.stem, weights.by_name
    if stem.kind == "vit":
        x = F.conv2d(images, by_name["stem0.weight"], None, stem.stride, int(stem.kernel < 4))
        x = x + by_name["pos_enc.weight"]
        return x, x
    if stem.kind == "simple":
        x = batch_norm(conv(images, weights, "stem.0", stem.stride), weights, "stem.1")
        if stem.pool:
            x = F.max_pool2d(x, 3, 2, 1)
        return x, x
    x = conv(images, weights, "stem0.0", stem.stride)
    x = batch_norm(x, weights, "stem0.1", relu=True)
    x = conv(x, weights, "stem0.3", stem.stride)
    x = batch_norm(x, weights, "stem0.4", relu=True)
    if not network.stem1_alive:
        return x, None
    return x, batch_norm(conv(x, weights, "stem1.1", 2), weights, "stem1.2")


def _cell(
    before: Tensor | None, last: Tensor | None, cell: spec.CellSpec, weights: Weights, at: str
) -> Tensor | None:
    """Output of a cell, ``None`` if nothing needs it."""
    if not cell.alive:
        return None
    states: list[Tensor | None] = [
        _preprocess(x, part.kind, weights, f"{at}.preprocess{i}")
        if x is not None and part.alive
        else None
        for i, (part, x) in enumerate(zip(cell.preprocess, (before, last), strict=True))
    ]
    for step in range(0, len(cell.ops), 2):
        state: Tensor | None = None
        for position in (step, step + 1):
            op = cell.ops[position]
            source = states[op.source]
            if op.alive and source is not None:
                x = primitive(op.primitive, source, weights, f"{at}._ops.{position}", op.stride)
                state = x if state is None else state + x
        states.append(state)
    chosen = [None if state is None else states[state] for state in cell.concat]
    weights.rectified.clear()
    # States that nothing reaches count as zeros, which keeps the number of channels.
    some = next(part for part in chosen if part is not None)
    return torch.cat([some * 0 if part is None else part for part in chosen], dim=1)


def _preprocess(x: Tensor, kind: str, weights: Weights, at: str) -> Tensor:
    if kind == "conv":
        return relu_conv(x, weights, at, 1)
    if kind == "factorized":
        return factorized_reduce(x, weights, at)
    return x[:, :, ::2, ::2] if kind == "stride" else x


def primitive(name: str, x: Tensor, weights: Weights, at: str, stride: int) -> Tensor:
    """A primitive of DeepNets-1M (see ``PRIMITIVES`` of the genotype)."""
    if name == "skip_connect":
        return x if stride == 1 else factorized_reduce(x, weights, at)
    family, _, size = name.rpartition("_")
    if family == "max_pool":
        return F.max_pool2d(x, int(size[-1]), stride, int(size[-1]) // 2)
    if family == "avg_pool":
        return F.avg_pool2d(x, int(size[-1]), stride, int(size[-1]) // 2, False, False)
    return _WITH_WEIGHTS[family or name](x, weights, at, stride)


def relu_conv(x: Tensor, weights: Weights, at: str, stride: int) -> Tensor:
    """ReLU, convolution, norm."""
    return batch_norm(conv(weights.relu(x), weights, f"{at}.op.1", stride), weights, f"{at}.op.2")


def split_conv(x: Tensor, weights: Weights, at: str, stride: int) -> Tensor:
    """ReLU, convolution along rows, convolution along columns, norm."""
    x = conv(weights.relu(x), weights, f"{at}.op.1", (1, stride))
    return batch_norm(conv(x, weights, f"{at}.op.2", (stride, 1)), weights, f"{at}.op.3")


def separable_conv(x: Tensor, weights: Weights, at: str, stride: int) -> Tensor:
    """Twice: ReLU, depthwise convolution, pointwise convolution, norm; the first may stride."""
    x = weights.relu(x)
    for first, step in ((1, stride), (5, 1)):
        x = conv(x, weights, f"{at}.op.{first}", step)
        x = conv(x, weights, f"{at}.op.{first + 1}")
        x = batch_norm(x, weights, f"{at}.op.{first + 2}", relu=first == 1)
    return x


def dilated_conv(x: Tensor, weights: Weights, at: str, stride: int) -> Tensor:
    """ReLU, depthwise convolution with dilation 2, pointwise convolution, norm."""
    x = conv(weights.relu(x), weights, f"{at}.op.1", stride, dilation=2)
    return batch_norm(conv(x, weights, f"{at}.op.2"), weights, f"{at}.op.3")


def factorized_reduce(x: Tensor, weights: Weights, at: str) -> Tensor:
    """ReLU, two strided 1x1 convolutions, one of them shifted by a pixel, norm."""
    x = weights.relu(x)
    height, width = x.shape[-2:]
    # The last pixel of an odd row has no neighbour; both halves need the same size.
    shifted = F.pad(x, (0, width % 2, 0, height % 2)) if height % 2 or width % 2 else x
    halves = (
        conv(x, weights, f"{at}.conv_1", 2),
        conv(shifted[:, :, 1:, 1:], weights, f"{at}.conv_2", 2),
    )
    return batch_norm(torch.cat(halves, dim=1), weights, f"{at}.bn")


def squeeze_excitation(x: Tensor, weights: Weights, at: str, stride: int) -> Tensor:
    """Squeeze and excitation of channels (arXiv 1709.01507) with a hard swish for its gate."""
    batch, channels = x.shape[:2]
    squeezed = x.reshape(batch, channels, -1).mean(dim=2)
    hidden = F.relu(linear(squeezed, weights, f"{at}.fc1"))
    x = x * F.hardswish(linear(hidden, weights, f"{at}.fc2")).view(batch, channels, 1, 1)
    return x if stride == 1 else x[:, :, ::stride, ::stride]


def self_attention(x: Tensor, weights: Weights, at: str, stride: int) -> Tensor:
    """Transformer block on the pixels of a feature map (arXiv 2010.11929, Eq. 2 and 3).

    It keeps height and width, whatever the stride.
    """
    shape = x.shape
    # (batch, channels, height, width) -> (batch, pixels, channels)
    tokens = x.reshape(shape[0], shape[1], -1).permute(0, 2, 1)
    attended = _attend(layer_norm(tokens, weights, f"{at}.ln1"), weights, at) + tokens
    hidden = linear(layer_norm(attended, weights, f"{at}.ln2"), weights, f"{at}.ff.net.0")
    result = linear(F.gelu(hidden), weights, f"{at}.ff.net.3") + attended
    return result.permute(0, 2, 1).view(shape)


def _attend(tokens: Tensor, weights: Weights, at: str) -> Tensor:
    batch, pixels, _ = tokens.shape
    query, key, value = (
        part.reshape(batch, pixels, HEADS, -1).transpose(1, 2)
        for part in linear(tokens, weights, f"{at}.to_qkv", bias=False).chunk(3, dim=-1)
    )
    merged = _attention(query, key, value).transpose(1, 2)
    return linear(merged.reshape(batch, pixels, -1), weights, f"{at}.to_out.0")


def _attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of (batch, heads, pixels, channels)."""
    if query.device.type != "cpu" or query.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(query, key, value)
    # On CPUs the backward pass of torch's fused kernel is several times slower in bfloat16 than in
    # float32. Products one by one are the fastest way, but keep all weights; long rows, whose
    # weights are large, are computed in float32 instead.
    if query.shape[2] > MOST_PIXELS:
        wide = F.scaled_dot_product_attention(query.float(), key.float(), value.float())
        return wide.to(query.dtype)
    shape = value.shape
    query, key, value = (part.flatten(0, 1) for part in (query, key, value))
    scale = query.shape[-1] ** -0.5
    nothing = query.new_zeros(())
    # Rounded once, with the scale.
    scores = torch.baddbmm(nothing, query, key.transpose(1, 2), beta=0, alpha=scale)
    return torch.bmm(torch.softmax(scores, -1), value).view(shape)


_WITH_WEIGHTS: dict[str, Callable[[Tensor, Weights, str, int], Tensor]] = {
    "conv": relu_conv,
    "conv_7x1": split_conv,
    "sep_conv": separable_conv,
    "dil_conv": dilated_conv,
    "msa": self_attention,
    "cse": squeeze_excitation,
}


def conv(
    x: Tensor, weights: Weights, at: str, stride: int | tuple[int, int] = 1, dilation: int = 1
) -> Tensor:
    """A convolution without bias whose padding keeps the size at stride 1 (odd kernels).

    It is depthwise where its kernels have one input channel.
    """
    weight = weights.by_name[f"{at}.weight"]
    _, channels, height, width = weight.shape
    padding = (height // 2 * dilation, width // 2 * dilation)
    if channels == 1 < x.shape[1] and _compiled(x, "depthwise_conv2d"):
        # torch's weight gradients of small images, of dilated and large kernels are loops.
        return depthwise_conv2d(x, weight.to(x.dtype), stride, padding, dilation)
    if channels == x.shape[1] and dilation == 1:
        weight, padding = _without_far_taps(x, weight, padding)
    return F.conv2d(x, weight, None, stride, padding, dilation, x.shape[1] // channels)


def _without_far_taps(
    x: Tensor, weight: Tensor, padding: tuple[int, int]
) -> tuple[Tensor, tuple[int, int]]:
    """The part of an odd kernel that meets the image, which is small after several reductions.

    The rest meets zeros only. oneDNN 3.12 gives wrong gradients of it in bfloat16 (seen for 7x7
    kernels of 128 channels on 2x2 pixels), and computes with it.
    """
    for axis, size in enumerate(x.shape[2:]):
        far = padding[axis] - (size - 1)
        if far > 0:
            weight = weight.narrow(2 + axis, far, 2 * size - 1)
            padding = (size - 1, padding[1]) if axis == 0 else (padding[0], size - 1)
    return weight, padding


def batch_norm(x: Tensor, weights: Weights, at: str, *, relu: bool = False) -> Tensor:
    """Batch normalisation, in networks that have it; then ReLU if it is asked for."""
    if weights.norm:
        scale, shift = weights.by_name[f"{at}.weight"], weights.by_name[f"{at}.bias"]
        if _compiled(x, "batch_norm_act"):
            return batch_norm_act(x, scale, shift, EPS, relu)
        x = exact_batch_norm.batch_norm(x, scale, shift, EPS)
    return F.relu(x) if relu else x


def _compiled(x: Tensor, op: str) -> bool:
    """Whether an op of ours for channels-last activations on a CPU takes these as they are."""
    return (
        x.device.type == "cpu"
        and x.dtype in _TYPES
        and x.is_contiguous(memory_format=torch.channels_last)
        and resolve(op, "cpu") == "cpu"
    )


def layer_norm(x: Tensor, weights: Weights, at: str) -> Tensor:
    """Normalisation of each token."""
    scale, shift = weights.by_name[f"{at}.weight"], weights.by_name[f"{at}.bias"]
    return F.layer_norm(x, scale.shape, scale, shift, EPS)


def linear(x: Tensor, weights: Weights, at: str, *, bias: bool = True) -> Tensor:
    """A linear layer."""
    weight = weights.by_name[f"{at}.weight"]
    shift = weights.by_name[f"{at}.bias"].to(weight.dtype) if bias else None
    return F.linear(x, weight, shift)


def dropout(x: Tensor, p: float, generator: torch.Generator | None) -> Tensor:
    """Set elements to zero with a probability, and scale the others so that the mean stays.

    Args:
        x: Any tensor.
        p: The probability, below 1.
        generator: Source of the mask; torch's own by default.
    """
    mask = torch.empty_like(x).bernoulli_(1 - p, generator=generator)
    return x * mask.div_(1 - p)
