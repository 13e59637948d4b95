"""Batches of images for training and evaluation."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ghn_fast.vision.augment import augment_batch, draw_crops, seeded_generator
from ghn_fast.vision.images import ImageSet, ImageSplits, decode_crop, decode_evaluation, map_ahead


def train_batches(
    splits: ImageSplits,
    batch_size: int,
    *,
    seed: int,
    start_step: int = 0,
    device: str | torch.device = "cpu",
    workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over augmented training batches without end.

    Order and augmentation of step k depend on (seed, k) alone, so that an iterator that begins at
    ``start_step`` gives the batches that an uninterrupted one gives from there on. Each epoch of
    ``len(splits.train) // batch_size`` steps is a fresh permutation; images left over at its end
    are not used.

    Args:
        splits: The image data set.
        batch_size: Images per batch, B.
        seed: Seed of order and augmentation.
        start_step: The step of the first batch.
        device: Where the batches are. A set in memory is moved there once and augmented there.
        workers: Threads that decode ahead, for a set that is read from files.

    Returns:
        Pairs of normalised, contiguous images (B, 3, S, S) float32 and targets (B,) int64.

    Raises:
        ValueError: If ``batch_size`` is not between 1 and the number of training images, or
            ``start_step`` or ``workers`` is negative.
    """
    images = splits.train
    _check_batching(batch_size, workers)
    if not len(images):
        raise ValueError(f"{splits.name} has no training images; choose another data set to train")
    if batch_size > len(images):
        raise ValueError(
            f"batch_size {batch_size} exceeds the number of training images of {splits.name}, "
            f"{len(images)}; choose a batch_size of at most {len(images)}"
        )
    if start_step < 0:
        raise ValueError(f"start_step must be 0 or more, got {start_step}")
    return _train_batches(splits, batch_size, seed, start_step, torch.device(device), workers)


def _train_batches(
    splits: ImageSplits,
    batch_size: int,
    seed: int,
    start_step: int,
    device: torch.device,
    workers: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    images = splits.train
    normalise = _normaliser(splits, device)
    steps = _training_order(len(images), batch_size, seed, start_step)
    if images.images is not None:
        stored = images.images.to(device)
        targets = images.targets.to(device)
        for step, chosen in steps:
            chosen = chosen.to(device)
            generator = seeded_generator("augment", seed, step)
            batch = augment_batch(stored[chosen], splits.augment, generator)
            yield normalise(batch), targets[chosen]
        return
    if splits.augment == "resized_crop_flip":
        yield from _train_crops(splits, steps, seed, device, workers)
        return
    for (step, chosen), batch in _decoded(images, steps, workers):
        generator = seeded_generator("augment", seed, step)
        batch = augment_batch(batch.to(device), splits.augment, generator)
        yield normalise(batch), images.targets[chosen].to(device)


def _training_order(
    count: int, batch_size: int, seed: int, start_step: int
) -> Iterator[tuple[int, Tensor]]:
    """Yield pairs (step, indices of its images), without end."""
    steps_per_epoch = count // batch_size
    epoch, position = divmod(start_step, steps_per_epoch)
    step = start_step
    while True:
        order = torch.randperm(count, generator=seeded_generator("order", seed, epoch))
        for i in range(position, steps_per_epoch):
            yield step, order[i * batch_size : (i + 1) * batch_size]
            step += 1
        epoch, position = epoch + 1, 0


def _train_crops(
    splits: ImageSplits,
    steps: Iterator[tuple[int, Tensor]],
    seed: int,
    device: torch.device,
    workers: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut random resized crops from the files themselves, at their full resolution."""
    images = splits.train
    assert images.paths is not None  # only sets read from files come here
    paths, size = images.paths, images.image_size
    normalise = _normaliser(splits, device)
    started: list[tuple[Tensor, Tensor]] = []

    def jobs() -> Iterator[list[tuple[str, Tensor]]]:
        for step, chosen in steps:
            draws, mirrored = draw_crops(len(chosen), seeded_generator("augment", seed, step))
            started.append((chosen, mirrored))
            yield [(paths[i], draw) for i, draw in zip(chosen.tolist(), draws, strict=True)]

    def decode(job: tuple[str, Tensor]) -> Tensor:
        return torch.from_numpy(decode_crop(job[0], size, job[1]))

    for decoded in map_ahead(decode, jobs(), workers):
        chosen, mirrored = started.pop(0)
        batch = torch.stack(decoded).to(device)
        batch = torch.where(mirrored.to(device)[:, None, None, None], batch.flip(3), batch)
        yield normalise(batch), images.targets[chosen].to(device)


def eval_batches(
    image_set: ImageSet,
    splits: ImageSplits,
    batch_size: int,
    *,
    device: str | torch.device = "cpu",
    shuffle_seed: int | None = 0,
    workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate once over every image of a set.

    Networks with predicted parameters normalise by the statistics of the batch (see
    :mod:`ghn_fast.hypernet.batch_statistics`), which only makes sense if a batch mixes classes;
    stored images are often sorted by class. So the images come in an order that ``shuffle_seed``
    fixes. For the same reason a single image left over at the end joins the batch before it, which
    then has ``batch_size + 1`` images; batches of one image stay as they are.

    Args:
        image_set: The images.
        splits: The data set that gives normalisation and image size.
        batch_size: Images per batch, B.
        device: Where the batches are.
        shuffle_seed: Seed of the order, which is the same on every call; ``None`` keeps the stored
            order.
        workers: Threads that decode ahead, for a set that is read from files.

    Returns:
        Pairs of normalised images (B, 3, S, S) float32 and targets (B,) int64.

    Raises:
        ValueError: If ``batch_size`` is below 1 or ``workers`` is negative.
    """
    _check_batching(batch_size, workers)
    return _eval_batches(image_set, splits, batch_size, torch.device(device), shuffle_seed, workers)


def _eval_batches(
    image_set: ImageSet,
    splits: ImageSplits,
    batch_size: int,
    device: torch.device,
    shuffle_seed: int | None,
    workers: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    normalise = _normaliser(splits, device)
    count = len(image_set)
    if shuffle_seed is None:
        order = torch.arange(count)
    else:
        order = torch.randperm(count, generator=seeded_generator("evaluate", shuffle_seed))
    chunks = list(order.split(batch_size)) if count else []
    if batch_size > 1 and len(chunks) > 1 and len(chunks[-1]) == 1:
        chunks[-2:] = [torch.cat(chunks[-2:])]
    for (_, chosen), batch in _decoded(image_set, iter(enumerate(chunks)), workers):
        yield normalise(batch.to(device)), image_set.targets[chosen].to(device)


def _decoded(
    image_set: ImageSet, steps: Iterator[tuple[int, Tensor]], workers: int
) -> Iterator[tuple[tuple[int, Tensor], Tensor]]:
    """Yield (step, indices) and images (B, 3, H, W) uint8, as stored or as evaluation sees them."""
    if image_set.paths is None:
        for step in steps:
            yield step, image_set.pixels(step[1])
        return
    paths = image_set.paths
    started: list[tuple[int, Tensor]] = []

    def jobs() -> Iterator[list[str]]:
        for step in steps:
            started.append(step)
            yield [paths[i] for i in step[1].tolist()]

    def decode(path: str) -> Tensor:
        return torch.from_numpy(decode_evaluation(path, image_set.image_size))

    for decoded in map_ahead(decode, jobs(), workers):
        yield started.pop(0), torch.stack(decoded)


def _normaliser(splits: ImageSplits, device: torch.device) -> functools.partial[Tensor]:
    mean = torch.tensor(splits.mean, dtype=torch.float32, device=device).view(1, 3, 1, 1)
    std = torch.tensor(splits.std, dtype=torch.float32, device=device).view(1, 3, 1, 1)
    return functools.partial(_normalise, mean=mean, std=std, image_size=splits.image_size)


def _normalise(images: Tensor, *, mean: Tensor, std: Tensor, image_size: int) -> Tensor:
    """Turn pixels 0..255 into normalised float32 of the given size, contiguous (B, 3, S, S)."""
    scaled = images.to(torch.float32, memory_format=torch.contiguous_format) / 255
    if images.shape[-1] != image_size:
        scaled = F.interpolate(
            scaled, size=(image_size, image_size), mode="bilinear", antialias=True
        )
    return scaled.sub_(mean).div_(std).contiguous()


def _check_batching(batch_size: int, workers: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    if workers < 0:
        raise ValueError(f"workers must be 0 or more, got {workers}")
