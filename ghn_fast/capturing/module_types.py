"""Which node type stands for a parameter, by the layer that holds it."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from torch import nn

from ghn_fast.capturing.raw import RawParam

PARAMETER_TYPES = ("conv", "sep_conv", "dil_conv", "bias", "bn", "ln", "pos_enc")
"""Node types that stand for a parameter."""


def describe_parameter(
    module: nn.Module, attribute: str, name: str, shape: tuple[int, ...]
) -> RawParam:
    """Describe a parameter for the architecture graph, as far as its layer says what it is.

    What other parameters are is found out from their use (:mod:`ghn_fast.capturing.roles`), as is
    what a parameter is whose shape is not that of its layer (subclasses may do anything). A layer
    defined elsewhere may declare the node types of its own parameters by a class attribute
    ``ghn_node_types``, a mapping from attribute name to one of :data:`PARAMETER_TYPES`.

    Args:
        module: Layer that holds the parameter.
        attribute: Name of the parameter in the layer.
        name: Name of the parameter in the network.
        shape: Its shape.
    """
    if 0 in shape:
        return RawParam(name, shape, None, reason="it has no elements")
    declared = getattr(module, "ghn_node_types", None)
    if declared is not None and attribute in declared:
        if declared[attribute] not in PARAMETER_TYPES:
            raise ValueError(
                f"{type(module).__name__}.ghn_node_types[{attribute!r}]: got "
                f"{declared[attribute]!r}, needs one of {', '.join(PARAMETER_TYPES)}"
            )
        return _declared(name, shape, declared[attribute])
    for layer, describe in _LAYERS:
        if isinstance(module, layer) and attribute in ("weight", "bias"):
            if len(shape) == (_WEIGHT_DIMS.get(layer, 1) if attribute == "weight" else 1):
                return describe(module, attribute, name, shape)
            break
    param = RawParam(name, shape, None, is_open=True)
    param.is_rows = isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and attribute == "weight"
    return param


def _declared(name: str, shape: tuple[int, ...], node_type: str) -> RawParam:
    """A parameter whose class declares its node type, if its shape can be predicted as such."""
    param = RawParam(name, shape, node_type, is_settled=True)
    extents = [size for size in shape if size > 1]
    if node_type in ("bias", "bn", "ln"):
        fits = len(extents) <= 1
        param.predicted_shape = (prod(shape),)
    elif node_type == "pos_enc":
        fits = len(shape) == 4
    else:
        fits = 2 <= len(shape) <= 5
        if len(shape) == 5:
            param.predicted_shape = (shape[0], shape[1] * shape[2], *shape[3:])
    if not fits:
        reason = f"its class declares it as '{node_type}', which a shape of {shape} does not fit"
        return RawParam(name, shape, None, reason=reason, is_settled=True)
    return param


def _conv(module: nn.Module, attribute: str, name: str, shape: tuple[int, ...]) -> RawParam:
    if attribute == "bias":
        return RawParam(name, shape, "bias")
    grouped = isinstance(module, nn.Conv2d) and module.groups > 1
    dilated = isinstance(module, nn.Conv2d) and min(module.dilation) > 1
    kind = ("dil_conv" if dilated else "sep_conv") if grouped else "conv"
    return RawParam(name, shape, kind)


def _linear(module: nn.Module, attribute: str, name: str, shape: tuple[int, ...]) -> RawParam:
    if attribute == "bias":
        return RawParam(name, shape, "bias")
    return RawParam(name, shape, "conv", is_linear_weight=True)


def _norm(
    kind: str,
) -> Callable[[nn.Module, str, str, tuple[int, ...]], RawParam]:
    def describe(module: nn.Module, attribute: str, name: str, shape: tuple[int, ...]) -> RawParam:
        if attribute == "bias":
            # The node of the scale yields the shift, too.
            return RawParam(name, shape, None)
        shift = None
        if getattr(module, "bias", None) is not None:
            shift = name.removesuffix("weight") + "bias"
        return RawParam(name, shape, kind, shift_name=shift)

    return describe


_LAYERS: tuple[tuple[type[nn.Module], Callable[..., RawParam]], ...] = (
    (nn.Conv2d, _conv),
    (nn.Linear, _linear),
    (nn.BatchNorm2d, _norm("bn")),
    (nn.LayerNorm, _norm("ln")),
)
_WEIGHT_DIMS = {nn.Conv2d: 4, nn.Linear: 2}
