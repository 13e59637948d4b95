"""Operations of the parts of a network, as autograd would record them.

The depth of every chain counts, not only its parameters: generations of operations order the nodes
of an architecture graph, and two rules of its contraction look a fixed number of places back. What
is contracted in any case has one name here where autograd has several (``View``).
"""

from __future__ import annotations

from collections.abc import Sequence

from ghn_fast.capturing.raw import RawOp, RawParam
from ghn_fast.deepnets.architectures.primitives import HEADS


def record_chain(
    x: RawOp | None, kinds: Sequence[str], params: Sequence[RawParam], norm: bool
) -> RawOp:
    """A chain of layers.

    Args:
        x: What the chain reads, ``None`` for the image.
        kinds: Their kinds, see :class:`ghn_fast.deepnets.architectures.primitives.Layer`.
        params: Parameters of the layers, in order.
        norm: Whether there is batch normalisation; if not, ``norm`` is passed over.
    """
    position = 0
    for kind in kinds:
        if kind == "relu":
            x = RawOp("Relu", (x,))
        elif kind == "conv":
            x = RawOp("Convolution", (x, params[position]))
            position += 1
        elif norm:
            x = RawOp("NativeBatchNorm", (x, params[position], params[position + 1]))
            position += 2
    if x is None:
        raise ValueError(f"kinds: got {kinds!r}, needs a layer that records an operation")
    return x


def record_factorized(x: RawOp, params: Sequence[RawParam], norm: bool, odd: bool) -> RawOp:
    """Two strided convolutions side by side, the second on features shifted by a pixel.

    Args:
        x: What it reads.
        params: Its parameters.
        norm: Whether there is batch normalisation.
        odd: Whether height and width of the features are odd, so that they are padded.
    """
    x = RawOp("Relu", (x,))
    first = RawOp("Convolution", (x, params[0]))
    shifted = record_slice(RawOp("ConstantPadNd", (x,)) if odd else x)
    second = RawOp("Convolution", (shifted, params[1]))
    return record_chain(RawOp("Cat", (first, second)), ("norm",), params[2:], norm)


def record_slice(x: RawOp) -> RawOp:
    """A slice along height and width."""
    return RawOp("Slice", (RawOp("Slice", (x,)),))


def record_linear(x: RawOp, weight: RawParam, bias: RawParam) -> RawOp:
    """A linear layer on a matrix."""
    return RawOp("Addmm", (bias, x, RawOp("T", (weight,))))


def record_cse(x: RawOp, params: Sequence[RawParam], stride: int, sliced: bool) -> RawOp:
    """Squeeze and excitation.

    Args:
        x: What it reads.
        params: Its parameters.
        stride: Its stride.
        sliced: Whether ``x`` is a slice with gaps in memory; it is copied to merge its positions.
    """
    flat = RawOp("View", (RawOp("Clone", (x,)) if sliced else x,))
    squeezed = RawOp("Mean", (flat,), keepdim=False)
    hidden = RawOp("Relu", (record_linear(squeezed, params[0], params[1]),))
    gate = RawOp("Hardswish", (record_linear(hidden, params[2], params[3]),))
    scaled = RawOp("Mul", (x, RawOp("View", (gate,))))
    return scaled if stride == 1 else record_slice(scaled)


def record_msa(x: RawOp, params: Sequence[RawParam]) -> RawOp:
    """A transformer block."""
    qkv, out, out_bias, ln1, shift1, ln2, shift2, up, up_bias, down, down_bias = params
    tokens = _chain(x, "View", "Permute")
    normed = RawOp("NativeLayerNorm", (tokens, ln1, shift1))
    product = RawOp("Mm", (RawOp("View", (normed,)), RawOp("T", (qkv,))))
    parts = _chain(product, "UnsafeView", "Split")
    # The heads have one channel each: einsum multiplies without a sum, and merging them copies
    # nothing, so that the linear layer behind them gets tokens that are not contiguous.
    narrow = out.shape[1] == HEADS
    weights = _chain(
        _attention_scores(parts, narrow),
        "Mul",
        "Softmax",
        "Unsqueeze",
        "Permute",
        "Permute",
        "View",
    )
    mixed = RawOp("Bmm", (weights, _chain(parts, *_SPLIT_HEADS, "Permute", "View")))
    heads = _chain(mixed, "View", "Permute", "View", "Permute")
    if narrow:
        flat = RawOp("Mm", (_chain(heads, "View", "View"), RawOp("T", (out,))))
        mapped = RawOp("Add", (RawOp("UnsafeView", (flat,)), out_bias))
    else:
        mapped = _linear_on_tokens(_chain(heads, "Clone", "UnsafeView"), out, out_bias)
    attended = RawOp("Add", (mapped, tokens))
    normed = RawOp("NativeLayerNorm", (attended, ln2, shift2))
    hidden = RawOp("Gelu", (_linear_on_tokens(normed, up, up_bias),))
    result = RawOp("Add", (_linear_on_tokens(hidden, down, down_bias), attended))
    return _chain(result, "Permute", "View")


# Splits features into heads, then begins to bring them to the form of a batched product.
_SPLIT_HEADS = ("View", "Permute", "Unsqueeze", "Permute")


def _attention_scores(parts: RawOp, narrow: bool) -> RawOp:
    """Products of queries and keys, two of the ``parts`` of one linear layer's result."""
    if narrow:
        return RawOp(
            "View", (RawOp("Mul", (_chain(parts, *_SPLIT_HEADS), _chain(parts, *_SPLIT_HEADS))),)
        )
    query, key = (_chain(parts, *_SPLIT_HEADS, "Permute", "View") for _ in range(2))
    return _chain(RawOp("Bmm", (query, key)), "View", "Permute", "View")


def _linear_on_tokens(x: RawOp, weight: RawParam, bias: RawParam) -> RawOp:
    return RawOp("UnsafeView", (record_linear(RawOp("View", (x,)), weight, bias),))


def _chain(x: RawOp, *kinds: str) -> RawOp:
    for kind in kinds:
        x = RawOp(kind, (x,))
    return x
