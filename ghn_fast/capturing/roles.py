"""What parameters are, by how they are used.

Convolutions, linear layers, BatchNorm and LayerNorm say what their parameters are. Any other
parameter is recognised by what is done with it, whatever the class that holds it: the second
operand of a convolution or matrix product is a weight, a factor of features a scale, a summand of
features a shift or a table of positions. Reshapes and the like between a parameter and its use do
not count. A use that no treatment fits leaves the parameter as it is, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from ghn_fast.capturing.dependence import NORMS, PRODUCTS, Dependence, cut_closed
from ghn_fast.capturing.expressions import COMPLEMENT, JOINS, analyse, close
from ghn_fast.capturing.inputs import READS_BY_INDEX
from ghn_fast.capturing.raw import INPUT, RawOp, RawParam
from ghn_fast.capturing.vectors import take_norm, take_scale, take_shift, take_token
from ghn_fast.capturing.weights import (
    TABLE,
    is_weight,
    kernel_behind,
    make_weight,
    take_product,
)
from ghn_fast.graph.rules import GraphRules

_LOGITS = (
    "a table of summands of attention weights, one per pair of positions: predicted blocks, which "
    "repeat, would make distant positions equal; near its initial values attention follows content"
)
_SLOPE = "the slope of a PReLU, whose initial value makes the activation what it is"
_NUMBER = "a single number, whose initial value has a meaning of its own"
_DIVISOR = "features are divided by it: a predicted one may be close to zero"
_OPERAND = "features meet it in {op}, and no rule says what it is there"
_FREE = (
    "a scale, shift or token that belongs to no layer: the published hypernetworks of this kind "
    "leave it at its initial value"
)
_SUMMANDS = {
    "Add": (0, 1),
    "Sub": (0, 1),
    "Rsub": (0, 1),
    "Addcmul": (0,),
    "Addcdiv": (0,),
    "Lerp": (0, 1),
}
_FUSED = {"Addcmul": "Mul", "Addcdiv": "Div"}
_FACTORS = {"Mul": (0, 1), "Addcmul": (1, 2), "Addcdiv": (1,), "Div": (0,)}

_TELLING = frozenset(("Convolution", "Addmm", "Mm", *NORMS, *READS_BY_INDEX))
_NORMALISING = frozenset((*NORMS, "LinalgVectorNorm", "Norm", "Rsqrt", "Std", "Var", "VarMean"))


def needs_roles(ops: Sequence[RawOp], params: Iterable[RawParam]) -> bool:
    """Whether the classes of the layers do not say of all parameters what they are."""
    shifts, untyped = set(), set()
    for param in params:
        if param.open:
            return True
        if param.shift_name is not None:
            shifts.add(param.shift_name)
        elif param.node_type is None and param.reason is None:
            untyped.add(param.name)
    # A shift that no scale's node yields has a node of its own.
    if not untyped <= shifts:
        return True
    return any(_is_unusual(op) for op in ops if op.kind in _TELLING)


def _is_unusual(op: RawOp) -> bool:
    """Whether an operation may use the parameter of a layer otherwise than the layer does."""
    kind = op.kind
    if kind == "Convolution":
        return type(op.inputs[1]) is RawOp
    if kind in ("Addmm", "Mm"):
        weight = op.inputs[-1]
        if type(weight) is RawOp and weight.kind == "T":
            weight = weight.inputs[0]
            return type(weight) is RawOp
        return type(weight) in (RawOp, RawParam)
    if kind in NORMS:
        return any(type(item) is RawOp for item in op.inputs[1:3])
    return kind in READS_BY_INDEX


def normalises(ops: Sequence[RawOp], depends: Dependence | None) -> bool:
    """Whether any operation normalises features.

    Args:
        ops: All operations of a network.
        depends: What depends on features; ``None`` where weights are parameters as they are.
    """
    return any(op.kind in _NORMALISING and (depends is None or depends(op)) for op in ops)


def assign_roles(ops: Sequence[RawOp], rules: GraphRules = GraphRules.GHN2) -> Dependence:
    """Find out what open parameters are, in place.

    Weights, scales and shifts that are computed from parameters (weight normalisation and
    standardisation, spectral normalisation, projections that share one tensor) are replaced by
    their main parameters, so that the features run through the nodes of these.

    Args:
        ops: All operations of a network.
        rules: Which parameters have nodes.

    Returns:
        What depends on features.
    """
    depends = Dependence(ops)
    for op in depends.order:
        if op.kind in READS_BY_INDEX or op.kind in ("Select", "Unbind"):
            _take_table(op, depends, rules)
        elif op.kind == "Rsub" and not depends(op):
            _take_complement(op)
    for op in depends.order:
        if not depends(op):
            continue
        if op.kind in _FUSED and not any(map(depends, op.inputs[1:3])):
            _split(op, depends)
        if op.kind in PRODUCTS:
            take_product(op, depends)
        elif op.kind in NORMS:
            take_norm(op, depends)
        else:
            for place in range(len(op.inputs)):
                item = op.inputs[place] if place < len(op.inputs) else None
                if isinstance(item, (RawOp, RawParam)) and not depends(item):
                    _take_operand(op, place, item, depends, rules)
    if rules.vectors == "keep":
        _close_free(ops)
    if rules.embeddings == "predict":
        _tie_tables(ops)
    if rules.types == "language":
        _name_rms_norms(ops)
    cut_closed(ops)
    return depends


def _close_free(ops: Sequence[RawOp]) -> None:
    """Let scales, shifts and tokens that belong to no layer keep their values."""
    for op in ops:
        for item in op.inputs:
            if type(item) is RawParam and item.is_free and item.node_type is not None:
                close(item, _FREE)


def _name_rms_norms(ops: Sequence[RawOp]) -> None:
    """The scales of RMS normalisation have a node type of their own."""
    for op in ops:
        if op.kind in ("RmsNorm", "FusedRmsNorm") and len(op.inputs) > 1:
            scale = op.inputs[1]
            if type(scale) is RawParam and scale.node_type == "ln":
                scale.node_type = "rmsnorm"


def _tie_tables(ops: Sequence[RawOp]) -> None:
    """A table that is the weight of a layer as well has one node, where it is read by index."""
    for op in ops:
        if op.kind in READS_BY_INDEX:
            continue
        for place, item in enumerate(op.inputs):
            if type(item) is RawParam and item.is_table:
                item.node_type = "conv"
                op.inputs = [*op.inputs[:place], None, *op.inputs[place + 1 :]]


def _take_table(op: RawOp, depends: Dependence, rules: GraphRules) -> None:
    """What is read by index keeps its values, whatever else it is used for."""
    item = op.inputs[0] if op.inputs else None
    if not isinstance(item, (RawOp, RawParam)) or depends(item):
        return
    parts = analyse(item, "shift").parts
    if op.kind not in READS_BY_INDEX or _chooses_rows_of_weight(op, depends):
        parts = [part for part in parts if part.param.is_rows]
    elif not parts:  # a table whose rows are normalised first
        behind = analyse(item, "weight")
        parts = behind.parts if len(behind.parts) == 1 and not behind.beside else []
    for part in parts:
        param = part.param
        # Rows that are matrices are weights of experts.
        if param.is_settled or len(param.shape) > 2:
            continue
        if rules.embeddings == "predict" and len(param.shape) == 2 and op.kind == "Embedding":
            param.open, param.reason, param.node_type = False, None, "pos_enc"
            param.is_table = param.is_settled = True
            continue
        close(param, TABLE)


def _chooses_rows_of_weight(op: RawOp, depends: Dependence) -> bool:
    """Whether constants choose rows of a weight, rather than one for each pair of positions."""
    if INPUT in op.inputs:
        return False
    indices = getattr(op.detail, "_saved_indices", None)
    if indices is None:
        indices = (getattr(op.detail, "_saved_index", None),)
    one_list = all(index is None or index.dim() <= 1 for index in indices)
    return one_list and is_weight(op, depends)


def _take_complement(op: RawOp) -> None:
    """A vector m of which 1 - m is used mixes two things."""
    item = op.inputs[0]
    if type(item) is RawParam and item.open and len([n for n in item.shape if n > 1]) <= 1:
        close(item, COMPLEMENT)


def _split(op: RawOp, depends: Dependence) -> None:
    """A product that is added at once, and that features take no part in, is a summand of them."""
    product = RawOp(_FUSED[op.kind], op.inputs[1:3])
    depends.note(product, features=False)
    op.kind, op.inputs, op.detail = "Add", [op.inputs[0], product], None


def _take_operand(
    op: RawOp, place: int, item: RawOp | RawParam, depends: Dependence, rules: GraphRules
) -> None:
    """An operand that depends on parameters alone meets features."""
    kind = op.kind
    if place in _FACTORS.get(kind, ()):
        if not take_scale(op, place, item, rules):
            _take_modulated(op, item, depends)
    elif place in _SUMMANDS.get(kind, ()):
        take_shift(op, place, item, depends, rules)
    elif kind in JOINS or kind.startswith(("IndexPut", "MaskedScatter")):
        if type(item) is RawParam:
            # A node of its own beside the concatenation.
            spread = RawOp("Expand", (item,))
            op.inputs = [spread if other is item else other for other in op.inputs]
        take_token(item)
    elif kind == "ScaledDotProduct" and place <= 2:
        take_token(item)
    elif kind in READS_BY_INDEX and place == 0 and kernel_behind(op, depends) is not None:
        _take_modulated(op, item, depends)
    else:
        _close_all(item, _reason(op, place))


def _reason(op: RawOp, place: int) -> str:
    if op.kind == "ScaledDotProduct":
        return _LOGITS
    if op.kind.startswith("Prelu"):
        return _SLOPE
    if op.kind == "Lerp" and place == 2:
        return COMPLEMENT
    if op.kind == "Div":
        return _DIVISOR
    return _OPERAND.format(op=op.kind)


def _take_modulated(op: RawOp, item: RawOp | RawParam, depends: Dependence) -> None:
    """Features scale what is a weight of a product behind, or what no node stands for."""
    product = kernel_behind(op, depends)
    expression = analyse(item, "weight" if product is not None else "scale")
    expression.close_others("weight" if product is not None else "scale")
    for part in expression.parts:
        if product is not None:
            make_weight(part, product)
        elif part.param.open:
            shape = part.param.shape
            close(part.param, f"a scale of shape {shape}, needs one extent above 1")


def _close_all(item: RawOp | RawParam, reason: str) -> None:
    expression = analyse(item, "shift")
    expression.close_others("shift")
    for part in expression.parts:
        if part.param.open:
            close(part.param, _NUMBER if prod(part.param.shape) == 1 else reason)
