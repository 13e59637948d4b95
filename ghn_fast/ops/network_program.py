"""Networks as programs: lists of instructions on activations, by name of their parameters.

A program says what a network computes without a module and without a call in Python for each layer,
so that different interpreters can run it: :func:`run` here, in plain PyTorch, which defines the
result, and the compiled one behind :mod:`ghn_fast.ops.program_gradient`.

Values are numbered: 0 is the batch of images (B, 3, S, S), and each instruction makes the next one.
The last value is the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ghn_fast.ops import exact_batch_norm
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


# Padding of a convolution; see Code.
SAME = -1


class Code(IntEnum):
    """What an instruction does; its numbers in brackets. The compiled interpreter knows the same.

    ``CONV`` [strides by axis, dilation, padding] is depthwise where its kernels have one input
    channel; ``SAME`` padding keeps the size at stride 1 (odd kernels). ``NORM`` [1 for a ReLU
    behind it] is batch normalisation by the statistics of the batch. Poolings [size, stride] keep
    the size at stride 1; averages leave the padding out. ``ZEROS`` has the shape of its source.
    ``STRIDE`` [stride] takes every so many pixels, ``SHIFT`` drops the first row and column, and
    adds zeros behind the last where their number is odd. ``MEAN`` is that of the pixels, (B, C).
    ``GATE`` multiplies channels by its second source (B, C). ``TOKENS`` makes (B, H W, C) of
    images, ``IMAGES`` the reverse, in the shape of its second source. ``ATTEND`` [heads] is
    attention of queries, keys and values, one behind the other (B, N, 3 C). ``BIAS`` adds a
    parameter.
    """

    CONV = 0
    NORM = 1
    RELU = 2
    MAX_POOL = 3
    AVG_POOL = 4
    ADD = 5
    CAT = 6
    ZEROS = 7
    STRIDE = 8
    SHIFT = 9
    MEAN = 10
    LINEAR = 11
    HARDSWISH = 12
    GATE = 13
    TOKENS = 14
    IMAGES = 15
    LAYER_NORM = 16
    ATTEND = 17
    GELU = 18
    GLOBAL_POOL = 19
    FLATTEN = 20
    DROPOUT = 21
    BIAS = 22


class Instruction(NamedTuple):
    """One step of a program.

    Attributes:
        code: What it does.
        sources: Numbers of the values that it reads.
        names: Names of its parameters.
        numbers: See :class:`Code`.
    """

    code: Code
    sources: tuple[int, ...]
    names: tuple[str, ...]
    numbers: tuple[int, ...]


class Program:
    """A list of instructions that is put together one by one."""

    def __init__(self) -> None:
        self.instructions: list[Instruction] = []
        self._rectified: dict[int, int] = {}

    def add(
        self, code: Code, *sources: int, names: Sequence[str] = (), numbers: Sequence[int] = ()
    ) -> int:
        """Append an instruction; the number of its value."""
        self.instructions.append(Instruction(code, sources, tuple(names), tuple(numbers)))
        return len(self.instructions)

    def relu(self, source: int) -> int:
        """ReLU of a value; one for all who ask for that of the same value."""
        if source not in self._rectified:
            self._rectified[source] = self.add(Code.RELU, source)
        return self._rectified[source]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of all parameters, in the order in which they are first read."""
        return tuple(dict.fromkeys(name for step in self.instructions for name in step.names))

    @cached_property
    def packed(self) -> list[int]:
        """The instructions as integers, for the compiled interpreter.

        Of each its code, and the lengths and items of sources, parameters (their positions in
        ``names``) and numbers.
        """
        at = {name: position for position, name in enumerate(self.names)}
        packed: list[int] = []
        for code, sources, names, numbers in self.instructions:
            packed += (int(code), len(sources), *sources, len(names))
            packed += (*(at[name] for name in names), len(numbers), *numbers)
        return packed

    @cached_property
    def _last_reads(self) -> list[list[int]]:
        """Per instruction the values that nobody reads after it."""
        last = {s: n for n, step in enumerate(self.instructions) for s in step.sources}
        ends: list[list[int]] = [[] for _ in self.instructions]
        for value, number in last.items():
            ends[number].append(value)
        return ends

    def run(
        self,
        parameters: Mapping[str, Tensor],
        images: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The result for images (B, 3, S, S), in plain PyTorch, on any device.

        Args:
            parameters: By name, at least those of the program.
            images: The images.
            generator: Source of the masks of dropout; torch's own by default.

        Raises:
            KeyError: If a parameter is missing.
        """
        values: list[Tensor | None] = [images]
        for step, ends in zip(self.instructions, self._last_reads, strict=True):
            sources = [_there(values[source]) for source in step.sources]
            weights = [parameters[name] for name in step.names]
            values.append(
                dropout(sources[0], DROPOUT, generator)
                if step.code is Code.DROPOUT
                else _RUN[step.code](sources, weights, step.numbers)
            )
            for value in ends:
                values[value] = None
        return _there(values[-1])


def _there(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def _conv(sources: list[Tensor], weights: list[Tensor], numbers: Sequence[int]) -> Tensor:
    (x,), (weight,) = sources, weights
    stride, dilation, wanted = (numbers[0], numbers[1]), numbers[2], numbers[3]
    channels, height, width = weight.shape[1:]
    padding = (wanted, wanted)
    if wanted == SAME:
        padding = height // 2 * dilation, width // 2 * dilation
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
    near = list(padding)
    for axis, size in enumerate(x.shape[2:]):
        far = padding[axis] - (size - 1)
        if far > 0 and weight.shape[2 + axis] == 2 * padding[axis] + 1:
            weight = weight.narrow(2 + axis, far, 2 * size - 1)
            near[axis] = size - 1
    return weight, (near[0], near[1])


def _norm(sources: list[Tensor], weights: list[Tensor], numbers: Sequence[int]) -> Tensor:
    (x,), (scale, shift) = sources, weights
    relu = bool(numbers[0])
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


def _shift(sources: list[Tensor], weights: list[Tensor], numbers: Sequence[int]) -> Tensor:
    (x,) = sources
    height, width = x.shape[-2:]
    if height % 2 or width % 2:
        x = F.pad(x, (0, width % 2, 0, height % 2))
    return x[:, :, 1:, 1:]


def _linear(sources: list[Tensor], weights: list[Tensor], numbers: Sequence[int]) -> Tensor:
    weight, *bias = weights
    return F.linear(sources[0], weight, bias[0].to(weight.dtype) if bias else None)


def _layer_norm(sources: list[Tensor], weights: list[Tensor], numbers: Sequence[int]) -> Tensor:
    scale, shift = weights
    return F.layer_norm(sources[0], scale.shape, scale, shift, EPS)


def _attend(sources: list[Tensor], weights: list[Tensor], numbers: Sequence[int]) -> Tensor:
    batch, tokens, _ = sources[0].shape
    query, key, value = (
        part.reshape(batch, tokens, numbers[0], -1).transpose(1, 2)
        for part in sources[0].chunk(3, dim=-1)
    )
    return attention(query, key, value).transpose(1, 2).reshape(batch, tokens, -1)


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of (batch, heads, tokens, channels)."""
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


def dropout(x: Tensor, p: float, generator: torch.Generator | None) -> Tensor:
    """Set elements to zero with a probability, and scale the others so that the mean stays.

    Args:
        x: Any tensor.
        p: The probability, below 1.
        generator: Source of the mask; torch's own by default.
    """
    mask = torch.empty_like(x).bernoulli_(1 - p, generator=generator)
    return x * mask.div_(1 - p)


_RUN: dict[Code, Callable[[list[Tensor], list[Tensor], Sequence[int]], Tensor]] = {
    Code.CONV: _conv,
    Code.NORM: _norm,
    Code.RELU: lambda x, w, n: F.relu(x[0]),
    Code.MAX_POOL: lambda x, w, n: F.max_pool2d(x[0], n[0], n[1], n[0] // 2),
    Code.AVG_POOL: lambda x, w, n: F.avg_pool2d(x[0], n[0], n[1], n[0] // 2, False, False),
    Code.ADD: lambda x, w, n: x[0] + x[1],
    Code.CAT: lambda x, w, n: torch.cat(x, dim=1),
    Code.ZEROS: lambda x, w, n: torch.zeros_like(x[0]),
    Code.STRIDE: lambda x, w, n: x[0][:, :, :: n[0], :: n[0]],
    Code.SHIFT: _shift,
    Code.MEAN: lambda x, w, n: x[0].reshape(*x[0].shape[:2], -1).mean(dim=2),
    Code.LINEAR: _linear,
    Code.HARDSWISH: lambda x, w, n: F.hardswish(x[0]),
    Code.GATE: lambda x, w, n: x[0] * x[1].view(*x[1].shape, 1, 1),
    Code.TOKENS: lambda x, w, n: x[0].reshape(*x[0].shape[:2], -1).permute(0, 2, 1),
    Code.IMAGES: lambda x, w, n: x[0].permute(0, 2, 1).view(x[1].shape),
    Code.LAYER_NORM: _layer_norm,
    Code.ATTEND: _attend,
    Code.GELU: lambda x, w, n: F.gelu(x[0]),
    Code.GLOBAL_POOL: lambda x, w, n: F.adaptive_avg_pool2d(x[0], 1),
    Code.FLATTEN: lambda x, w, n: x[0].reshape(x[0].shape[0], -1),
    Code.BIAS: lambda x, w, n: x[0] + w[0],
}
