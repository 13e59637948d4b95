"""Classifiers as backbones of detectors: their last features, before these are averaged."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ghn_fast.utils.modes import evaluation_mode


class _FeaturesError(Exception):
    """Carries features out of a network whose rest is not needed."""

    def __init__(self, features: Tensor) -> None:
        super().__init__("features")
        self.features = features


class Backbone(nn.Module):
    """The part of a classifier up to its last feature map.

    The classifier itself is not changed: its forward pass ends where the features are there.

    Args:
        model: The classifier.
        image_size: Height and width of images that it takes, in pixels.

    Attributes:
        out_channels: Channels of the features.
        layer: Name of the module whose output they are.

    Raises:
        ValueError: If no module of it gives features of more than one position.
    """

    def __init__(self, model: nn.Module, image_size: int = 64) -> None:
        super().__init__()
        self.layer, self.out_channels = _last_features(model, image_size)
        self.body = model
        model.get_submodule(self.layer).register_forward_hook(self._leave)
        self._wanted = False

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._wanted:
            raise _FeaturesError(output)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, channels, h, w) of images (B, 3, H, W)."""
        self._wanted = True
        try:
            self.body(images)
        except _FeaturesError as found:
            return found.features
        finally:
            self._wanted = False
        raise RuntimeError(f"the network did not come to its layer {self.layer!r}")


def _last_features(model: nn.Module, size: int) -> tuple[str, int]:
    found: list[tuple[str, int]] = []

    def note(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1:
            found.append((name, int(output.shape[1])))

    hooks = [
        module.register_forward_hook(lambda m, i, o, n=name: note(n, o))  # type: ignore[misc]
        for name, module in model.named_modules()
        if name
    ]
    try:
        device = next(model.parameters(), torch.empty(0)).device
        with evaluation_mode(model), torch.no_grad():
            model(torch.zeros(1, 3, size, size, device=device))
    except RuntimeError as error:
        raise ValueError(f"model: cannot take images of {size}×{size} pixels: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise ValueError(
            f"model: no layer of {type(model).__name__} gives features (B, C, h, w) of more than "
            f"one position for images of {size}×{size} pixels; a detector needs them"
        )
    return found[-1]
