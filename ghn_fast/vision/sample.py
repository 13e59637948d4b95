"""A thousand test images of CIFAR-10 that come with the package, for a first look without data."""

from __future__ import annotations

from importlib import resources

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ghn_fast.utils.optional import require
from ghn_fast.vision.images import ImageSet

CLASS_NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
# Images of a class lie in one file, rows of ten, so that they share the tables of one JPEG.
_PER_ROW = 10
_SIDE = 32


def sample_images(image_size: int) -> ImageSet:
    """The images, resized bilinearly if ``image_size`` is not 32.

    Returns:
        1,000 images of ten classes, class by class.

    Raises:
        ImportError: If Pillow is not installed.
    """
    images, targets = [], []
    for index, name in enumerate(CLASS_NAMES):
        pixels = _tiles(name)
        images.append(pixels)
        targets.append(torch.full((len(pixels),), index))
    stored = torch.cat(images)
    if image_size != _SIDE:
        resized = F.interpolate(
            stored.float(), size=(image_size, image_size), mode="bilinear", antialias=True
        )
        stored = resized.round().clamp(0, 255).to(torch.uint8)
    return ImageSet(torch.cat(targets), image_size, images=stored)


def _tiles(name: str) -> Tensor:
    """The images of a class (100, 3, 32, 32) uint8."""
    Image = require("PIL.Image", "vision", "the images of cifar10-sample")
    source = resources.files("ghn_fast.vision") / "samples" / "cifar10" / f"{name}.jpg"
    with source.open("rb") as file, Image.open(file) as image:
        grid = torch.from_numpy(np.array(image.convert("RGB")))
    rows = len(grid) // _SIDE
    tiles = grid.view(rows, _SIDE, _PER_ROW, _SIDE, 3)
    return tiles.permute(0, 2, 4, 1, 3).reshape(rows * _PER_ROW, 3, _SIDE, _SIDE).contiguous()
