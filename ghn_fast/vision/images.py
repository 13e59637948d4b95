"""Containers of images and targets, in memory or decoded when they are asked for."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ghn_fast.utils.optional import require
from ghn_fast.vision.augment import crop_boxes

# Above this side images are photographs: evaluated on the central 224/256 of the shorter side,
# augmented by random resized crops, normalised by ImageNet's statistics.
SMALL_IMAGE = 64

# Longer than that in units of their width, images have no middle to look at, and a file of some
# hundred bytes would be resized to gigabytes.
LONGEST = 1000

# Batches being decoded ahead of the one in use.
BATCHES_AHEAD = 2

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N labelled images, either in memory or in files that are decoded on demand.

    Attributes:
        targets: Class of each image, (N,) int64.
        image_size: Side H = W of the stored or decoded images, in pixels.
        images: Images (N, 3, H, W) uint8, or ``None``.
        paths: N file names, or ``None``.

    Raises:
        ValueError: If there is not exactly one of images and paths, or one has another type, shape
            or number than the targets and the size say.
    """

    targets: Tensor
    image_size: int
    images: Tensor | None = None
    paths: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if (self.images is None) == (self.paths is None):
            raise ValueError("ImageSet needs exactly one of images and paths")
        if self.targets.dtype != torch.int64 or self.targets.ndim != 1:
            raise ValueError(
                f"targets must be a vector of int64, got {self.targets.dtype} of shape "
                f"{tuple(self.targets.shape)}"
            )
        if self.images is not None:
            expected = (len(self.targets), 3, self.image_size, self.image_size)
            if self.images.dtype != torch.uint8 or tuple(self.images.shape) != expected:
                raise ValueError(
                    f"images must be uint8 of shape {expected}, got {self.images.dtype} of shape "
                    f"{tuple(self.images.shape)}"
                )
        elif self.paths is not None and len(self.paths) != len(self.targets):
            raise ValueError(f"got {len(self.paths)} paths for {len(self.targets)} targets")

    def __len__(self) -> int:
        return len(self.targets)

    def subset(self, indices: Tensor) -> ImageSet:
        """Take the images at ``indices`` (K,) int64, in that order, stored the same way."""
        targets = self.targets[indices]
        if self.images is not None:
            return ImageSet(targets, self.image_size, images=self.images[indices])
        assert self.paths is not None  # guaranteed by __post_init__
        chosen = tuple(self.paths[i] for i in indices.tolist())
        return ImageSet(targets, self.image_size, paths=chosen)

    def pixels(self, indices: Tensor, *, workers: int = 0) -> Tensor:
        """Images at ``indices`` (K,) as evaluation sees them, (K, 3, H, W) uint8 on the CPU."""
        if self.images is not None:
            return self.images[indices]
        assert self.paths is not None  # guaranteed by __post_init__
        return decode_files([self.paths[i] for i in indices.tolist()], self.image_size, workers)


@dataclass(frozen=True, eq=False)
class ImageSplits:
    """An image data set with held-out validation and test images.

    Attributes:
        name: Name that it was loaded by.
        num_classes: Number of classes.
        class_names: Name of each class.
        image_size: Side of the images in a batch; a set that is stored smaller is enlarged per
            batch.
        mean: Mean per channel of pixels scaled to 0..1; batches are (pixel / 255 - mean) / std.
        std: Standard deviation per channel, likewise.
        train: Training images.
        val: Validation images.
        test: Test images.
        augment: Training augmentation, one of :data:`ghn_fast.vision.augment.POLICIES`.
    """

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    train: ImageSet
    val: ImageSet
    test: ImageSet
    augment: str

    def split(self, images: str) -> ImageSet:
        """The image set of a name: ``train``, ``val`` or ``test``.

        Raises:
            ValueError: If there is none of that name.
        """
        if images not in ("train", "val", "test"):
            raise ValueError(f"images must be one of train, val, test; got {images!r}")
        chosen: ImageSet = getattr(self, images)
        return chosen


def map_ahead(
    function: Callable[[Job], Result], batches: Iterable[Sequence[Job]], workers: int
) -> Iterator[list[Result]]:
    """Apply a function to every job of every batch, and keep the order.

    Args:
        function: Called with each job.
        batches: Batches of jobs, perhaps without end.
        workers: Threads that work on up to :data:`BATCHES_AHEAD` further batches while the caller
            uses the current one. With 0 everything happens in the calling thread, when it is asked
            for.
    """
    if workers == 0:
        for batch in batches:
            yield [function(job) for job in batch]
        return
    pool = ThreadPoolExecutor(workers)
    pending: deque[list[Future[Result]]] = deque()
    try:
        for batch in batches:
            pending.append([pool.submit(function, job) for job in batch])
            if len(pending) > BATCHES_AHEAD:
                yield [future.result() for future in pending.popleft()]
        while pending:
            yield [future.result() for future in pending.popleft()]
    finally:
        # Reached early when the caller stops iterating or an image cannot be decoded.
        pool.shutdown(wait=True, cancel_futures=True)


def decode_files(paths: Sequence[str], image_size: int, workers: int = 0) -> Tensor:
    """Decode N files into images (N, 3, image_size, image_size) uint8, resized and cropped."""
    result = np.empty((len(paths), 3, image_size, image_size), dtype=np.uint8)
    chunks = [range(start, min(start + 64, len(paths))) for start in range(0, len(paths), 64)]

    def fill(chunk: range) -> None:
        for i in chunk:
            result[i] = decode_evaluation(paths[i], image_size)

    for _ in map_ahead(fill, [chunks], workers):
        pass
    return torch.from_numpy(result)


def decode_evaluation(path: str, image_size: int) -> np.ndarray:
    """Decode one image as evaluation sees it, (3, image_size, image_size) uint8.

    The shorter side is resized to ``image_size`` (large images: to 256/224 of it, as is usual for
    ImageNet), then the centre is cropped.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be decoded; the message names it.
    """
    tvf = require("torchvision.transforms.functional", "vision", "image files")

    shorter = image_size if image_size <= SMALL_IMAGE else round(image_size * 256 / 224)
    image = _open_rgb(path)
    if image.size != (shorter, shorter):
        image = tvf.resize(image, [shorter])
    if image.size != (image_size, image_size):
        image = tvf.center_crop(image, [image_size])
    return _channels_first(image)


def decode_crop(path: str, image_size: int, draws: Tensor) -> np.ndarray:
    """Cut a random resized crop from the full file, before any resizing.

    Args:
        path: The file.
        image_size: Side of the crop after resizing, S.
        draws: Uniform numbers (attempts, 4) that fix the crop, see
            :func:`ghn_fast.vision.augment.crop_boxes`.

    Returns:
        The crop, (3, S, S) uint8.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be decoded; the message names it.
    """
    Image = require("PIL.Image", "vision", "image files")

    image = _open_rgb(path)
    width, height = image.size
    boxes = crop_boxes(draws[None], torch.tensor([height]), torch.tensor([width]))
    top, left, box_height, box_width = boxes[0].tolist()
    box = (left, top, left + box_width, top + box_height)
    image = image.resize((image_size, image_size), Image.Resampling.BILINEAR, box=box)
    return _channels_first(image)


def _open_rgb(path: str) -> Any:
    """An image with three channels of 8 bits; grey levels of 16 bits lose their lower half."""
    Image = require("PIL.Image", "vision", "image files")

    if os.path.exists(path) and not os.path.isfile(path):
        # Opening a pipe waits for somebody to write into it.
        raise ValueError(f"{path} is no regular file, needs an image")
    try:
        with Image.open(path) as image:
            shorter, longer = sorted(image.size)
            if longer > LONGEST * shorter:
                raise ValueError(
                    f"it has {image.width}×{image.height} pixels, needs at most {LONGEST} times as "
                    "many along one side as along the other"
                )
            # What PIL converts clips everything above 255 to white.
            if image.mode == "I" or image.mode.startswith("I;16"):
                if image.format == "TIFF" and image.mode == "I":
                    raise ValueError("its grey levels are integers of unknown range")
                levels = np.asarray(image)
                if levels.min(initial=0) < 0 or levels.max(initial=0) > 0xFFFF:
                    raise ValueError("its grey levels have more than 16 bits")
                return Image.fromarray((levels >> 8).astype(np.uint8)).convert("RGB")
            if image.mode == "F":
                raise ValueError("its pixels are floating-point numbers of unknown range")
            return image.convert("RGB")
    except FileNotFoundError:
        raise
    except Exception as error:
        # PIL raises OSError, SyntaxError, ValueError and types of its own.
        raise ValueError(f"cannot decode the image {path}: {error}") from error


def _channels_first(image: Any) -> np.ndarray:
    return np.array(image, dtype=np.uint8).transpose(2, 0, 1)
