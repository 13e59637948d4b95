"""Running statistics of BatchNorm layers, collected from images."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ghn_fast.hypernet.batch_statistics import track_running_statistics

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
