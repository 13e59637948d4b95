"""What the operations of a network depend on: features, or parameters and constants alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ghn_fast.capturing.inputs import READS_BY_INDEX
from ghn_fast.capturing.raw import INPUT, RawOp, RawParam

PRODUCTS: dict[str, tuple[tuple[int, ...], int | None]] = {
    "Convolution": ((1,), 2),
    "DeformConv2D": ((1,), 4),
    "Addmm": ((-1, 1), 0),
    "Addmv": ((1, 2), 0),
    "Mm": ((-1, 0), None),
    "Mv": ((1, 0), None),
    "Dot": ((1, 0), None),
    "Bmm": ((1, 0), None),
    "Baddbmm": ((2, 1), 0),
    "Addbmm": ((2, 1), 0),
    "GroupedMm": ((1,), None),
    "Trilinear": ((1,), None),
}
"""Of each product the places of operands that may be weights, the likelier first, and the place of
the bias (``None``: there is none)."""

NORMS = {
    "NativeBatchNorm": "bn",
    "CudnnBatchNorm": "bn",
    "NativeLayerNorm": "ln",
    "NativeGroupNorm": "ln",
    "InstanceNorm": "ln",
    "RmsNorm": "ln",
    "FusedRmsNorm": "ln",
}
"""Of each normalisation, whose scale and shift are at places 1 and 2, the node type."""

_DEFORM = "GeneratedBackwardFor_torchvision_deform_conv2d"


class Dependence:
    """Which operations depend on features, and the order in which they run.

    Features are what the network computes of its inputs. A layer that is applied to learned queries
    yields features, too: their values are as little known as those of an image's.

    Args:
        ops: All operations of a network.

    Attributes:
        order: The operations, each after those that it reads.
    """

    def __init__(self, ops: Sequence[RawOp]) -> None:
        self._features: dict[int, bool] = {}
        self._readers: dict[int, list[tuple[RawOp, int]]] | None = None
        self.order: list[RawOp] = list(_in_order(ops))
        # Inputs that cannot be followed (in objects of own classes) look like constants.
        unseen = not any(INPUT in op.inputs for op in ops)
        for op in self.order:
            if op.kind == "Generated" and type(op.detail).__name__.startswith(_DEFORM):
                op.kind = "DeformConv2D"
            self._features[id(op)] = (
                any(map(self, op.inputs))
                or _applies_layer(op)
                or (unseen and op.kind in PRODUCTS and None in op.inputs[:2])
                or (unseen and op.kind in READS_BY_INDEX)
            )

    def __call__(self, item: Any) -> bool:
        """Whether an operand depends on features."""
        return item is INPUT or (type(item) is RawOp and self._features.get(id(item), True))

    def note(self, op: RawOp, *, features: bool) -> None:
        """Say of a new operation whether it depends on features."""
        self._features[id(op)] = features

    def readers(self, op: RawOp) -> list[tuple[RawOp, int]]:
        """The operations that read the result of ``op``, each with the place of the operand."""
        if self._readers is None:
            self._readers = {}
            for reader in self.order:
                for place, item in enumerate(reader.inputs):
                    if type(item) is RawOp:
                        self._readers.setdefault(id(item), []).append((reader, place))
        return self._readers.get(id(op), [])


def _in_order(ops: Sequence[RawOp]) -> Iterator[RawOp]:
    done: set[int] = set()
    for root in reversed(ops):
        if id(root) in done:
            continue
        stack = [root]
        while stack:
            op = stack[-1]
            if id(op) in done:
                stack.pop()
                continue
            waiting = [i for i in op.inputs if type(i) is RawOp and id(i) not in done]
            if waiting:
                stack.extend(waiting)
            else:
                stack.pop()
                done.add(id(op))
                yield op


def _applies_layer(op: RawOp) -> bool:
    """Whether an operation is a layer whose class says what its parameters are."""
    if op.kind in PRODUCTS:
        place = PRODUCTS[op.kind][0][0]
        weight = op.inputs[place] if len(op.inputs) > place else None
        is_linear = op.kind in ("Addmm", "Mm")
        if is_linear and type(weight) is RawOp and weight.kind == "T":
            weight = weight.inputs[0]
        elif is_linear:
            return False
        return type(weight) is RawParam and weight.node_type is not None
    if op.kind in NORMS and len(op.inputs) > 1:
        scale = op.inputs[1]
        return type(scale) is RawParam and scale.node_type is not None
    return False


def cut_closed(ops: Sequence[RawOp]) -> None:
    """Cut off what is computed from closed parameters alone: it is no path from the input."""
    known: dict[int, bool] = {}

    def leads(item: Any) -> bool:
        if type(item) is RawOp:
            return known.get(id(item), True)
        return item is INPUT or (
            type(item) is RawParam and (item.node_type is not None or item.reason is None)
        )

    order = list(_in_order(ops))
    for op in order:
        known[id(op)] = any(map(leads, op.inputs))
    for op in order:
        if any(type(i) is RawOp and not known[id(i)] for i in op.inputs):
            op.inputs = [None if type(i) is RawOp and not known[id(i)] else i for i in op.inputs]
