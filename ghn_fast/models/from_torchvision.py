"""Networks of torchvision, untrained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ghn_fast.models.model import NamedModel
from ghn_fast.utils.optional import require

_FAMILIES = ("classification", "segmentation", "detection", "video")
# Detection accepts any size; from this one on every pyramid level has pixels.
_DETECTION_SIZE = 320
_FRAMES = 16
_AUXILIARY = ("googlenet", "inception_v3")
# What a network is told when its images have a size of their own; others take any.
_SIZE_ARGUMENT: dict[str, Callable[[int], dict[str, Any]]] = {
    "vit_": lambda size: {"image_size": size},
    "maxvit_": lambda size: {"input_size": (size, size)},
}


def names() -> list[str]:
    """Names of the networks for classification, segmentation, detection and video."""
    return [name for family in _FAMILIES for name in _family(family)]


def resolve(name: str, num_classes: int | None, image_size: int | None) -> NamedModel | None:
    """The network of a name; ``None`` if torchvision has none of that name."""
    family = next((family for family in _FAMILIES if name in _family(family)), None)
    if family is None:
        return None
    size = image_size or (_DETECTION_SIZE if family == "detection" else _usual_size(name))
    built_for_size = False
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if family in ("segmentation", "detection"):
        options["weights_backbone"] = None
    if image_size is not None:
        for prefix, argument in _SIZE_ARGUMENT.items():
            if name.startswith(prefix):
                options |= argument(image_size)
                built_for_size = True
    if name in _AUXILIARY:
        # Heads that only their own training uses; no prediction reaches them.
        options |= {"aux_logits": False, "init_weights": True}

    def make() -> nn.Module:
        made: nn.Module = _models().get_model(name, weights=None, **options)
        # Its training pass wants targets.
        return made.eval() if family == "detection" else made

    detection = family == "detection"
    return NamedModel(
        name,
        make,
        input_shape=None
        if detection
        else (3, *([_FRAMES] if family == "video" else []), size, size),
        example_inputs=([torch.zeros(3, size, size)],) if detection else None,
        image_size=size,
        num_classes=num_classes,
        built_for_size=built_for_size,
    )


def _usual_size(name: str) -> int:
    return 299 if name == "inception_v3" else 224


def _family(family: str) -> list[str]:
    models = _models()
    module = models if family == "classification" else getattr(models, family)
    return list(models.list_models(module=module))


def _models() -> Any:
    return require("torchvision.models", "vision", "networks of torchvision")
