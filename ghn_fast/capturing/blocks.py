"""Attention and squeeze-and-excitation, recognised by what they compute.

DeepNets-1M recognises them by places in the order of the graph (capturing/contract.py);
under the rules of GHN-3 (arXiv 2303.04143) operations say what they are:

- a softmax whose result is multiplied by values, as matrices, is attention, and reads the values;
- a product of features with a gate, a sigmoid of what is computed of their mean, is
  squeeze-and-excitation; the mean within has no node.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ghn_fast.capturing.dependence import PRODUCTS
from ghn_fast.capturing.expressions import STRUCTURAL
from ghn_fast.capturing.raw import RawInput, RawOp, RawParam
from ghn_fast.graph.rules import GraphRules

ATTENTION, GATED, GATE, HIDDEN = "Attention", "Gated", "Gate", "Hidden"
"""Kinds of operations that are found here: attention, the product of squeeze-and-excitation, the
gate of an MLP, and what has no node in any case."""

_MATRIX_PRODUCTS = ("Bmm", "Mm", "Baddbmm")
_ACTIVATIONS = ("Silu", "Gelu", "Sigmoid")
_GATES = ("Sigmoid", "Hardsigmoid")
# Operations that keep each element where it is.
_PASSING = STRUCTURAL | {"Dropout", "NativeDropout", "FusedDropout"}
_NORMALISING = frozenset(("Rsqrt", "Sqrt", "Sub", "Rsub"))
# Operations between a gate and the mean that it is computed of, at most.
_FARTHEST = 40


def name_blocks(ops: Sequence[RawOp], rules: GraphRules = GraphRules.GHN3) -> None:
    """Name attention, squeeze-and-excitation and gates, in place.

    Args:
        ops: All operations of a network.
        rules: Whether gates have nodes.
    """
    readers: dict[int, list[RawOp]] | None = None
    for op in ops:
        kind = op.kind
        if kind == "ScaledDotProduct":
            op.kind = ATTENTION
        elif kind in _MATRIX_PRODUCTS:
            _name_attention(op)
        elif kind == "Mul":
            _name_gated(op)
            if rules.types == "language" and op.kind == "Mul":
                _name_gate(op)
        elif kind == "Mean":
            readers = _readers(ops) if readers is None else readers
            if _normalises(op, readers):
                op.kind = HIDDEN
    for op in ops:
        if op.kind in ("Mul", "Clone") or (op.kind == "Add" and _operands(op) < 2):
            op.kind = HIDDEN


def _operands(op: RawOp) -> int:
    """Number of operands that are features, and not tables or masks."""
    return sum(type(item) in (RawOp, RawInput) for item in op.inputs)


def _name_attention(op: RawOp) -> None:
    """Let the softmax read the values that its result is multiplied by."""
    for place, item in enumerate(op.inputs):
        softmax = _through(item)
        if softmax is None or softmax.kind not in ("Softmax", ATTENTION):
            continue
        inputs = list(op.inputs)
        values = [other for n, other in enumerate(inputs) if n != place and type(other) is RawOp]
        if any(_reaches(value, softmax) for value in values):
            continue
        softmax.kind = ATTENTION
        softmax.inputs = [*softmax.inputs, *values]
        op.kind = HIDDEN
        op.inputs = [item]
        return


def _through(item: object) -> RawOp | None:
    """The operation behind views and copies."""
    while type(item) is RawOp and item.kind in _PASSING:
        item = next((i for i in item.inputs if type(i) is RawOp), None)
    return item if type(item) is RawOp else None


def _reaches(op: RawOp, wanted: RawOp) -> bool:
    """Whether values are computed of attention without a layer between, which is a cycle then."""
    stack, seen = [op], {id(op)}
    while stack:
        current = stack.pop()
        if current is wanted:
            return True
        if current.kind in PRODUCTS:
            continue
        for item in current.inputs:
            if type(item) is RawOp and id(item) not in seen:
                seen.add(id(item))
                stack.append(item)
    return False


def _name_gated(op: RawOp) -> None:
    """A product with a gate is squeeze-and-excitation if the gate is computed of a mean."""
    for item in op.inputs:
        gate = _through(item)
        if gate is None or gate.kind not in _GATES:
            continue
        pool = next((o for o in _chain(gate) if o.kind in ("Mean", "AdaptiveAvgPool2D")), None)
        if pool is not None:
            pool.kind = HIDDEN
            op.kind = GATED
            return


def _name_gate(op: RawOp) -> None:
    """A product of two paths of features, one of them behind an activation, is a gate of an MLP."""
    if _operands(op) == 2 and op.inputs[0] is not op.inputs[1]:
        paths = [_through(item) for item in op.inputs]
        if any(path is not None and path.kind in _ACTIVATIONS for path in paths):
            op.kind = GATE


def _chain(op: RawOp) -> Iterator[RawOp]:
    """The operations that lead to one, as long as each has a single operand with features."""
    for _ in range(_FARTHEST):
        sources = [item for item in op.inputs if type(item) is RawOp and not _is_weight(item)]
        if len(sources) != 1:
            return
        op = sources[0]
        yield op


def _is_weight(op: RawOp) -> bool:
    """Whether an operand is a transposed parameter."""
    return op.kind == "T" and type(op.inputs[0]) is RawParam


def _readers(ops: Sequence[RawOp]) -> dict[int, list[RawOp]]:
    readers: dict[int, list[RawOp]] = {}
    for op in ops:
        for item in op.inputs:
            if type(item) is RawOp:
                readers.setdefault(id(item), []).append(op)
    return readers


def _normalises(op: RawOp, readers: dict[int, list[RawOp]]) -> bool:
    """Whether a mean is part of a normalisation: a root is taken of it, or it is subtracted."""
    for _ in range(3):
        following = readers.get(id(op), [])
        if any(reader.kind in _NORMALISING for reader in following):
            return True
        if len(following) != 1:
            return False
        op = following[0]
    return False
