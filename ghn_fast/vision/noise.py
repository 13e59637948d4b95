"""Images with Gaussian noise, for measuring robustness."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ghn_fast.vision.augment import seeded_generator
from ghn_fast.vision.images import ImageSplits

# Standard deviations of the published evaluation (arXiv 2110.13100, section 4.3), the medium
# severity of arXiv 1903.12261, for pixels of 0..1.
CIFAR10_NOISE, IMAGENET_NOISE = 0.08, 0.18


def noisy_batches(
    batches: Iterable[tuple[Tensor, Tensor]],
    splits: ImageSplits,
    deviation: float,
    seed: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Add Gaussian noise to the pixels of batches, cut to 0..1 afterwards.

    Args:
        batches: Pairs of normalised images (B, 3, H, W) and targets.
        splits: The data set that they were normalised for.
        deviation: Standard deviation of the noise, for pixels of 0..1.
        seed: Seed of the noise, which is the same on every device.

    Raises:
        ValueError: If ``deviation`` is negative.
    """
    if not deviation >= 0:
        raise ValueError(f"deviation: got {deviation}, needs a number of at least 0")
    return _noisy(batches, splits, deviation, seed)


def _noisy(
    batches: Iterable[tuple[Tensor, Tensor]], splits: ImageSplits, deviation: float, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    generator = seeded_generator("noise", seed)
    for images, targets in batches:
        mean = torch.tensor(splits.mean, device=images.device).view(1, 3, 1, 1)
        std = torch.tensor(splits.std, device=images.device).view(1, 3, 1, 1)
        noise = torch.randn(images.shape, generator=generator).to(images.device)
        pixels = (images * std + mean + deviation * noise).clamp_(0, 1)
        yield (pixels - mean) / std, targets
