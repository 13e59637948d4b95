"""Small data sets and networks that the tests of studies share."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ghn_fast.studies.networks import Network
from ghn_fast.vision import ImageSplits
from ghn_fast.vision.images import ImageSet


def squares(count: int, classes: int, size: int, seed: int) -> ImageSet:
    """Images with a bright square whose place is the class, on noise."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % classes
    images = torch.randint(0, 90, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    side = size // 2
    for image, target in zip(images, targets.tolist(), strict=True):
        top, left = divmod(target, 2)
        image[:, top * side : top * side + side, left * side : left * side + side] += 150
    return ImageSet(targets, size, images=images)


@pytest.fixture(scope="session")
def splits() -> ImageSplits:
    """Four classes that a small network learns in some steps, 16 pixels."""
    parts = [squares(count, 4, 16, seed) for seed, count in enumerate((96, 32, 64))]
    return ImageSplits(
        name="squares",
        num_classes=4,
        class_names=("a", "b", "c", "d"),
        image_size=16,
        mean=(0.3, 0.3, 0.3),
        std=(0.25, 0.25, 0.25),
        train=parts[0],
        val=parts[1],
        test=parts[2],
        augment="shift",
    )


def small(num_classes: int, image_size: int) -> nn.Module:
    """A network of two convolutions, with dropout."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 80, 3, padding=1, bias=False),
        nn.BatchNorm2d(80),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(320, num_classes),
    )
    model.input_shape = (3, image_size, image_size)
    return model


@pytest.fixture
def network() -> Network:
    """The small network by the name ``small``."""
    return Network("small", factory=small)
