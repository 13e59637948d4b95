"""Running statistics of BatchNorm layers, collected from images."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ghn_fast.hypernet.batch_statistics import HOOK_KEY, track_running_statistics
from ghn_fast.utils.modes import evaluation_mode
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
    statistics", normalises by the batch that is evaluated. Weights do not change, and after an
    error nothing has.

    Args:
        model: The network; layers without running statistics get them, and keep their momentum.
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
    layers = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    if not layers:
        return []
    before = [_Before(layer) for layer in layers.values()]
    try:
        track_running_statistics(model)
        if device is None:
            device = next(itertools.chain(model.parameters(), model.buffers())).device
        _average(model, list(layers.values()), itertools.islice(batches, count), device)
    except BaseException:
        for layer in before:
            layer.restore()
        raise
    finally:
        for layer in before:
            layer.restore_momentum()
    return list(layers)


def _average(
    model: nn.Module,
    layers: Sequence[_BatchNorm],
    batches: Iterable[tuple[Tensor, Tensor]],
    device: str | torch.device,
) -> None:
    done = 0
    with evaluation_mode(model), torch.no_grad(), ExitStack() as hooks:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
            if layer.running_mean.dtype.itemsize < 4:  # type: ignore[union-attr]
                hooks.enter_context(_WideAverage(layer))
        for images, _ in batches:
            model(images.to(device))
            done += 1
    if done == 0:
        raise ValueError("batches holds no images")


class _WideAverage:
    """A context that averages the statistics of a layer in half precision in double precision.

    Torch takes the average in the type of the layer, in which a step of a 200th is lost.
    """

    def __init__(self, layer: _BatchNorm) -> None:
        self._layer = layer
        self._sums: list[Tensor] = []
        self._passes = 0

    def __enter__(self) -> None:
        self._layer.momentum = 1.0  # the statistics of each pass as they are
        self._hook = self._layer.register_forward_hook(self._add)

    def __exit__(self, *error: object) -> None:
        self._hook.remove()
        if self._passes:
            for kept, total in zip(self._statistics(), self._sums, strict=True):
                kept.copy_(total / self._passes)

    def _statistics(self) -> list[Tensor]:
        mean, variance = self._layer.running_mean, self._layer.running_var
        assert mean is not None and variance is not None  # the layer tracks them
        return [mean, variance]

    def _add(self, *call: object) -> None:
        self._passes += 1
        now = [kept.double() for kept in self._statistics()]
        self._sums = [a + b for a, b in zip(self._sums, now, strict=True)] if self._sums else now


class _Before:
    """What a layer normalises by before statistics are collected."""

    def __init__(self, layer: _BatchNorm) -> None:
        self._layer = layer
        self._momentum = layer.momentum
        self._tracks = layer.track_running_stats
        self._kept = {
            name: None if buffer is None else buffer.clone()
            for name, buffer in layer._buffers.items()
        }
        self._hooks = [
            (hooks, hooks[HOOK_KEY])  # type: ignore[index]
            for hooks in (layer._state_dict_hooks, layer._load_state_dict_pre_hooks)
            if HOOK_KEY in hooks
        ]

    def restore(self) -> None:
        """Let the layer normalise by that again."""
        self._layer.track_running_stats = self._tracks
        for name, kept in self._kept.items():
            buffer = self._layer._buffers[name]
            if buffer is not None and kept is not None:
                buffer.copy_(kept)
            else:
                self._layer._buffers[name] = kept
        for hooks, hook in self._hooks:
            hooks[HOOK_KEY] = hook  # type: ignore[index]

    def restore_momentum(self) -> None:
        """Let the layer have its own momentum again."""
        self._layer.momentum = self._momentum


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
