"""Reading checkpoints in the layouts of the published code of GHN-1, GHN-2 and GHN-3.

A training run has ``state_dict`` and ``config``. A file of the Hub of GHN-3 is a bare mapping of
names to weights, from which the configuration is inferred as the published loader does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import Tensor

from ghn_fast.graph.node_types import LANGUAGE_NODE_TYPES
from ghn_fast.hypernet.config import GHNConfig

_PREFIXES = (
    ("shape_enc.embed_spatial.", "encoder.kernel."),
    ("shape_enc.embed_channel.", "encoder.channel."),
    ("embed.", "encoder.op."),
    ("gnn.mlp_ve.fc.", "propagator.virtual_message."),
    ("gnn.mlp.fc.", "propagator.message."),
    ("gnn.gru.", "propagator.update."),
    ("gnn.fc.", "propagator.layers."),
    ("gnn.0.attn.edge_embed.embed.", "propagator.distance."),
    ("gnn.0.attn.proj_e.0.", "propagator.pair_hidden."),
    ("gnn.0.attn.proj_e.2.", "propagator.pair_bias."),
    # Of the first layer in runs, by themselves on the Hub.
    ("gnn.0.centrality_embed_in.", "propagator.in_degree."),
    ("gnn.0.centrality_embed_out.", "propagator.out_degree."),
    ("gnn.0.input_dist_embed.", "propagator.input_distance."),
    ("centrality_embed_in.", "propagator.in_degree."),
    ("centrality_embed_out.", "propagator.out_degree."),
    ("input_dist_embed.", "propagator.input_distance."),
    ("ln.", "norm."),
    ("decoder.fc.0.", "blocks.expand."),
    ("decoder.conv.0.", "blocks.hidden."),
    ("decoder.conv.2.", "blocks.output."),
    ("decoder.class_layer_predictor.1.", "blocks.head."),
    # Of LoGAH; its last layer has two names.
    ("decoder.mlp.fc.", "blocks.layers."),
    ("decoder.l2.", "blocks.output."),
    ("decoder_1d.fc.", "vectors.layers."),
    ("bias_class.1.", "vectors.head."),
)
_IN_LAYER = {
    "ln1": "attention_norm",
    "attn.to_qkv": "qkv",
    "attn.to_out.0": "out",
    "ln2": "mlp_norm",
    "ff.net.0": "mlp_in",
    "ff.net.3": "mlp_out",
}
_LAYER = re.compile(rf"gnn\.(\d+)\.({'|'.join(map(re.escape, _IN_LAYER))})\.(weight|bias)")
_LOW_RANK = "decoder.l2.weight"
# Of LoGAH: never used, or another name of one that is.
_UNUSED = ("decoder.l1.", "decoder.seq.1.", "decoder_1d.0.")
_PROPAGATORS = {"gatedgnn": "gated_gnn", "mlp": "mlp"}


def is_published(values: Any) -> bool:
    """Whether a loaded file has the published layout of a training run."""
    return isinstance(values, Mapping) and {"state_dict", "config"} <= set(values)


def is_bare(values: Any) -> bool:
    """Whether a loaded file is a bare mapping of published names to weights."""
    return (
        isinstance(values, Mapping)
        and "embed.weight" in values
        and all(type(k) is str and isinstance(v, Tensor) for k, v in values.items())
    )


def published_config(values: Mapping[str, Any], state: Mapping[str, Tensor]) -> GHNConfig:
    """Translate a published configuration; what GHN-3's does not say, the weights do.

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
    needed = [name for name in names if name != "num_classes" or _LOW_RANK not in state]
    for name in needed:
        if name not in values:
            raise ValueError(f"config: entry '{name}' is missing, needs {', '.join(names)}")
    if values["decoder"] != "conv":
        raise ValueError(f"config: decoder is {values['decoder']!r}, only 'conv' is supported")
    if values["hypernet"] not in _PROPAGATORS:
        raise ValueError(
            f"config: hypernet is {values['hypernet']!r}, needs one of {sorted(_PROPAGATORS)}"
        )
    out, in_, height, width = (int(size) for size in values["max_shape"])
    settings: dict[str, Any] = {"propagator": _PROPAGATORS[values["hypernet"]]}
    if is_of_ghn3(values, state):
        settings = _settings_of_ghn3(state)
    return GHNConfig(
        max_shape=(out, in_, height, width),
        num_classes=int(values.get("num_classes", 10)),
        hid=int(values["hid"]),
        virtual_edges=50 if values["ve"] else 1,
        normalize=bool(values["weight_norm"]),
        layer_norm=bool(values["layernorm"]),
        **settings,
    )


def is_of_ghn3(values: Mapping[str, Any], state: Mapping[str, Tensor]) -> bool:
    """Whether the code of GHN-3 wrote a training run; it trains GHN-2, too, on its own graphs."""
    return "is_ghn2" in values or any(_LAYER.fullmatch(name) for name in state)


def inferred_config(state: Mapping[str, Tensor]) -> GHNConfig:
    """The configuration of bare weights, as the published loader infers it.

    Raises:
        ValueError: If a weight that it is inferred from is not there or has no such shape.
    """
    if _LOW_RANK in state:
        return _inferred_low_rank(state)
    try:
        blocks = state["decoder.conv.2.weight"].shape[0]
        channels = isqrt(blocks)
        classes = state["decoder.class_layer_predictor.1.weight"].shape[0]
        kernels, hid = (
            state["shape_enc.embed_spatial.weight"].shape[0],
            state["embed.weight"].shape[1],
        )
    except (KeyError, IndexError) as error:
        raise ValueError(f"the weights say no configuration: {error} is missing") from error
    if channels * channels != blocks:
        raise ValueError(f"decoder.conv.2.weight: got {blocks} rows, needs the square of a number")
    size = 11 if kernels == 9 else 16
    return GHNConfig(
        max_shape=(channels, channels, size, size),
        num_classes=classes,
        hid=hid,
        virtual_edges=50,
        layer_norm="ln.weight" in state,
        **_settings_of_ghn3(state),
    )


def _inferred_low_rank(state: Mapping[str, Tensor]) -> GHNConfig:
    channels, rest = divmod(len(state[_LOW_RANK]), 16)
    if rest:
        raise ValueError(f"{_LOW_RANK}: got {len(state[_LOW_RANK])} rows, needs a multiple of 16")
    classes = len(state["bias_class.1.weight"]) if "decoder_1d.fc.0.weight" in state else 10
    return GHNConfig(
        max_shape=(channels, channels, 16, 16),
        num_classes=classes,
        hid=state["embed.weight"].shape[1],
        virtual_edges=50,
        layer_norm="ln.weight" in state,
        **_settings_of_ghn3(state),
    )


def _settings_of_ghn3(state: Mapping[str, Tensor]) -> dict[str, Any]:
    if any(name.startswith("gnn.gru.") for name in state):
        return {"propagator": "gated_gnn", "rules": "ghn3", "window": "corner"}
    layers = [int(found[1]) for found in map(_LAYER.fullmatch, state) if found]
    if not layers or "gnn.0.attn.proj_e.2.weight" not in state:
        raise ValueError("the weights are those of no graph neural network that is known here")
    settings: dict[str, Any] = {
        "propagator": "graphormer",
        "layers": max(layers) + 1,
        "heads": len(state["gnn.0.attn.proj_e.2.weight"]),
        "rules": "ghn3",
        "window": "middle",
    }
    if _LOW_RANK in state:
        settings |= {
            "decoder": "low_rank",
            "rank": state[_LOW_RANK].shape[1],
            "vectors": "mlp" if "decoder_1d.fc.0.weight" in state else "low_rank",
        }
        if len(state["embed.weight"]) == len(LANGUAGE_NODE_TYPES):
            settings |= {
                "rules": "language-published",
                "weights": "standard_deviation",
                "language": True,
            }
    return settings


def published_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate published weights to our names; 1x1 convolutions become linear layers."""
    result = {}
    # Without a decoder of vectors there is a placeholder for its head.
    unused = (*_UNUSED, "bias_class.1.") if "decoder_1d.0.weight" in state else _UNUSED
    for name, tensor in state.items():
        if name.startswith(unused):
            continue
        layer = _LAYER.fullmatch(name)
        if layer:
            name = f"propagator.layers.{layer[1]}.{_IN_LAYER[layer[2]]}.{layer[3]}"
        else:
            for old, new in _PREFIXES:
                if name.startswith(old):
                    name = new + name[len(old) :]
                    break
        if tensor.ndim == 4 and tuple(tensor.shape[2:]) == (1, 1):
            tensor = tensor.flatten(1)
        result[name] = tensor
    return result
