"""Scales, shifts and tokens: parameters that features are multiplied by, added to, joined with."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt, prod
from typing import Any

from ghn_fast.capturing.dependence import NORMS, Dependence
from ghn_fast.capturing.expressions import STRUCTURAL, Part, analyse, close
from ghn_fast.capturing.raw import RawOp, RawParam
from ghn_fast.graph.rules import GraphRules

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
_NUMBER = "a single number, whose initial value has a meaning of its own"
_NUMBERS = "single numbers that are read one at a time, whose initial values have a meaning"
_SCALE_AND_SHIFT = "a norm layer reads it as scale and as shift: one prediction cannot be both"
# Operations between a summand and the softmax that it enters, at most.
_FARTHEST = 6

Shape = tuple[int, ...]


def take_scale(op: RawOp, place: int, item: RawOp | RawParam, rules: GraphRules) -> bool:
    """Features are multiplied by an operand of ``op``; whether that settled what it is."""
    expression = analyse(item, "scale")
    used = _shape_at(op, place)
    parts = expression.parts
    if any(_scale_shape(part, used) is None and not _is_number(part, used) for part in parts):
        return False
    expression.close_others("scale")
    normalised = any(_is_normalised(other) for n, other in enumerate(op.inputs) if n != place)
    for part in parts:
        if part.param.open:
            _make_scale(part, used)
            if normalised and part.param.node_type is not None:
                part.param.is_free = False
                if rules.types == "language":
                    part.param.node_type = "rmsnorm"
    scales = ("bn", "ln", "rmsnorm")
    chain(op, place, [part.param for part in parts if part.param.node_type in scales])
    return True


def _is_normalised(item: Any) -> bool:
    """Whether features have just been divided by a root: the scale is that of a norm layer."""
    product = _behind_views(item)
    if product is None or product.kind not in ("Mul", "Div"):
        return False
    for factor in product.inputs:
        root = _behind_views(factor)
        if root is not None and root.kind in ("Rsqrt", "Sqrt", "LinalgVectorNorm"):
            return True
    return False


def _behind_views(item: Any) -> RawOp | None:
    while type(item) is RawOp and item.kind in STRUCTURAL and item.inputs:
        item = item.inputs[0]
    return item if type(item) is RawOp else None


def take_shift(
    op: RawOp, place: int, item: RawOp | RawParam, depends: Dependence, rules: GraphRules
) -> None:
    """Features are added to an operand of ``op``."""
    expression = analyse(item, "shift")
    expression.close_others("shift")
    used = _shape_at(op, place)
    for part in expression.parts:
        if part.param.open:
            _make_shift(part, used, enters_softmax(op, depends), rules)
    kinds = ("bias", "pos_enc")
    chain(op, place, [part.param for part in expression.parts if part.param.node_type in kinds])


def take_token(item: RawOp | RawParam) -> None:
    """An operand stands beside features, or in their place."""
    expression = analyse(item, "shift")
    expression.close_others("shift")
    for part in expression.parts:
        if part.param.open:
            part.param.is_free = True
            _make_vector(part, None, _TOKENS)


def take_norm(op: RawOp, depends: Dependence) -> None:
    """Scale and shift of a norm layer."""
    scale = _norm_part(op, 1, depends)
    shift = _norm_part(op, 2, depends)
    if scale is not None and shift is not None and scale.param is shift.param:
        close(scale.param, _SCALE_AND_SHIFT)
        return
    if shift is not None and shift.param.node_type is None:
        _take_norm_shift(op, scale, shift.param)
    inputs: list[Any] = list(op.inputs)
    for place, part in ((1, scale), (2, shift)):
        if part is not None and part.param.node_type is not None:
            inputs[place] = part.param
    op.inputs = inputs


def _norm_part(op: RawOp, place: int, depends: Dependence) -> Part | None:
    item = op.inputs[place] if len(op.inputs) > place else None
    if not isinstance(item, (RawOp, RawParam)) or depends(item):
        return None
    expression = analyse(item, "scale" if place == 1 else "shift")
    expression.close_others("scale" if place == 1 else "shift")
    for part in expression.parts[1:]:
        if part.param.open:
            close(
                part.param,
                f"a norm layer reads it together with '{expression.parts[0].param.name}'",
            )
    if not expression.parts:
        return None
    part = expression.parts[0]
    param = part.param
    if param.open:
        shape = _vector(param.shape)
        if shape is None and part.is_row:
            shape = (prod(param.shape),)
        if shape is None:
            what = "scale" if place == 1 else "shift"
            needs = f"of shape {param.shape} cannot be predicted, needs one dimension"
            close(param, f"a {what} {needs}")
            return None
        param.predicted_shape = shape
        if place == 1:
            param.open, param.reason, param.node_type = False, None, NORMS[op.kind]
    if place == 1 and param.node_type is not None and not param.is_settled:
        param.is_offset = part.is_offset
    return part


def _take_norm_shift(op: RawOp, scale: Part | None, shift: RawParam) -> None:
    """The node of the scale yields the shift, or the shift has a node of its own."""
    if not (shift.open or shift.reason is None):
        return
    shift.open, shift.reason = False, None
    owner = None if scale is None else scale.param
    if owner is not None and owner.node_type in ("bn", "ln") and not owner.is_offset:
        if owner.shift_name == shift.name:
            return
        if owner.shift_name is None and shift.shape == owner.shape and not owner.is_settled:
            owner.shift_name = shift.name
            return
    shift.node_type = "bias"


def make_bias(part: Part) -> None:
    """Let a summand of a product be predicted as a bias."""
    _make_vector(part, None, f"a bias of shape {part.param.shape} has no node type")


def _make_vector(part: Part, used: Shape | None, otherwise: str) -> None:
    param = part.param
    shape = _vector(param.shape)
    if shape is None and part.is_row and (used is None or _vector(used) is not None):
        shape = (prod(param.shape),)
    if shape is None:
        return close(param, otherwise)
    param.node_type, param.predicted_shape = "bias", shape
    param.open, param.reason = False, None
    return None


def _is_number(part: Part, used: Shape | None) -> bool:
    """Whether features meet one number of a parameter."""
    shape = part.param.shape
    return prod(shape) == 1 or _size(used) == 1 or (part.is_row and len(shape) == 1)


def _size(shape: Shape | None) -> int | None:
    return None if shape is None else prod(shape)


def _scale_shape(part: Part, used: Shape | None) -> Shape | None:
    """(n,) for a factor with one extent above 1, or rows of such."""
    stored = part.param.shape
    shape = _vector(stored)
    if shape is None and used is not None and _vector(used) is not None:
        return (prod(stored),) if part.is_row or prod(stored) == prod(used) else None
    return shape


def _make_scale(part: Part, used: Shape | None) -> None:
    param = part.param
    if _is_number(part, used):
        return close(param, _NUMBER if prod(param.shape) == 1 else _NUMBERS)
    shape = _scale_shape(part, used) or param.shape
    param.open, param.reason, param.predicted_shape = False, None, shape
    param.is_offset, param.is_free = part.is_offset, True
    # Channels first, as BatchNorm has them, or last, as LayerNorm.
    param.node_type = "bn" if _channels_first(param.shape, used) else "ln"
    return None


def _channels_first(stored: Shape, used: Shape | None) -> bool:
    if used is not None and _vector(used) is not None:
        return len(used) > 1 and used[-1] == 1
    if len(stored) > 1 or used is None:
        return len(stored) > 1 and stored[-1] == 1
    return used[-1] != stored[0]


def _make_shift(part: Part, used: Shape | None, is_logit: bool, rules: GraphRules) -> None:
    param = part.param
    shape = param.shape
    if is_logit:
        return close(param, _LOGITS)
    if _is_number(part, used):
        return close(param, _NUMBER if prod(shape) == 1 else _NUMBERS)
    if len(shape) == 4 and shape[0] == 1 and shape[2] == shape[3] and _vector(shape) is None:
        param.node_type = "pos_enc"
    elif len(shape) == 3 and shape[0] > 1 and shape[1] == shape[2] and _vector(shape) is None:
        param.node_type, param.predicted_shape = "pos_enc", (1, *shape)
    elif rules.positions == "grid" and (side := grid_side(shape)):
        param.node_type, param.predicted_shape = "pos_enc", (1, shape[2], side, side)
    else:
        param.is_free = True
        return _make_vector(part, used, _POSITIONS)
    param.open, param.reason = False, None
    return None


def grid_side(shape: Shape) -> int:
    """Side of the square grid that a table (1, n, c) has positions of, 0 if there is none.

    One position more may belong to a token, which comes first.
    """
    if len(shape) != 3 or shape[0] != 1 or shape[2] < 2:
        return 0
    side = isqrt(shape[1])
    return side if side > 1 and shape[1] - side * side in (0, 1) else 0


def enters_softmax(op: RawOp, depends: Dependence) -> bool:
    """Whether a sum becomes attention weights."""
    current = op
    for _ in range(_FARTHEST):
        readers = depends.readers(current)
        if any("Softmax" in reader.kind for reader, _ in readers):
            return True
        if len(readers) != 1 or readers[0][0].kind not in STRUCTURAL | {"Add", "MaskedFill", "Mul"}:
            return False
        current = readers[0][0]
    return False


def chain(op: RawOp, place: int, params: Sequence[RawParam]) -> None:
    """Let features run through the nodes of parameters that an operand was computed from."""
    if not params:
        return
    inputs: list[Any] = list(op.inputs)
    if type(inputs[place]) is RawParam:
        return
    inputs[place] = params[0]
    for param in params[1:]:
        inputs = [RawOp(op.kind, tuple(inputs)), param]
    op.inputs = inputs


def _shape_at(op: RawOp, place: int) -> Shape | None:
    """Shape of an operand where it meets features, ``None`` where the record does not say it."""
    item = op.inputs[place]
    if type(item) is RawParam:
        return item.shape
    if (
        type(item) is RawOp
        and item.kind == "Expand"
        and hasattr(item.detail, "_saved_self_sym_sizes")
    ):
        return tuple(item.detail._saved_self_sym_sizes)
    detail = op.detail
    if isinstance(detail, tuple):
        return tuple(detail[place]) if len(detail) == 2 else None
    names = {"Mul": ("self", "other"), "Addcmul": ("", "tensor1", "tensor2")}.get(op.kind, ())
    if place < len(names):
        saved = getattr(detail, f"_saved_{names[place]}", None)
        if saved is not None:
            return tuple(saved.shape)
    if type(item) is RawOp and item.kind == "Select":
        sizes = list(item.detail._saved_self_sym_sizes)
        del sizes[item.detail._saved_dim % len(sizes)]
        return tuple(sizes)
    return None


def _vector(shape: Shape) -> Shape | None:
    """(n,) for a shape with at most one extent above 1."""
    extents = [size for size in shape if size > 1]
    return (prod(extents),) if len(extents) <= 1 else None
