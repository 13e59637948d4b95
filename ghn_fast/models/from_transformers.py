"""Networks of Hugging Face transformers, from a configuration: ``hf:CONFIG_OR_FOLDER``.

Nothing is downloaded and no code of a folder is run: the configuration is a type of network that
transformers knows (``hf:vit``), a file or folder on this machine, or one that was downloaded
before.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ghn_fast.models.model import NamedModel
from ghn_fast.models.nearest import nearest
from ghn_fast.utils.optional import require

PREFIX = "hf:"
# What a configuration without a class of its own becomes, the first that fits.
_CLASSES = (
    "AutoModelForImageClassification",
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSequenceClassification",
    "AutoModel",
)
_TOKENS = 8
_SAMPLES = 16_000


def names() -> list[str]:
    """The types of networks that transformers can make without a file, with the prefix."""
    return [f"{PREFIX}{name}" for name in _types()]


def resolve(name: str, num_classes: int | None, image_size: int | None) -> NamedModel:
    """The network of a configuration.

    Raises:
        ValueError: If there is no such configuration, or the inputs of the network are not known.
    """
    config = _config(name)
    if num_classes is not None and _is_classifier(config):
        config.num_labels = num_classes
    if image_size is not None and hasattr(config, "image_size"):
        config.image_size = image_size
    kind, make = _class(name, config)
    inputs = _inputs(name, config, kind, image_size)
    size = inputs["pixel_values"].shape[-1] if "pixel_values" in inputs else None
    return NamedModel(
        name,
        make,
        example_inputs=inputs,
        image_size=size,
        num_classes=num_classes,
        built_for_size=size is not None,
    )


def _config(name: str) -> Any:
    transformers = _transformers()
    text = name.removeprefix(PREFIX)
    path = Path(text).expanduser()
    try:
        if path.exists():
            return transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
        if text in _types():
            return transformers.AutoConfig.for_model(text)
        if "/" in text:
            return transformers.AutoConfig.from_pretrained(
                text, trust_remote_code=False, local_files_only=True
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"model: got {name!r}, which is no configuration that transformers can read without a "
            f"download: {reason[:300]}"
        ) from error
    close = ", ".join(nearest(text, _types()))
    raise ValueError(
        f"model: got {name!r}, which is no file, no folder and no type of network that "
        "transformers knows" + (f"; the nearest are {close}" if close else "")
    )


def _is_classifier(config: Any) -> bool:
    """Whether the configuration names a classifier, or no class at all."""
    named = getattr(config, "architectures", None) or []
    return not named or "Classification" in named[0]


def _class(name: str, config: Any) -> tuple[type, Any]:
    """The class that a configuration becomes, and a function that makes it."""
    transformers = _transformers()
    for written in getattr(config, "architectures", None) or []:
        found = getattr(transformers, written, None)
        if found is not None:
            return found, partial(found, config)
    for auto in (getattr(transformers, title) for title in _CLASSES):
        if type(config) in auto._model_mapping:
            found = auto._model_mapping[type(config)]
            found = found[0] if isinstance(found, tuple) else found
            return found, partial(auto.from_config, config)
    raise ValueError(f"model: {name} has a configuration that no network of transformers is for")


def _inputs(name: str, config: Any, kind: Any, image_size: int | None) -> dict[str, Tensor]:
    """Inputs of the kind that the network reads first, for one example."""
    main = kind.main_input_name
    if main == "pixel_values":
        vision = getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", None) or image_size or 224
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return {main: torch.zeros(1, getattr(vision, "num_channels", 3), height, width)}
    if main == "input_ids":
        inputs = {main: torch.ones(1, _TOKENS, dtype=torch.long)}
        if getattr(config, "is_encoder_decoder", False):
            inputs["decoder_input_ids"] = torch.ones(1, _TOKENS, dtype=torch.long)
        return inputs
    if main == "input_values":
        return {main: torch.zeros(1, _SAMPLES)}
    raise ValueError(
        f"model: {name} reads {main!r} first, for which no example inputs are known; build it "
        "yourself and name it as FILE.py:FUNCTION, or call ghn.predict(model, example_inputs=...)"
    )


def _types() -> list[str]:
    return sorted(_transformers().models.auto.configuration_auto.CONFIG_MAPPING.keys())


def _transformers() -> Any:
    return require("transformers", "transformers", "networks of transformers")
