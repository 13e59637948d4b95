"""The networks of DeepNets-1M as programs.

:func:`program_of` walks the specification of a network and adds the instructions of each primitive.
Nothing is built for an architecture, so one that has never been seen costs no more than one that
has. The numbers are those of :class:`ghn_fast.deepnets.architectures.network.Network` in training,
with three differences that change rounding and the source of random numbers only: batch
normalisation has exact statistics, attention is one fused operation that never stores its weights,
and the masks of dropout come from a generator of their own, so that networks may run side by side.

Values are known by their numbers in the program. Parameters have the names that they have in the
module; ``at`` is the name of the layer that a function computes.
"""

from __future__ import annotations

from collections.abc import Callable

from ghn_fast.deepnets.architectures import spec
from ghn_fast.deepnets.architectures.primitives import HEADS
from ghn_fast.ops.network_program import SAME, Code, Program


class NetworkProgram(Program):
    """A program in the making.

    Args:
        norm: Whether convolutions are followed by batch normalisation.
    """

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self._norm = norm

    def conv(self, x: int, at: str, stride: int | tuple[int, int] = 1, dilation: int = 1) -> int:
        """A convolution without bias whose padding keeps the size at stride 1 (odd kernels)."""
        strides = (stride, stride) if isinstance(stride, int) else stride
        return self.add(Code.CONV, x, names=[f"{at}.weight"], numbers=(*strides, dilation, SAME))

    def norm(self, x: int, at: str, *, relu: bool = False) -> int:
        """Batch normalisation, in networks that have it; then ReLU if it is asked for."""
        if self._norm:
            return self.add(Code.NORM, x, names=[f"{at}.weight", f"{at}.bias"], numbers=[int(relu)])
        return self.relu(x) if relu else x

    def linear(self, x: int, at: str, *, bias: bool = True) -> int:
        """A linear layer."""
        return self.add(Code.LINEAR, x, names=[f"{at}.weight", f"{at}.bias"][: 1 + bias])

    def layer_norm(self, x: int, at: str) -> int:
        """Normalisation of each token."""
        return self.add(Code.LAYER_NORM, x, names=[f"{at}.weight", f"{at}.bias"])


def program_of(network: spec.NetworkSpec) -> Program:
    """The program of a network: logits (B, classes) of images (B, 3, S, S).

    Args:
        network: The specification; must have a path from its input to its output.
    """
    program = NetworkProgram(network.norm)
    before: int | None
    last: int | None
    before, last = _stem(network, program)
    for index, cell in enumerate(network.cells):
        before, last = last, _cell(before, last, cell, program, f"cells.{index}")
    if last is None:
        raise RuntimeError("the last cell has no output")
    if network.glob_avg:
        last = program.add(Code.GLOBAL_POOL, last)
    x = program.add(Code.FLATTEN, last)
    for layer in range(len(network.classifier) - 1):
        if layer:
            x = program.add(Code.DROPOUT, program.relu(x))
        x = program.linear(x, f"classifier.{3 * layer}")
    return program


def _stem(network: spec.NetworkSpec, program: NetworkProgram) -> tuple[int, int | None]:
    """What the first cell reads."""
    stem, images = network.stem, 0
    if stem.kind == "vit":
        numbers = (stem.stride, stem.stride, 1, int(stem.kernel < 4))
        x = program.add(Code.CONV, images, names=["stem0.weight"], numbers=numbers)
        x = program.add(Code.BIAS, x, names=["pos_enc.weight"])
        return x, x
    if stem.kind == "simple":
        x = program.norm(program.conv(images, "stem.0", stem.stride), "stem.1")
        if stem.pool:
            x = program.add(Code.MAX_POOL, x, numbers=(3, 2))
        return x, x
    x = program.conv(images, "stem0.0", stem.stride)
    x = program.norm(x, "stem0.1", relu=True)
    x = program.conv(x, "stem0.3", stem.stride)
    x = program.norm(x, "stem0.4", relu=True)
    if not network.stem1_alive:
        return x, None
    return x, program.norm(program.conv(x, "stem1.1", 2), "stem1.2")


def _cell(
    before: int | None, last: int | None, cell: spec.CellSpec, program: NetworkProgram, at: str
) -> int | None:
    """Output of a cell, ``None`` if nothing needs it."""
    if not cell.alive:
        return None
    states: list[int | None] = [
        _preprocess(x, part.kind, program, f"{at}.preprocess{i}")
        if x is not None and part.alive
        else None
        for i, (part, x) in enumerate(zip(cell.preprocess, (before, last), strict=True))
    ]
    for step in range(0, len(cell.ops), 2):
        state: int | None = None
        for position in (step, step + 1):
            op = cell.ops[position]
            source = states[op.source]
            if op.alive and source is not None:
                x = primitive(op.primitive, source, program, f"{at}._ops.{position}", op.stride)
                state = x if state is None else program.add(Code.ADD, state, x)
        states.append(state)
    chosen = [None if state is None else states[state] for state in cell.concat]
    # States that nothing reaches count as zeros, which keeps the number of channels.
    some = next(part for part in chosen if part is not None)
    parts = [program.add(Code.ZEROS, some) if part is None else part for part in chosen]
    return program.add(Code.CAT, *parts)


def _preprocess(x: int, kind: str, program: NetworkProgram, at: str) -> int:
    if kind == "conv":
        return relu_conv(x, program, at, 1)
    if kind == "factorized":
        return factorized_reduce(x, program, at)
    return program.add(Code.STRIDE, x, numbers=[2]) if kind == "stride" else x


def primitive(name: str, x: int, program: NetworkProgram, at: str, stride: int) -> int:
    """A primitive of DeepNets-1M (see ``PRIMITIVES`` of the genotype)."""
    if name == "skip_connect":
        return x if stride == 1 else factorized_reduce(x, program, at)
    family, _, size = name.rpartition("_")
    if family in _POOLS:
        return program.add(_POOLS[family], x, numbers=(int(size[-1]), stride))
    return _WITH_WEIGHTS[family or name](x, program, at, stride)


def relu_conv(x: int, program: NetworkProgram, at: str, stride: int) -> int:
    """ReLU, convolution, norm."""
    return program.norm(program.conv(program.relu(x), f"{at}.op.1", stride), f"{at}.op.2")


def split_conv(x: int, program: NetworkProgram, at: str, stride: int) -> int:
    """ReLU, convolution along rows, convolution along columns, norm."""
    x = program.conv(program.relu(x), f"{at}.op.1", (1, stride))
    return program.norm(program.conv(x, f"{at}.op.2", (stride, 1)), f"{at}.op.3")


def separable_conv(x: int, program: NetworkProgram, at: str, stride: int) -> int:
    """Twice: ReLU, depthwise convolution, pointwise convolution, norm; the first may stride."""
    x = program.relu(x)
    for first, step in ((1, stride), (5, 1)):
        x = program.conv(x, f"{at}.op.{first}", step)
        x = program.conv(x, f"{at}.op.{first + 1}")
        x = program.norm(x, f"{at}.op.{first + 2}", relu=first == 1)
    return x


def dilated_conv(x: int, program: NetworkProgram, at: str, stride: int) -> int:
    """ReLU, depthwise convolution with dilation 2, pointwise convolution, norm."""
    x = program.conv(program.relu(x), f"{at}.op.1", stride, dilation=2)
    return program.norm(program.conv(x, f"{at}.op.2"), f"{at}.op.3")


def factorized_reduce(x: int, program: NetworkProgram, at: str) -> int:
    """ReLU, two strided 1x1 convolutions, one of them shifted by a pixel, norm."""
    x = program.relu(x)
    # The last pixel of an odd row has no neighbour; both halves need the same size.
    first = program.conv(x, f"{at}.conv_1", 2)
    second = program.conv(program.add(Code.SHIFT, x), f"{at}.conv_2", 2)
    return program.norm(program.add(Code.CAT, first, second), f"{at}.bn")


def squeeze_excitation(x: int, program: NetworkProgram, at: str, stride: int) -> int:
    """Squeeze and excitation of channels (arXiv 1709.01507) with a hard swish for its gate."""
    hidden = program.relu(program.linear(program.add(Code.MEAN, x), f"{at}.fc1"))
    gate = program.add(Code.HARDSWISH, program.linear(hidden, f"{at}.fc2"))
    x = program.add(Code.GATE, x, gate)
    return x if stride == 1 else program.add(Code.STRIDE, x, numbers=[stride])


def self_attention(x: int, program: NetworkProgram, at: str, stride: int) -> int:
    """Transformer block on the pixels of a feature map (arXiv 2010.11929, Eq. 2 and 3).

    It keeps height and width, whatever the stride.
    """
    tokens = program.add(Code.TOKENS, x)
    attended = program.layer_norm(tokens, f"{at}.ln1")
    attended = program.linear(attended, f"{at}.to_qkv", bias=False)
    attended = program.add(Code.ATTEND, attended, numbers=[HEADS])
    attended = program.add(Code.ADD, program.linear(attended, f"{at}.to_out.0"), tokens)
    hidden = program.linear(program.layer_norm(attended, f"{at}.ln2"), f"{at}.ff.net.0")
    hidden = program.linear(program.add(Code.GELU, hidden), f"{at}.ff.net.3")
    return program.add(Code.IMAGES, program.add(Code.ADD, hidden, attended), x)


_POOLS = {"max_pool": Code.MAX_POOL, "avg_pool": Code.AVG_POOL}

_WITH_WEIGHTS: dict[str, Callable[[int, NetworkProgram, str, int], int]] = {
    "conv": relu_conv,
    "conv_7x1": split_conv,
    "sep_conv": separable_conv,
    "dil_conv": dilated_conv,
    "msa": self_attention,
    "cse": squeeze_excitation,
}
