"""Networks of timm, untrained: ``timm:NAME``."""

from __future__ import annotations

from typing import Any

from torch import nn

from ghn_fast.models.model import NamedModel
from ghn_fast.models.nearest import nearest
from ghn_fast.utils.optional import require

PREFIX = "timm:"


def names() -> list[str]:
    """Names of all networks, with the prefix."""
    return [f"{PREFIX}{name}" for name in _timm().list_models()]


def resolve(name: str, num_classes: int | None, image_size: int | None) -> NamedModel:
    """The network of a name with the prefix.

    Raises:
        ValueError: If timm has no network of that name; the message has the nearest names.
    """
    timm = _timm()
    plain = name.removeprefix(PREFIX)
    # A tag names trained weights, which nobody asks for here: resnet50.a1_in1k.
    if not timm.is_model(plain.partition(".")[0]):
        close = ", ".join(nearest(plain, timm.list_models()))
        raise ValueError(
            f"model: got {name!r}, which timm does not have"
            + (f"; the nearest are {close}" if close else "; `ghn-fast models timm:` lists all")
        )
    known = timm.models.get_pretrained_cfg(plain, allow_unregistered=True)
    channels, *sizes = known.input_size if known is not None else (3, 224, 224)
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if image_size is not None:
        sizes = [image_size, image_size]
        if known is not None and known.fixed_input_size:
            options["img_size"] = image_size

    def make() -> nn.Module:
        made: nn.Module = timm.create_model(plain, pretrained=False, **options)
        return made

    return NamedModel(
        name,
        make,
        input_shape=(channels, *sizes),
        image_size=sizes[-1],
        num_classes=num_classes,
        built_for_size="img_size" in options,
    )


def _timm() -> Any:
    return require("timm", "timm", "networks of timm")
