"""Weights, scales and shifts that are computed from parameters before they meet features.

A network may slice, reshape, join, add or normalise parameters first. The parts of the result are
the parameters whose elements it is made of; the rest (gains of weight normalisation, low-rank
updates) changes their size or adds to them, and keeps its values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

from ghn_fast.capturing.dependence import NORMS
from ghn_fast.capturing.inputs import READS_BY_INDEX
from ghn_fast.capturing.raw import RawOp, RawParam

Use = Literal["weight", "scale", "shift"]

_VIEWS_AND_COPIES = """
Alias AsStrided Clone ConstantPadNd Contiguous Diagonal Expand FakeQuantizePerChannelAffine
FakeQuantizePerChannelAffineCachemask FakeQuantizePerTensorAffine
FakeQuantizePerTensorAffineCachemask Flip FusedMovingAvgObsFakeQuantize Narrow Permute PixelShuffle
Repeat Reshape ReshapeAlias Roll Rot90 Select Slice Split SplitWithSizes Squeeze T ToCopy Transpose
Tril Triu Unbind Unflatten UnsafeSplit UnsafeView Unsqueeze View
"""
STRUCTURAL = frozenset(_VIEWS_AND_COPIES.split())
"""Operations that keep the elements of their first operand, or some of them."""
_JOINS = "BlockDiag Cat CopySlices MaskedFill SelectScatter SliceScatter Stack Where"
JOINS = frozenset(_JOINS.split())
"""Operations whose result is made of the elements of all operands."""
# What weight standardisation, low-rank updates and the like are made of.
_WEIGHT_ARITHMETIC = "Add Addcmul Addmm Baddbmm Bmm Div Mean Mm Mul Neg Rsub Sub Sum"
WEIGHT_ARITHMETIC = frozenset((*_WEIGHT_ARITHMETIC.split(), "WeightNormInterface", *NORMS))
_OF_BESIDE = (
    "a {use} is computed from it and from '{main}', which is predicted; its initial value keeps "
    "the size of that {use}"
)
_TRANSFORMED = (
    "its value passes through {op} before it meets features: the initial value is chosen for that"
)
_SUMS = "features meet sums over it"
_MIXED = _SUMS + " (by {op}) and not its elements: predicted values are not meant for that"
COMPLEMENT = "a mixing factor, whose complement is used as well"
_SCALED = (
    "it is multiplied by a tensor of one number, whose value is not read: the initial value is "
    "chosen for that"
)
_LINEAR = frozenset(("Mm", "Bmm", "Addmm", "Baddbmm", "Mv", "Mean", "Sum", "Convolution"))


@dataclass(slots=True)
class Part:
    """A parameter whose elements an expression is made of.

    Attributes:
        param: The parameter.
        factor: Product of the numbers that it is multiplied by.
        is_offset: Whether a number of the size of one is added to it.
        is_row: Whether one row of it, or one number, is taken out.
    """

    param: RawParam
    factor: float = 1.0
    is_offset: bool = False
    is_row: bool = False


@dataclass(slots=True)
class Expression:
    """What an operand is computed from.

    Attributes:
        parts: Parameters whose elements it is made of.
        beside: Parameters that change these elements or add to them.
        behind: Parameters behind functions whose values nothing can be said of, to the reason; by
            sums over it, another use may still say what a parameter is.
    """

    parts: list[Part] = field(default_factory=list)
    beside: list[RawParam] = field(default_factory=list)
    behind: dict[int, tuple[RawParam, str]] = field(default_factory=dict)

    def elements(self) -> int:
        """Number of elements in the parts."""
        return sum(prod(part.param.shape) for part in self.parts)

    def close_others(self, use: Use) -> None:
        """Let all parameters but the parts keep their values, with the reason."""
        parts = {id(part.param) for part in self.parts}
        for param in self.beside:
            if id(param) not in parts and param.open and self.parts:
                name = self.parts[0].param.name
                close(param, _OF_BESIDE.format(use=use, main=name))
        for param, reason in self.behind.values():
            if id(param) not in parts and param.open:
                if reason.startswith(_SUMS):
                    param.reason = param.reason or reason
                else:
                    close(param, reason)


def close(param: RawParam, reason: str) -> None:
    """Let a parameter keep its value."""
    param.open, param.reason = False, reason
    param.node_type = param.shift_name = None


def analyse(item: RawOp | RawParam, use: Use) -> Expression:
    """Find out what an operand that depends on no features is computed from.

    Args:
        item: The operand.
        use: What it is to the features.
    """
    if type(item) is RawParam:
        return Expression([Part(item)])
    found: dict[int, Expression] = {}
    stack: list[Any] = [item]
    while stack:
        op = stack[-1]
        waiting = [i for i in op.inputs if type(i) is RawOp and id(i) not in found]
        if waiting and id(op) not in found:
            stack.extend(waiting)
            continue
        stack.pop()
        if id(op) not in found:
            found[id(op)] = _combine(op, use, found)
    return found[id(item)]


def _combine(op: RawOp, use: Use, found: dict[int, Expression]) -> Expression:
    kind = op.kind
    if use == "shift" and kind in ("Addcmul", "Addcdiv"):
        return _join([*_operands(op.inputs[:1], found), _main(_operands(op.inputs[1:], found))])
    inputs = _operands(op.inputs, found)
    # Rows that are matrices are weights of experts, which features choose from.
    chosen = use == "weight" and kind in READS_BY_INDEX
    if kind in STRUCTURAL or kind in JOINS or chosen:
        return _join(inputs, is_row=chosen or kind in ("Select", "Unbind"))
    number = op.detail if isinstance(op.detail, (int, float)) else None
    if kind in ("Mul", "Div", "Neg") and len(inputs) == 1:
        if number and kind != "Neg" and not (kind == "Div" and not _is_first(op)):
            return _join(inputs, factor=number if kind == "Mul" else 1 / number)
        if use == "weight" and _constant_is_number(op):
            return _hide(inputs, _SCALED)
        if kind != "Div" or _is_first(op):
            return _join(inputs)
    if use == "shift" and kind in ("Add", "Sub", "Rsub"):
        return _join(inputs)
    if use == "scale" and len(inputs) == 1:
        if kind == "Add" or (kind == "Sub" and _is_first(op)):
            return _join(inputs, is_offset=number is None or abs(number) > 0.5)
        if kind in ("Sub", "Rsub"):
            return _hide(inputs, COMPLEMENT)
    if kind in ("Add", "Mul") or (use == "weight" and kind in WEIGHT_ARITHMETIC):
        return _main(inputs)
    # The first function is the reason, not what follows it.
    return _hide(inputs, (_MIXED if kind in _LINEAR else _TRANSFORMED).format(op=kind))


def _operands(items: Sequence[Any], found: dict[int, Expression]) -> list[Expression]:
    """What is known of operands that parameters take part in."""
    operands = []
    for item in items:
        if type(item) is RawParam:
            operands.append(Expression([Part(item)]))
        elif type(item) is RawOp:
            operands.append(found[id(item)])
    return [i for i in operands if i.parts or i.behind or i.beside]


def _constant_is_number(op: RawOp) -> bool:
    """Whether the constant operand of a product is a tensor of one element."""
    place = next((i for i, item in enumerate(op.inputs) if item is None), None)
    if place is None:
        return False
    if isinstance(op.detail, tuple):
        return len(op.detail) == 2 and prod(op.detail[place]) == 1
    saved = getattr(op.detail, "_saved_other" if place else "_saved_self", None)
    return saved is not None and saved.numel() == 1


def _is_first(op: RawOp) -> bool:
    return bool(op.inputs) and op.inputs[0] is not None


def _join(
    inputs: list[Expression],
    *,
    factor: float = 1.0,
    is_offset: bool = False,
    is_row: bool = False,
) -> Expression:
    """The parts of all operands."""
    joined = Expression()
    for one in inputs:
        for p in one.parts:
            part = Part(p.param, p.factor * factor, p.is_offset or is_offset, p.is_row or is_row)
            if all(part.param is not other.param for other in joined.parts):
                joined.parts.append(part)
        joined.beside += one.beside
        joined.behind |= one.behind
    return joined


def _main(inputs: list[Expression]) -> Expression:
    """The parts of the largest operand; those of the others are beside it."""
    if not inputs:
        return Expression()
    main = max(inputs, key=Expression.elements)
    result = Expression(main.parts)
    for one in inputs:
        result.beside += one.beside
        if one is not main:
            result.beside += [part.param for part in one.parts]
        result.behind |= one.behind
    return result


def _hide(inputs: list[Expression], reason: str) -> Expression:
    """Nothing can be said of the parts behind a function."""
    result = Expression()
    for one in inputs:
        result.beside += one.beside
        result.behind |= one.behind
        for part in one.parts:
            result.behind.setdefault(id(part.param), (part.param, reason))
    return result
