"""Reading checkpoints in the layout of the published GHN code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ghn_fast.hypernet.config import GHNConfig

_PREFIXES = (
    ("shape_enc.embed_spatial.", "encoder.kernel."),
    ("shape_enc.embed_channel.", "encoder.channel."),
    ("embed.", "encoder.op."),
    ("gnn.mlp_ve.fc.", "propagator.virtual_message."),
    ("gnn.mlp.fc.", "propagator.message."),
    ("gnn.gru.", "propagator.update."),
    ("gnn.fc.", "propagator.layers."),
    ("ln.", "norm."),
    ("decoder.fc.0.", "blocks.expand."),
    ("decoder.conv.0.", "blocks.hidden."),
    ("decoder.conv.2.", "blocks.output."),
    ("decoder.class_layer_predictor.1.", "blocks.head."),
    ("decoder_1d.fc.", "vectors.layers."),
    ("bias_class.1.", "vectors.head."),
)
_PROPAGATORS = {"gatedgnn": "gated_gnn", "mlp": "mlp"}


def is_published(values: Any) -> bool:
    """Whether a loaded file has the published layout."""
    return isinstance(values, Mapping) and {"state_dict", "config"} <= set(values)


def published_config(values: Mapping[str, Any]) -> GHNConfig:
    """Translate a published configuration.

    Raises:
        ValueError: If an entry is missing or names a variant that does not exist here.
    """
    names = (
        "max_shape",
        "num_classes",
        "hypernet",
        "decoder",
        "weight_norm",
        "ve",
        "layernorm",
        "hid",
    )
    for name in names:
        if name not in values:
            raise ValueError(f"config: entry '{name}' is missing, needs {', '.join(names)}")
    if values["decoder"] != "conv":
        raise ValueError(f"config: decoder is {values['decoder']!r}, only 'conv' is supported")
    if values["hypernet"] not in _PROPAGATORS:
        raise ValueError(
            f"config: hypernet is {values['hypernet']!r}, needs one of {sorted(_PROPAGATORS)}"
        )
    out, in_, height, width = (int(size) for size in values["max_shape"])
    return GHNConfig(
        max_shape=(out, in_, height, width),
        num_classes=int(values["num_classes"]),
        hid=int(values["hid"]),
        propagator=_PROPAGATORS[values["hypernet"]],
        virtual_edges=50 if values["ve"] else 1,
        normalize=bool(values["weight_norm"]),
        layer_norm=bool(values["layernorm"]),
    )


def published_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate published weights to our names; 1x1 convolutions become linear layers."""
    result = {}
    for name, tensor in state.items():
        for old, new in _PREFIXES:
            if name.startswith(old):
                name = new + name[len(old) :]
                break
        if tensor.ndim == 4 and tuple(tensor.shape[2:]) == (1, 1):
            tensor = tensor.flatten(1)
        result[name] = tensor
    return result
