"""Parameters of the parts of a network: names, shapes and node types, in the module's order."""

from __future__ import annotations

from itertools import pairwise

from ghn_fast.capturing.raw import RawParam
from ghn_fast.deepnets.architectures.spec import HEADS, CellPlan, NetworkPlan, PreprocessPlan


def stem_parameters(plan: NetworkPlan) -> list[RawParam]:
    """Parameters before the first cell."""
    stem = plan.stem
    channels, kernel = stem.channels, stem.kernel
    if stem.kind == "vit":
        encoding = (1, channels, stem.sizes[1], stem.sizes[1])
        return [
            _conv("stem0.weight", channels, 3, kernel),
            RawParam("pos_enc.weight", encoding, "pos_enc"),
        ]
    if stem.kind == "simple":
        return [
            _conv("stem.0.weight", channels, 3, kernel),
            *_norm("stem.1", channels, plan.norm),
        ]
    half = channels // 2
    return [
        _conv("stem0.0.weight", half, 3, kernel),
        *_norm("stem0.1", half, plan.norm),
        _conv("stem0.3.weight", channels, half, 3),
        *_norm("stem0.4", channels, plan.norm),
        _conv("stem1.1.weight", channels, channels, 3),
        *_norm("stem1.2", channels, plan.norm),
    ]


def preprocess_parameters(
    prefix: str, plan: PreprocessPlan, channels: int, norm: bool
) -> list[RawParam]:
    """Parameters of what a cell does to one of its inputs."""
    if plan.kind == "conv":
        return [
            _conv(f"{prefix}.op.1.weight", channels, plan.in_channels, 1),
            *_norm(f"{prefix}.op.2", channels, norm),
        ]
    if plan.kind == "factorized":
        return _factorized(prefix, plan.in_channels, channels, norm)
    return []


def op_parameters(
    prefix: str, primitive: str, channels: int, stride: int, norm: bool
) -> list[RawParam]:
    """Parameters of an operation."""
    family, _, sizes = primitive.rpartition("_")
    if family in ("sep_conv", "dil_conv"):
        kernel = int(sizes[-1])
        # With one channel, there is one group: an ordinary convolution.
        depthwise = family if channels > 1 else "conv"
        result = []
        for first in (1, 5) if family == "sep_conv" else (1,):
            result += [
                _conv(f"{prefix}.op.{first}.weight", channels, 1, kernel, kind=depthwise),
                _conv(f"{prefix}.op.{first + 1}.weight", channels, channels, 1),
                *_norm(f"{prefix}.op.{first + 2}", channels, norm),
            ]
        return result
    if family == "conv":
        return [
            _conv(f"{prefix}.op.1.weight", channels, channels, int(sizes[-1])),
            *_norm(f"{prefix}.op.2", channels, norm),
        ]
    if family == "conv_7x1":
        return [
            _conv(f"{prefix}.op.1.weight", channels, channels, 1, 7),
            _conv(f"{prefix}.op.2.weight", channels, channels, 7, 1),
            *_norm(f"{prefix}.op.3", channels, norm),
        ]
    if primitive == "skip_connect" and stride > 1:
        return _factorized(prefix, channels, channels, norm)
    if primitive == "cse":
        return [
            *_linear(f"{prefix}.fc1", channels, channels // 2),
            *_linear(f"{prefix}.fc2", channels // 2, channels),
        ]
    if primitive == "msa":
        width = channels // HEADS * HEADS
        return [
            *_linear(f"{prefix}.to_qkv", channels, 3 * width)[:1],
            *_linear(f"{prefix}.to_out.0", width, channels),
            *_scale_and_shift(f"{prefix}.ln1", channels, "ln"),
            *_scale_and_shift(f"{prefix}.ln2", channels, "ln"),
            *_linear(f"{prefix}.ff.net.0", channels, channels),
            *_linear(f"{prefix}.ff.net.3", channels, channels),
        ]
    return []


def cell_parameters(index: int, plan: CellPlan, norm: bool) -> list[list[RawParam]]:
    """Parameters of a cell: of its two inputs, then of each of its operations."""
    return [
        *(
            preprocess_parameters(f"cells.{index}.preprocess{i}", part, plan.channels, norm)
            for i, part in enumerate(plan.preprocess)
        ),
        *(
            op_parameters(f"cells.{index}._ops.{i}", op.primitive, plan.channels, op.stride, norm)
            for i, op in enumerate(plan.ops)
        ),
    ]


def classifier_parameters(plan: NetworkPlan) -> list[RawParam]:
    """Parameters of the classifier."""
    widths = plan.classifier
    result = []
    for layer, (width, following) in enumerate(pairwise(widths)):
        # A ReLU and a dropout stand between the linear layers.
        result += _linear(f"classifier.{3 * layer}", width, following)
    return result


def _conv(
    name: str, out: int, into: int, height: int, width: int | None = None, *, kind: str = "conv"
) -> RawParam:
    return RawParam(name, (out, into, height, height if width is None else width), kind)


def _linear(prefix: str, width: int, out: int) -> list[RawParam]:
    return [
        RawParam(f"{prefix}.weight", (out, width), "conv", is_linear_weight=True),
        RawParam(f"{prefix}.bias", (out,), "bias"),
    ]


def _scale_and_shift(prefix: str, channels: int, kind: str) -> list[RawParam]:
    shift = f"{prefix}.bias"
    return [
        RawParam(f"{prefix}.weight", (channels,), kind, shift_name=shift),
        # The node of the scale yields the shift, too.
        RawParam(shift, (channels,), None),
    ]


def _norm(prefix: str, channels: int, norm: bool) -> list[RawParam]:
    return _scale_and_shift(prefix, channels, "bn") if norm else []


def _factorized(prefix: str, into: int, out: int, norm: bool) -> list[RawParam]:
    return [
        _conv(f"{prefix}.conv_1.weight", out // 2, into, 1),
        _conv(f"{prefix}.conv_2.weight", out // 2, into, 1),
        *_norm(f"{prefix}.bn", out, norm),
    ]
