"""Which node type stands for a parameter, by the layer that holds it."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ghn_fast.capturing.raw import RawParam

PARAMETER_TYPES = ("conv", "sep_conv", "dil_conv", "bias", "bn", "ln", "pos_enc")
"""Node types that stand for a parameter."""


def describe_parameter(
    module: nn.Module, attribute: str, name: str, shape: tuple[int, ...]
) -> RawParam:
    """Describe a parameter for the architecture graph, as far as its layer says what it is.

    What other parameters are is found out from their use (:mod:`ghn_fast.capturing.roles`). A layer
    defined elsewhere may declare the node types of its own parameters by a class attribute
    ``ghn_node_types``, a mapping from attribute name to a name in ``NODE_TYPES``.

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
        return RawParam(name, shape, declared[attribute])
    for layer, describe in _LAYERS:
        if isinstance(module, layer) and attribute in ("weight", "bias"):
            return describe(module, attribute, name, shape)
    return RawParam(name, shape, None, is_open=True)


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
            reason = None
            if len(shape) != 1:
                reason = f"a shift of shape {shape} cannot be predicted, needs one dimension"
            return RawParam(name, shape, None, reason=reason)
        if len(shape) != 1:
            return RawParam(
                name,
                shape,
                None,
                reason=f"a scale of shape {shape} cannot be predicted, needs one dimension",
            )
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
