"""Weights: second operands of convolutions and matrix products, and the biases with them."""

from __future__ import annotations

from collections.abc import Sequence
from math import isclose, prod
from typing import Any, NamedTuple

from ghn_fast.capturing.dependence import PRODUCTS, Dependence
from ghn_fast.capturing.expressions import STRUCTURAL, WEIGHT_ARITHMETIC, Part, analyse, close
from ghn_fast.capturing.inputs import factor_of
from ghn_fast.capturing.raw import RawOp, RawParam
from ghn_fast.capturing.vectors import enters_softmax, make_bias, take_token

TABLE = (
    "a table that is read by index: rows stand for distances or symbols, and predicted blocks, "
    "which repeat, would make different ones equal; its initial values keep them apart"
)
_TIED_TABLE = f"{TABLE} (it is the weight of a layer as well, which keeps it, too)"
_CONVOLUTIONS = ("Convolution", "DeformConv2D")
_WEIGHTS = ("conv", "sep_conv", "dil_conv")
_BATCHED = ("Bmm", "Baddbmm")
_MATRIX_PRODUCTS = ("Mm", "Addmm", "Mv", "Addmv")
# Squares of the gains that equalised layers have: none, of ReLU, of LeakyReLU with slope 0.2.
_EQUALISED = (1.0, 2.0, 2 / 1.04)
# Operations between a weight that features change and its product, at most.
_FARTHEST = 60


def take_product(op: RawOp, depends: Dependence) -> None:
    """Find out what the parameters of a product with features are.

    A weight that is computed from parameters is replaced by its main parameter, so that the
    features run through its node; one that is joined from several, by products with each.
    """
    places, bias_place = PRODUCTS[op.kind]
    static = {
        place: item
        for place, item in enumerate(op.inputs)
        if isinstance(item, (RawOp, RawParam)) and not depends(item)
    }
    biases = _take_bias(static[bias_place]) if bias_place in static else []
    weight_place, mains = None, []
    for place in (place % len(op.inputs) for place in places):
        if place in static and place != bias_place:
            parts = analyse(static[place], "weight").parts
            if parts or weight_place is None:
                weight_place = place
            if parts:
                break
    if weight_place is not None:
        mains = _take_weight(op, weight_place, static[weight_place], depends)
    for place, item in static.items():
        if place not in (weight_place, bias_place):
            take_token(item)
    _rebuild(op, weight_place, mains, bias_place, biases)


def _take_bias(item: RawOp | RawParam) -> list[RawParam]:
    expression = analyse(item, "shift")
    expression.close_others("shift")
    for part in expression.parts:
        if part.param.open:
            make_bias(part)
    return [part.param for part in expression.parts if part.param.node_type == "bias"]


def _take_weight(
    op: RawOp, place: int, item: RawOp | RawParam, depends: Dependence
) -> list[RawParam]:
    expression = analyse(item, "weight")
    expression.close_others("weight")
    # A weight that features mix from several (experts) is that of a convolution behind, and of a
    # matrix product if the features are shares.
    product = None
    if op.kind not in _CONVOLUTIONS:
        product = _kernel_behind(op, depends, mixed=True, gated=_is_gated(op, place))
    product = product or _product_of(op, place)
    factor = _factor_beside(op, place, product, depends)
    for part in expression.parts:
        part.factor *= factor
        make_weight(part, product)
    return [part.param for part in expression.parts if part.param.node_type in _WEIGHTS]


def _factor_beside(op: RawOp, place: int, product: Product, depends: Dependence) -> float:
    """The number by which an equalised layer multiplies features instead of its weight.

    Such a layer scales by sqrt(gain^2 / fan-in); any other number is the network's own business.
    """
    bias = PRODUCTS[op.kind][1]
    features = [n for n in range(len(op.inputs)) if n not in (place, bias)]
    factors = [_factor_before(op, n) for n in features]
    if bias is None or len(op.inputs) <= bias or op.inputs[bias] is None:
        factors.append(_factor_behind(op, depends))
    for factor in factors:
        size = factor * factor * (product.fan_in or 0)
        if factor != 1 and any(isclose(size, gain, rel_tol=1e-3) for gain in _EQUALISED):
            return factor
    return 1.0


def _factor_before(op: RawOp, place: int) -> float:
    """The number that features are multiplied by just before a product."""
    factor, reader = 1.0, op
    item: Any = op.inputs[place]
    while type(item) is RawOp:
        number = factor_of(item)
        if number == 1 and item.kind not in STRUCTURAL:
            return factor
        factor *= number
        item, reader = next((i for i in item.inputs if i is not None), None), item
    return factor * reader.input_factor


def _factor_behind(op: RawOp, depends: Dependence) -> float:
    """The number that a product without a bias is multiplied by just before a bias is added."""
    factor, current = 1.0, op
    while True:
        readers = depends.readers(current)
        if factor != 1 and readers and all(_adds_constant(r, depends) for r, _ in readers):
            return factor
        if len(readers) != 1:
            return 1.0
        current = readers[0][0]
        number = factor_of(current)
        if number == 1 and current.kind not in STRUCTURAL:
            return 1.0
        factor *= number


def _adds_constant(op: RawOp, depends: Dependence) -> bool:
    return op.kind == "Add" and any(
        isinstance(item, (RawOp, RawParam)) and not depends(item) for item in op.inputs
    )


def _rebuild(
    op: RawOp,
    place: int | None,
    mains: Sequence[RawParam],
    bias_place: int | None,
    biases: Sequence[RawParam],
) -> None:
    """Let a product read its main parameters and biases, one after the other."""
    kind = op.kind
    inputs: list[Any] = list(op.inputs)
    following: list[Any] = list(biases)
    if len(mains) > 1 and place is not None:
        if bias_place is not None and bias_place < len(inputs):
            following = following or [inputs[bias_place]]
            inputs[bias_place] = None
        item = inputs[place]
        products = []
        for main in mains:
            inputs[place] = _operand(kind, item, main)
            products.append(RawOp(kind, tuple(inputs)))
        kind, inputs = "Cat", list(products)
    else:
        if mains and place is not None:
            inputs[place] = _operand(kind, inputs[place], mains[0])
        if following and bias_place is not None:
            inputs[bias_place] = following.pop(0)
    for bias in following:
        if bias is not None:
            kind, inputs = "Add", [RawOp(kind, tuple(inputs)), bias]
    op.kind, op.inputs = kind, inputs


def _operand(kind: str, item: Any, main: RawParam) -> RawOp | RawParam:
    if kind in _CONVOLUTIONS or kind == "Trilinear":
        return main
    if item is main and kind == "Mm":
        return main
    if type(item) is RawOp and item.kind == "T" and item.inputs[0] is main:
        return item
    return RawOp("T", (main,))


class Product(NamedTuple):
    """A product that a weight takes part in.

    Attributes:
        kernel: Shape of a convolution's kernel, ``None`` for matrices.
        fan_in: Number of terms in each of its sums, where it is known.
        node_type: Type of the node.
        depthwise: Whether each sum is over one channel.
        linear: Whether the product puts the bias before the weight.
    """

    kernel: tuple[int, ...] | None
    fan_in: int | None
    node_type: str
    depthwise: bool
    linear: bool


def make_weight(part: Part, product: Product) -> None:
    """Let a parameter be predicted as a weight; the first product that it is in decides how.

    The class of a layer may have said already that a parameter is a weight.
    """
    param = part.param
    if param.reason == TABLE:
        param.reason = _TIED_TABLE
    if param.is_settled or not (param.open or param.node_type in _WEIGHTS):
        return
    param.is_settled = True
    if param.open:
        param.open, param.reason = False, None
        param.node_type = product.node_type
        param.is_linear_weight = product.linear
        param.predicted_shape = _predicted_shape(param.shape, product.kernel)
        if len(param.predicted_shape) > 4:
            return close(param, f"a weight of shape {param.shape} has no node type")
    _set_gain(param, part.factor, product)
    return None


def _set_gain(param: RawParam, factor: float, product: Product) -> None:
    """Fan-in and gain, where they are not what the predicted shape says."""
    shape = param.predicted_shape
    said = prod(shape[1:])
    if product.fan_in is not None and product.fan_in != said:
        param.fan_in = product.fan_in
    wide = len(shape) > 2 and shape[2] < (*shape, 1)[3]
    usual = 1.0 if len(shape) > 2 and (shape[1] == 1 or wide) else 2.0
    gain = 1.0 if product.depthwise or wide else 2.0
    if product.kernel is None:
        gain = usual
    # A layer that multiplies by 1 / sqrt(fan-in) itself gets what it needs beside that.
    gain /= factor * factor
    if gain != usual:
        param.gain = gain


def _predicted_shape(shape: tuple[int, ...], kernel: tuple[int, ...] | None) -> tuple[int, ...]:
    if kernel is None:
        # A vector yields one output.
        return (prod(shape[:-1]), shape[-1])
    rest = prod(kernel[1:])
    if len(shape) != len(kernel):
        if prod(shape) % rest == 0:
            shape = (prod(shape) // rest, *kernel[1:])
        elif len(shape) == 1:
            return (*shape, 1)
    if len(shape) == 3:
        return (*shape, 1)
    if len(shape) == 5:
        return (shape[0], shape[1] * shape[2], *shape[3:])
    return shape


def _product_of(op: RawOp, place: int) -> Product:
    item = op.inputs[place]
    if op.kind == "DeformConv2D" and isinstance(item, (RawOp, RawParam)):
        # Its record has no shapes: the parameter is the kernel.
        parts = analyse(item, "weight").parts
        kernel = parts[0].param.shape if parts and len(parts[0].param.shape) == 4 else (0,) * 4
        fan_in = prod(kernel[1:]) or None
        return Product(kernel if fan_in else None, fan_in, "conv", False, False)
    if op.kind == "Convolution":
        return _convolution(op)
    if op.kind == "Trilinear":
        if isinstance(op.detail, tuple):
            rows, terms = op.detail
        else:
            weight = tuple(op.detail._saved_i2.shape)
            rows, terms = weight[0], prod(weight[1:])
        return Product((rows, terms), terms, "conv", False, False)
    linear = op.kind != "Mm" or type(op.inputs[place]) is not RawParam
    return Product(None, _terms(op), "conv", False, linear)


def _convolution(op: RawOp) -> Product:
    groups, dilation, stride, transposed, kernel = _convolution_detail(op)
    node_type = "conv"
    if groups > 1:
        node_type = "dil_conv" if min(dilation) > 1 else "sep_conv"
    taps: float = prod(kernel[2:])
    channels = kernel[1]
    if transposed:
        # Each output element gets in / groups channels times the taps that meet it.
        channels = kernel[0] // groups
        taps = taps / prod(stride)
    fan_in = max(1, int(channels * taps))
    depthwise = channels == 1 and (groups > 1 or not transposed)
    return Product(kernel, fan_in, node_type, depthwise, False)


def _convolution_detail(
    op: RawOp,
) -> tuple[int, Sequence[int], Sequence[int], bool, tuple[int, ...]]:
    detail = op.detail
    if isinstance(detail, tuple):
        return detail[0], detail[1], detail[2], detail[3], tuple(detail[4])
    return (
        int(detail._saved_groups),
        tuple(detail._saved_dilation),
        tuple(detail._saved_stride),
        bool(detail._saved_transposed),
        tuple(detail._saved_weight.shape),
    )


def _terms(op: RawOp) -> int | None:
    """Number of terms in each sum of a matrix product."""
    detail = op.detail
    if detail is None or isinstance(detail, int):
        return detail
    for name in ("_saved_mat1_sym_sizes", "_saved_self_sym_sizes"):
        sizes = getattr(detail, name, None)
        if sizes is not None:
            return int(sizes[-1])
    for name, which in (
        ("_saved_mat2", -2),
        ("_saved_batch2", -2),
        ("_saved_vec", -1),
        ("_saved_self", -1),
    ):
        tensor = getattr(detail, name, None)
        if tensor is not None:
            return int(tensor.shape[which])
    return None


def _is_weight_of(reader: RawOp, place: int, depends: Dependence) -> bool:
    """Whether a matrix product has features for its other operand."""
    if reader.kind in _BATCHED:
        return True
    if reader.kind not in _MATRIX_PRODUCTS or place == PRODUCTS[reader.kind][1]:
        return False
    bias = PRODUCTS[reader.kind][1]
    others = (item for at, item in enumerate(reader.inputs) if at not in (place, bias))
    return any(map(depends, others))


def is_weight(op: RawOp, depends: Dependence) -> bool:
    """Whether the result of an operation is used as the weight of products, and as nothing else."""
    stack, seen = [op], {id(op)}
    found = False
    while stack:
        for reader, place in depends.readers(stack.pop()):
            if reader.kind in STRUCTURAL:
                if id(reader) not in seen:
                    seen.add(id(reader))
                    stack.append(reader)
            elif reader.kind in (*_CONVOLUTIONS, *_MATRIX_PRODUCTS):
                if place == PRODUCTS[reader.kind][1] or enters_softmax(reader, depends):
                    return False
                found = True
            else:
                return False
    return found


def kernel_behind(op: RawOp, depends: Dependence) -> Product | None:
    """The product whose weight a parameter becomes after features have scaled it."""
    return _kernel_behind(op, depends, mixed=False)


def _is_gated(op: RawOp, place: int) -> bool:
    """Whether the other operand of a product is a share of one."""
    for item in (item for at, item in enumerate(op.inputs) if at != place):
        while type(item) is RawOp and item.kind in STRUCTURAL:
            item = item.inputs[0]
        if type(item) is RawOp and item.kind in ("Softmax", "Sigmoid"):
            return True
    return False


def _kernel_behind(
    op: RawOp, depends: Dependence, *, mixed: bool, gated: bool = False
) -> Product | None:
    passing = STRUCTURAL if mixed else STRUCTURAL | WEIGHT_ARITHMETIC - {"Mm", "Bmm", "Addmm"}
    stack, seen = [op], {id(op)}
    while stack and len(seen) < _FARTHEST:
        for reader, place in depends.readers(stack.pop()):
            if reader.kind == "Convolution" and place == 1:
                return _convolution(reader)
            if (gated or not mixed) and _is_weight_of(reader, place, depends):
                return _product_of(reader, place)._replace(linear=reader.kind in _BATCHED)
            if reader.kind in passing and id(reader) not in seen:
                seen.add(id(reader))
                stack.append(reader)
    return None
