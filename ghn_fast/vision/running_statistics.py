"""Running statistics of BatchNorm layers, collected from images."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ghn_fast.hypernet.batch_statistics import track_running_statistics
from ghn_fast.vision.batches import train_batches
from ghn_fast.vision.images import ImageSplits

# How many batches of training images the published evaluation averages over.
STATISTICS_BATCHES = 200


def collect_running_statistics(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    count: int = STATISTICS_BATCHES,
    *,
    device: str | torch.device | None = None,
) -> list[str]:
    """Set every BatchNorm layer's running statistics to plain averages over batches of images.

    A hypernetwork predicts none. This is the protocol "training statistics"; the other one, "batch
    statistics", normalises by the batch that is evaluated. Weights do not change.

    Args:
        model: The network; layers without running statistics get them.
        batches: Pairs of images (B, 3, H, W) and targets, perhaps without end.
        count: Number of batches at most.
        device: Where images are moved to; by default the device of the first parameter.

    Returns:
        The names of the layers, in order; without any, no batch is read.

    Raises:
        ValueError: If ``count`` is below 1 or there is no batch.
    """
    if count < 1:
        raise ValueError(f"count: got {count}, needs at least 1 batch")
    track_running_statistics(model)
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, _BatchNorm)]
    if not layers:
        return []
    if device is None:
        device = next(itertools.chain(model.parameters(), model.buffers())).device
    flags = [(module, module.training) for module in model.modules()]
    momenta = [layer.momentum for _, layer in layers]
    model.eval()
    for _, layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    done = 0
    try:
        with torch.no_grad():
            for images, _ in itertools.islice(batches, count):
                model(images.to(device))
                done += 1
    finally:
        for module, training in flags:
            module.training = training
        for (_, layer), momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    if done == 0:
        raise ValueError("batches holds no images")
    return [name for name, _ in layers]


def statistics_batches(
    splits: ImageSplits,
    batch_size: int,
    count: int = STATISTICS_BATCHES,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of training images, not augmented, that "training statistics" are averages over.

    Args:
        splits: The image data set.
        batch_size: Images per batch, at most as many as there are.
        count: Number of batches, at most once through all images.
        seed: Seed of their order.
        device, workers: As for :func:`ghn_fast.vision.train_batches`.

    Raises:
        ValueError: If there are no training images, or an argument is out of range.
    """
    batch = min(batch_size, len(splits.train))
    plain = replace(splits, augment="none")
    endless = train_batches(plain, batch, seed=seed, device=device, workers=workers)
    return itertools.islice(endless, min(count, len(splits.train) // batch))
