"""Folders of random images, and what tests of data sets compare."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ghn_fast.vision import ImageSet, ImageSplits

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def write_tree(
    path: Path, counts: dict[str, int], size: tuple[int, int] = (16, 16), start: int = 0
) -> dict[str, np.ndarray]:
    """PNG files path/<class>/<i>.png of unique random pixels; returns (H, W, 3) by file name."""
    pixels = {}
    generator = np.random.default_rng([start, *(len(name) for name in counts)])
    for name, count in counts.items():
        (path / name).mkdir(parents=True)
        for i in range(start, start + count):
            image = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            file = path / name / f"{i:03d}.png"
            Image.fromarray(image).save(file)
            pixels[str(file)] = image
    return pixels


def keys(images: ImageSet) -> list[bytes]:
    """One key per image: its pixels."""
    return [image.numpy().tobytes() for image in images.pixels(torch.arange(len(images)))]


def assert_partition(splits: ImageSplits, expected: set[bytes]) -> None:
    parts = [keys(part) for part in (splits.train, splits.val, splits.test)]
    everything = [key for part in parts for key in part]
    assert len(everything) == len(set(everything)) == len(expected)
    assert set(everything) == expected


def chw(images: dict[str, np.ndarray]) -> set[bytes]:
    return {np.ascontiguousarray(image.transpose(2, 0, 1)).tobytes() for image in images.values()}


def counts(images: ImageSet) -> list[int]:
    return torch.bincount(images.targets).tolist()


def bilinear(image: np.ndarray, size: int) -> np.ndarray:
    """Bilinear enlargement with pixel centres at half-integers, one pixel at a time."""
    side = len(image)
    result = np.empty((size, size))
    for y, x in itertools.product(range(size), repeat=2):
        v = min(max((y + 0.5) * side / size - 0.5, 0), side - 1)
        u = min(max((x + 0.5) * side / size - 0.5, 0), side - 1)
        top, left = int(v), int(u)
        low, right = min(top + 1, side - 1), min(left + 1, side - 1)
        b, a = v - top, u - left
        result[y, x] = (1 - b) * ((1 - a) * image[top, left] + a * image[top, right]) + b * (
            (1 - a) * image[low, left] + a * image[low, right]
        )
    return result
