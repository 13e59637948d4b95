"""What parameters are, by how they are used.

Convolutions, linear layers, BatchNorm and LayerNorm say what their parameters are. Any other
parameter is recognised by what is done with it, whatever the class that holds it: the second
operand of a convolution or matrix product is a weight, a factor of features a scale, a summand of
features a shift or a table of positions. Reshapes and the like between a parameter and its use do
not count. A use that no treatment fits leaves the parameter as it is, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from ghn_fast.capturing.raw import RawOp, RawParam

_VIEWS_AND_COPIES = """
Alias AsStrided Clone CopySlices Expand Narrow Permute Repeat Reshape ReshapeAlias Select Slice
Split SplitWithSizes Squeeze T ToCopy Transpose Unbind UnsafeSplit UnsafeView Unsqueeze View
"""
_STRUCTURAL = frozenset(_VIEWS_AND_COPIES.split())
# What weight normalisation, standardisation and the like are made of.
_SUMS_AND_PRODUCTS = """
Add ClampMin Div Dot LinalgVectorNorm Mean Mul Mv NativeBatchNorm Neg Norm NormExceptDim Pow
Rsqrt Sqrt Std Sub Sum Var VarMean Vdot WeightNormInterface
"""
_ARITHMETIC = _STRUCTURAL | frozenset(_SUMS_AND_PRODUCTS.split())
# Operand that is the weight, operand that is the bias (None: there is none).
_PRODUCTS: dict[str, tuple[tuple[int, ...], int | None]] = {
    "Convolution": ((1,), 2),
    "Addmm": ((-1, 1), 0),
    "Mm": ((-1, 0), None),
    "Bmm": ((1, 0), None),
    "Baddbmm": ((2, 1), 0),
}
_NORMS = {
    "NativeBatchNorm": "bn",
    "CudnnBatchNorm": "bn",
    "NativeLayerNorm": "ln",
    "NativeGroupNorm": "ln",
    "InstanceNorm": "ln",
    "RmsNorm": "ln",
    "FusedRmsNorm": "ln",
}
_TABLE = (
    "a table that is read by index: rows stand for distances or symbols, and predicted blocks, "
    "which repeat, would make different ones equal; its initial values keep them apart"
)
_LOGITS = (
    "a table of summands of attention weights, one per pair of positions: predicted blocks, which "
    "repeat, would make distant positions equal; near its initial values attention follows content"
)
_POSITIONS = (
    "a table of positions of a sequence: predicted blocks, which repeat, would make distant "
    "positions equal; its initial values tell them apart"
)
_TOKENS = (
    "several learned tokens: predicted blocks, which repeat, would make some of them equal; their "
    "initial values tell them apart"
)
_SLOPE = "the slope of a PReLU, whose initial value makes the activation what it is"
_NUMBER = "a single number, whose initial value has a meaning of its own"
_TRANSFORMED = (
    "its value passes through {op} before it meets features: the initial value is chosen for that"
)


def assign_roles(ops: Sequence[RawOp]) -> None:
    """Find out what open parameters are, in place.

    Weights that are computed from parameters (weight normalisation and standardisation, spectral
    normalisation, projections that share one tensor) are replaced by their main parameter, so that
    the features run through its node.

    Args:
        ops: All operations of a network.
    """
    depends = _Dependence()
    for op in ops:
        if op.kind in _PRODUCTS:
            _take_product(op, depends)
        elif op.kind in _NORMS:
            _take_norm(op)
    readers: dict[int, list[tuple[RawOp, int]]] = {}
    params: dict[int, RawParam] = {}
    for op in ops:
        for place, item in enumerate(op.inputs):
            if item is None:
                continue
            readers.setdefault(id(item), []).append((op, place))
            if type(item) is RawParam and item.open:
                params[id(item)] = item
    for param in params.values():
        _take_by_use(param, readers, depends)
    _cut_closed(ops)


class _Dependence:
    """Whether an operation depends on features, or on parameters and constants alone."""

    def __init__(self) -> None:
        self._known: dict[int, bool] = {}

    def __call__(self, item: RawOp | RawParam | None) -> bool:
        if type(item) is not RawOp:
            return False
        stack = [item]
        while stack:
            op = stack[-1]
            if id(op) in self._known:
                stack.pop()
                continue
            inputs = [i for i in op.inputs if type(i) is RawOp]
            open_inputs = [i for i in inputs if id(i) not in self._known]
            if open_inputs:
                stack.extend(open_inputs)
                continue
            # A product with something that is no parameter: the image, or what comes of it.
            reads = op.kind in _PRODUCTS or op.kind in ("ScaledDotProduct", "MaxPool2DWithIndices")
            self._known[id(op)] = any(self._known[id(i)] for i in inputs) or (
                reads and None in op.inputs[:2]
            )
            stack.pop()
        return self._known[id(item)]


def _cut_closed(ops: Sequence[RawOp]) -> None:
    """Cut off what is computed from closed parameters alone: it is no path from the input."""
    known: dict[int, bool] = {}

    def has_node(item: RawOp | RawParam | None) -> bool:
        return type(item) is RawParam and (item.node_type is not None or item.reason is None)

    for root in ops:
        stack = [root]
        while stack:
            op = stack[-1]
            inputs = [i for i in op.inputs if type(i) is RawOp]
            waiting = [i for i in inputs if id(i) not in known]
            if id(op) in known or not waiting:
                known[id(op)] = any(known[id(i)] for i in inputs) or any(map(has_node, op.inputs))
                stack.pop()
            else:
                stack.extend(waiting)
    for op in ops:
        if any(type(i) is RawOp and not known[id(i)] for i in op.inputs):
            op.inputs = [None if type(i) is RawOp and not known[id(i)] else i for i in op.inputs]


def _take_product(op: RawOp, depends: _Dependence) -> None:
    weight_places, bias_place = _PRODUCTS[op.kind]
    for place in weight_places:
        item = op.inputs[place]
        if item is None or (type(item) is RawOp and depends(item)):
            continue
        main = _main_parameter(item)
        if main is None:
            continue
        if main.open:
            _make_weight(main, op, place)
        if main.node_type in ("conv", "sep_conv", "dil_conv"):
            inputs = list(op.inputs)
            direct = item is main or (
                type(item) is RawOp and item.kind == "T" and item.inputs[0] is main
            )
            if op.kind == "Convolution":
                inputs[place] = main
            elif not direct or op.kind != "Mm":
                inputs[place] = item if direct and item is not main else RawOp("T", (main,))
            op.inputs = inputs
        break
    if bias_place is None or bias_place >= len(op.inputs):
        return
    item = op.inputs[bias_place]
    main = None if item is None or depends(item) else _main_parameter(item)
    if main is not None and main.open and _vector(main) is not None:
        main.node_type, main.open = "bias", False
        main.predicted_shape = _vector(main) or main.shape
    if main is not None and main.node_type == "bias" and item is not main:
        op.inputs = [main if i == bias_place else other for i, other in enumerate(op.inputs)]


def _main_parameter(item: RawOp | RawParam) -> RawParam | None:
    """The largest parameter that a weight is computed from; the others are closed."""
    if type(item) is RawParam:
        return item
    found: dict[int, RawParam] = {}
    seen: set[int] = set()
    stack: list[Any] = [item]
    unknown = None
    while stack:
        current = stack.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if type(current) is RawParam:
            found[id(current)] = current
        else:
            if current.kind not in _ARITHMETIC:
                unknown = current.kind
            stack.extend(current.inputs)
    if not found:
        return None
    if unknown is not None:
        for param in found.values():
            if param.open:
                _close(param, _TRANSFORMED.format(op=unknown))
        return None
    main = max(found.values(), key=lambda param: prod(param.shape))
    for param in found.values():
        if param is not main and param.open:
            param.open = False
            param.reason = (
                f"a weight is computed from it and from '{main.name}', which is predicted; its "
                "initial value keeps the size of that weight"
            )
    return main


def _make_weight(param: RawParam, op: RawOp, place: int) -> None:
    param.open = False
    param.reason = None
    shape = param.shape
    if op.kind == "Convolution":
        groups, dilation, stride, transposed = _convolution(op.detail)
        if len(shape) not in (3, 4, 5):
            _close(param, f"a convolution's weight of shape {shape} has no node type")
            return
        dilated = groups > 1 and min(dilation) > 1
        param.node_type = ("dil_conv" if dilated else "sep_conv") if groups > 1 else "conv"
        if len(shape) == 3:
            param.predicted_shape = (*shape, 1)
        elif len(shape) == 5:
            param.predicted_shape = (shape[0], shape[1] * shape[2], *shape[3:])
        if transposed:
            # Each output element gets in / groups channels times the taps that meet it.
            param.fan_in = max(1, shape[0] // groups * prod(shape[2:]) // prod(stride))
        return
    if len(shape) < 2:
        _close(param, f"a vector of shape {shape} in a matrix product has no node type")
        return
    param.node_type = "conv"
    item = op.inputs[place]
    param.is_linear_weight = op.kind != "Mm" or item is not param
    param.predicted_shape = (prod(shape[:-1]), shape[-1])
    terms = _terms(op)
    if terms is not None and terms != shape[-1]:
        param.fan_in = terms


def _convolution(detail: Any) -> tuple[int, Sequence[int], Sequence[int], bool]:
    if isinstance(detail, tuple):
        return detail
    return (
        int(detail._saved_groups),
        tuple(detail._saved_dilation),
        tuple(detail._saved_stride),
        bool(detail._saved_transposed),
    )


def _terms(op: RawOp) -> int | None:
    """Number of terms in each sum of a matrix product."""
    if op.detail is None or isinstance(op.detail, int):
        return op.detail
    for name in ("_saved_mat1_sym_sizes", "_saved_self_sym_sizes"):
        sizes = getattr(op.detail, name, None)
        if sizes is not None:
            return int(sizes[-1])
    for name, which in (("_saved_mat2", -2), ("_saved_batch2", -2), ("_saved_self", -1)):
        tensor = getattr(op.detail, name, None)
        if tensor is not None:
            return int(tensor.shape[which])
    return None


def _take_norm(op: RawOp) -> None:
    weight, bias = (*op.inputs, None, None)[1:3]
    if type(weight) is RawOp:
        weight = _through_views(weight)
    if type(bias) is RawOp:
        bias = _through_views(bias)
    named = [p for p in (weight, bias) if type(p) is RawParam and p.open]
    for param in named:
        if _vector(param) is None:
            _close(param, f"a norm layer's parameter of shape {param.shape} has no node type")
        else:
            param.open, param.reason = False, None
            param.predicted_shape = _vector(param) or param.shape
    if type(weight) is RawParam and weight in named and weight.reason is None:
        weight.node_type = _NORMS[op.kind]
        if type(bias) is RawParam and bias in named and bias.shape == weight.shape:
            weight.shift_name = bias.name
            return
    if type(bias) is RawParam and bias in named and bias.reason is None:
        bias.node_type = "bias"


def _through_views(item: RawOp) -> RawParam | None:
    current: RawOp | RawParam | None = item
    while type(current) is RawOp and current.kind in _STRUCTURAL:
        current = current.inputs[0] if current.inputs else None
    return current if type(current) is RawParam else None


def _take_by_use(
    param: RawParam, readers: dict[int, list[tuple[RawOp, int]]], depends: _Dependence
) -> None:
    """Follow an open parameter to the first operation that joins it with features."""
    stack: list[tuple[Any, bool]] = [(param, False)]
    seen: set[int] = set()
    while stack:
        item, changed = stack.pop()
        for op, place in readers.get(id(item), ()):
            if id(op) in seen:
                continue
            seen.add(id(op))
            kind = op.kind
            others = [other for i, other in enumerate(op.inputs) if i != place]
            meets = any(other is None or depends(other) for other in others)
            if kind in _STRUCTURAL:
                stack.append((op, changed))
            elif kind in ("Mul", "Addcmul") and (meets or not others) and not changed:
                return _make_scale(param)
            elif kind in ("Add", "Sub") and (meets or not others) and not changed:
                return _make_shift(param, op, readers)
            elif kind in ("Add", "Sub", "Mul", "Div") and not meets:
                stack.append((op, True))
            elif kind in ("Cat", "Stack"):
                if item is param:
                    # A node of its own beside the concatenation.
                    spread = RawOp("Expand", (param,))
                    op.inputs = [spread if other is param else other for other in op.inputs]
                return _make_token(param)
            elif kind.startswith(("Index", "Gather", "Embedding")):
                return _close(param, _TABLE)
            elif kind == "ScaledDotProduct":
                return _close(param, _LOGITS) if place > 2 else _make_token(param)
            elif kind.startswith("Prelu"):
                return _close(param, _SLOPE)
            else:
                return _close(param, _TRANSFORMED.format(op=kind))
    return None


def _make_scale(param: RawParam) -> None:
    seen = _vector(param)
    if seen is None:
        return _close(param, f"a scale of shape {param.shape}, needs one extent above 1")
    if seen == (1,):
        return _close(param, _NUMBER)
    param.open, param.reason, param.predicted_shape = False, None, seen
    # Channels first, as BatchNorm has them, or last, as LayerNorm.
    channels_first = len(param.shape) > 1 and param.shape[-1] == 1
    param.node_type = "bn" if channels_first else "ln"
    return None


def _make_shift(param: RawParam, op: RawOp, readers: dict[int, list[tuple[RawOp, int]]]) -> None:
    current = op
    for _ in range(6):
        following = readers.get(id(current), ())
        if any("Softmax" in reader.kind for reader, _ in following):
            return _close(param, _LOGITS)
        if len(following) != 1 or following[0][0].kind not in {*_STRUCTURAL, "Add", "MaskedFill"}:
            break
        current = following[0][0]
    seen = _vector(param)
    if seen is not None:
        if seen == (1,):
            return _close(param, _NUMBER)
        param.node_type, param.predicted_shape = "bias", seen
    elif len(param.shape) == 4 and param.shape[0] == 1 and param.shape[2] == param.shape[3]:
        param.node_type = "pos_enc"
    elif len(param.shape) == 3 and param.shape[0] > 1 and param.shape[1] == param.shape[2]:
        param.node_type, param.predicted_shape = "pos_enc", (1, *param.shape)
    else:
        return _close(param, _POSITIONS)
    param.open, param.reason = False, None
    return None


def _make_token(param: RawParam) -> None:
    seen = _vector(param)
    if seen is None:
        return _close(param, _TOKENS)
    param.node_type, param.predicted_shape = "bias", seen
    param.open, param.reason = False, None
    return None


def _vector(param: RawParam) -> tuple[int] | None:
    """(n,) for a shape with at most one extent above 1."""
    extents = [size for size in param.shape if size > 1]
    return (prod(extents),) if len(extents) <= 1 else None


def _close(param: RawParam, reason: str) -> None:
    param.open, param.reason = False, reason
    param.node_type = None
