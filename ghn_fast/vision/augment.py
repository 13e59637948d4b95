"""Training augmentation of whole batches: one gather or one resampling, on any device.

Every random number comes from a CPU generator, so that a batch is augmented the same way on
every device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ghn_fast.utils.seeds import derive_seed

POLICIES = ("none", "shift", "crop_flip", "resized_crop_flip")

# Random resized crops as in Inception training (arXiv 1409.4842) and torchvision.
CROP_AREA = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10


def seeded_generator(*key: int | str) -> torch.Generator:
    """A CPU generator whose numbers depend on ``key`` alone; nearby keys are unrelated."""
    return torch.Generator().manual_seed(derive_seed(*key))


def augment_batch(images: Tensor, policy: str, generator: torch.Generator) -> Tensor:
    """Augment a batch of images.

    Args:
        images: Batch (B, 3, H, W) uint8.
        policy: One of :data:`POLICIES`. ``none`` changes nothing. ``shift`` moves an image by up to
            3/32 of its side and fills the border with black. ``crop_flip`` pads it by 1/8 of the
            side (4 pixels at 32), crops it at random, and mirrors it with probability 1/2.
            ``resized_crop_flip`` resizes a random part, 8 to 100 % of the area, to the whole, and
            mirrors with probability 1/2.
        generator: CPU generator of all random numbers.

    Returns:
        A batch of the same shape with values 0..255, uint8 or float32.

    Raises:
        ValueError: If there is no such policy.
    """
    side = images.shape[-1]
    if policy == "none":
        return images
    if policy == "shift":
        return shift_and_flip(images, max(1, side * 3 // 32), flip=False, generator=generator)
    if policy == "crop_flip":
        return shift_and_flip(images, max(1, side // 8), flip=True, generator=generator)
    if policy == "resized_crop_flip":
        count = images.shape[0]
        draws, mirrored = draw_crops(count, generator)
        size = torch.full((count,), side)
        return resample_boxes(images, crop_boxes(draws, size, size), mirrored)
    raise ValueError(f"augment must be one of {', '.join(POLICIES)}; got {policy!r}")


def shift_and_flip(
    images: Tensor, padding: int, *, flip: bool, generator: torch.Generator
) -> Tensor:
    """Pad (B, C, H, W) with zeros on all sides and crop H x W at random, then mirror or not."""
    count, channels, height, width = images.shape
    tops = torch.randint(0, 2 * padding + 1, (count, 1), generator=generator)
    lefts = torch.randint(0, 2 * padding + 1, (count, 1), generator=generator)
    columns = torch.arange(width).expand(count, width)
    if flip:
        mirrored = torch.rand((count, 1), generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    rows = tops + torch.arange(height)
    positions = rows[:, :, None] * (width + 2 * padding) + (lefts + columns)[:, None, :]
    positions = positions.reshape(count, 1, height * width).to(images.device)
    padded = F.pad(images, (padding, padding, padding, padding)).flatten(2)
    return padded.gather(2, positions.expand(-1, channels, -1)).view(images.shape)


def draw_crops(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw the random numbers of resized crops.

    Returns:
        Uniform numbers (count, attempts, 4) float64 for :func:`crop_boxes`, and (count,) bool,
        whether each crop is mirrored.
    """
    draws = torch.rand((count, CROP_ATTEMPTS, 4), generator=generator, dtype=torch.float64)
    return draws, torch.rand(count, generator=generator) < 0.5


def crop_boxes(draws: Tensor, heights: Tensor, widths: Tensor) -> Tensor:
    """Find the boxes of random resized crops.

    The first attempt that fits inside the image is taken; if none does, the largest central box
    whose aspect ratio is within :data:`CROP_RATIO`.

    Args:
        draws: Uniform numbers (B, attempts, 4) for area, aspect ratio, top and left.
        heights: Heights of the images, (B,) int64.
        widths: Widths of the images, (B,) int64.

    Returns:
        Boxes (B, 4) int64: top, left, height, width.
    """
    height, width = heights[:, None].double(), widths[:, None].double()
    area = height * width * (CROP_AREA[0] + (CROP_AREA[1] - CROP_AREA[0]) * draws[..., 0])
    low, high = math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])
    ratio = torch.exp(low + (high - low) * draws[..., 1])
    box_width = torch.sqrt(area * ratio).round()
    box_height = torch.sqrt(area / ratio).round()
    fits = (box_width >= 1) & (box_width <= width) & (box_height >= 1) & (box_height <= height)
    top = ((height - box_height + 1) * draws[..., 2]).floor()
    left = ((width - box_width + 1) * draws[..., 3]).floor()
    attempts = torch.stack([top, left, box_height, box_width], dim=-1)
    first = fits.to(torch.uint8).argmax(dim=1)
    chosen = attempts[torch.arange(len(draws)), first]

    whole_height = torch.minimum(height, (width / CROP_RATIO[0]).round().clamp(min=1))[:, 0]
    whole_width = torch.minimum(width, (height * CROP_RATIO[1]).round().clamp(min=1))[:, 0]
    central = torch.stack(
        [
            ((height[:, 0] - whole_height) / 2).floor(),
            ((width[:, 0] - whole_width) / 2).floor(),
            whole_height,
            whole_width,
        ],
        dim=-1,
    )
    return torch.where(fits.any(dim=1)[:, None], chosen, central).long()


def resample_boxes(images: Tensor, boxes: Tensor, mirrored: Tensor) -> Tensor:
    """Resize box b of image b to the whole image, bilinearly.

    A box is never larger than its image, so this only enlarges and needs no anti-aliasing.

    Args:
        images: Images (B, C, H, W) with values 0..255.
        boxes: Boxes (B, 4): top, left, height, width.
        mirrored: Whether to mirror each image, (B,) bool.

    Returns:
        Images of the same shape, float32.
    """
    count, _, height, width = images.shape
    top, left, box_height, box_width = boxes.double().unbind(dim=1)
    theta = torch.zeros((count, 2, 3), dtype=torch.float64)
    theta[:, 0, 0] = box_width / width * torch.where(mirrored, -1.0, 1.0)
    theta[:, 0, 2] = (2 * left + box_width) / width - 1
    theta[:, 1, 1] = box_height / height
    theta[:, 1, 2] = (2 * top + box_height) / height - 1
    grid = F.affine_grid(theta.float().to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(
        images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
