"""Small subsets of a data set: a number of images of each class."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ghn_fast.vision.augment import seeded_generator
from ghn_fast.vision.images import ImageSet, ImageSplits


def few_shot(splits: ImageSplits, shots: int, seed: int = 0) -> ImageSplits:
    """Keep ``shots`` training images of each class, and as many validation images at most.

    Validation images choose settings such as the learning rate; with only a few training images
    more of them would not be there either. Test images stay.

    Args:
        splits: The data set.
        shots: Training images of each class.
        seed: Seed of the choice. A larger number of shots has the images of a smaller one.

    Raises:
        ValueError: If ``shots`` is below 1 or a class has fewer training images; the message names
            the class.
    """
    if shots < 1:
        raise ValueError(f"shots: got {shots}, needs at least 1 image of each class")
    counts = torch.bincount(splits.train.targets, minlength=splits.num_classes)
    fewest = int(counts.argmin())
    if int(counts[fewest]) < shots:
        raise ValueError(
            f"shots: got {shots}, but class {splits.class_names[fewest]} of {splits.name} has "
            f"{int(counts[fewest])} training images"
        )
    return replace(
        splits,
        train=_subset(splits.train, shots, splits.num_classes, seed, "train"),
        val=_subset(splits.val, shots, splits.num_classes, seed, "val"),
    )


def _subset(images: ImageSet, shots: int, classes: int, seed: int, part: str) -> ImageSet:
    generator = seeded_generator("few-shot", part, seed)
    order = torch.randperm(len(images), generator=generator)
    targets = images.targets[order]
    chosen: list[Tensor] = [order[targets == label][:shots] for label in range(classes)]
    return images.subset(torch.cat(chosen).sort().values)
