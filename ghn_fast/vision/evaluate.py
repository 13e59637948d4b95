"""Accuracy of networks on images, above all of networks whose parameters were predicted."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ghn_fast.hypernet.batch_statistics import use_batch_statistics
from ghn_fast.utils import distributed
from ghn_fast.utils.errors import one_line
from ghn_fast.utils.modes import evaluation_mode
from ghn_fast.vision.augment import seeded_generator
from ghn_fast.vision.batches import eval_batches
from ghn_fast.vision.images import ImageSplits
from ghn_fast.vision.noise import noisy_batches
from ghn_fast.vision.precision import AUTO, PRECISIONS, autocast, choose, tensor_cores
from ghn_fast.vision.results import ArchitectureResult, EvaluationReport
from ghn_fast.vision.running_statistics import collect_running_statistics
from ghn_fast.vision.running_statistics import statistics_batches as plain_batches

# Normalised batches up to this many bytes are made once and kept for all architectures.
KEPT_BATCHES = 512 * 2**20


@dataclass(frozen=True)
class Accuracy:
    """How many images a network classifies rightly.

    Attributes:
        top1: Percent of images whose class has the largest logit.
        top5: Percent of images whose class is among the five largest logits.
        loss: Mean cross-entropy (natural logarithm) over the images with finite outputs; NaN if
            there are none.
        images: Number of images.
        finite: Whether all outputs were finite. Images with other outputs count as wrong.
    """

    top1: float
    top5: float
    loss: float
    images: int
    finite: bool = True


class EvaluationItem(Protocol):
    """An architecture to evaluate: ``graph`` goes to the predictor, ``build`` makes the network."""

    @property
    def index(self) -> int: ...

    @property
    def name(self) -> str: ...

    @property
    def graph(self) -> Any: ...

    def build(self, *, num_classes: int, image_size: int) -> nn.Module: ...


def accuracy(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    device: str | torch.device | None = None,
) -> Accuracy:
    """Measure the accuracy of a network in evaluation mode.

    Among equal logits the lower class wins. With fewer than five classes every finite output is
    right in top-5. The training flag of every module is as before afterwards.

    Args:
        model: The network. It returns logits (B, classes), a tuple or list whose first entry they
            are, or a dict with an entry ``out`` (without one its first entry).
        batches: Pairs of images (B, 3, H, W) and targets (B,) int64.
        device: Where images are moved to; by default the device of the network's first parameter.
            The network is not moved.

    Raises:
        ValueError: If there are no images, targets are no classes, or logits have another shape or
            too few classes for the targets.
        TypeError: If the output holds no logits.
    """
    if device is None:
        first = next(itertools.chain(model.parameters(), model.buffers()), None)
        device = first.device if first is not None else None
    totals = torch.zeros(4, dtype=torch.float64)
    images = 0
    # Not in inference mode: what the network keeps of a forward pass has to serve training, too.
    with evaluation_mode(model), torch.no_grad():
        for inputs, targets in batches:
            _check_targets(targets)
            if device is not None:
                inputs, targets = inputs.to(device), targets.to(device)
            logits = _logits(model(inputs), targets)
            totals += _score(logits, targets)
            images += len(targets)
    if images == 0:
        raise ValueError("batches holds no images")
    top1, top5, loss, finite = totals.tolist()
    return Accuracy(
        top1=100 * top1 / images,
        top5=100 * top5 / images,
        loss=loss / finite if finite else math.nan,
        images=images,
        finite=finite == images,
    )


def _check_targets(targets: Tensor) -> None:
    if targets.ndim != 1 or targets.dtype != torch.int64:
        raise ValueError(
            "the targets must be classes of shape (B,) and type torch.int64, got "
            f"{tuple(targets.shape)} of {targets.dtype}"
        )
    if len(targets) and int(targets.min()) < 0:
        raise ValueError(f"the targets must be classes of at least 0, got {int(targets.min())}")


def _logits(output: Any, targets: Tensor) -> Tensor:
    if isinstance(output, Mapping):
        output = output["out"] if "out" in output else next(iter(output.values()), None)
    elif isinstance(output, (tuple, list)):
        output = output[0] if output else None
    if not isinstance(output, Tensor):
        raise TypeError(
            f"the model must return logits, or a tuple or dict of them; got {type(output).__name__}"
        )
    if output.ndim != 2 or len(output) != len(targets):
        raise ValueError(
            f"the model's logits must have shape ({len(targets)}, classes), got "
            f"{tuple(output.shape)}"
        )
    if len(targets) and int(targets.max()) >= output.shape[1]:
        raise ValueError(
            f"the model has {output.shape[1]} classes, but the targets go up to {targets.max()}"
        )
    return output.float()


def _score(logits: Tensor, targets: Tensor) -> Tensor:
    """Add up a batch: (4,) of right in top-1, right in top-5, loss, images with finite outputs."""
    finite = logits.isfinite().all(dim=1)
    chosen = logits.gather(1, targets[:, None])
    classes = torch.arange(logits.shape[1], device=logits.device)
    ahead = (logits > chosen) | ((logits == chosen) & (classes < targets[:, None]))
    rank = ahead.sum(dim=1)
    loss = F.cross_entropy(logits, targets, reduction="none")
    scores = [
        ((rank < 1) & finite).sum().float(),
        ((rank < 5) & finite).sum().float(),
        torch.where(finite, loss, 0.0).sum(),
        finite.sum().float(),
    ]
    return torch.stack(scores).cpu().double()


def evaluate_networks(
    items: Iterable[EvaluationItem],
    predict: Callable[[nn.Module, Any], None],
    splits: ImageSplits,
    *,
    batch_size: int = 64,
    images: str = "test",
    device: str | torch.device = "cpu",
    limit: int | None = None,
    baseline: bool = True,
    seed: int = 0,
    on_result: Callable[[ArchitectureResult], None] | None = None,
    workers: int = 0,
    statistics_batches: int = 0,
    noise: float = 0.0,
    on_network: Callable[[nn.Module, ArchitectureResult], None] | None = None,
    precision: str = "float32",
    known: Mapping[int, ArchitectureResult] | None = None,
) -> EvaluationReport:
    """Evaluate architectures with predicted parameters, and with random ones beside them.

    BatchNorm layers use batch statistics in both cases. On request the predicted network is
    evaluated a second time with running statistics of training images. An architecture that fails
    (out of memory, unsupported layer, ...) leaves its message in ``error`` of its record, and the
    next one follows.

    With several processes (see :mod:`ghn_fast.utils.distributed`) each evaluates every so many-th
    architecture, and all of them return the whole report.

    Args:
        items: The architectures.
        predict: Called as ``predict(model, item.graph)`` with the network on ``device``; fills its
            parameters in place.
        splits: The image data set.
        batch_size: Images per batch, see :func:`ghn_fast.vision.eval_batches`.
        images: ``test`` or ``val``, the images that are classified.
        device: Where the networks run.
        limit: Number of architectures at most, the first ones.
        baseline: Whether to evaluate the random initialisation first, which (seed, item.index)
            fixes.
        seed: Seed of the random initialisation, and of how images are grouped into batches.
        on_result: Called with the record of each architecture of this process when it is done.
        workers: Threads that decode images ahead, for data sets that are read from files.
        statistics_batches: Batches of ``batch_size`` training images, not augmented, whose
            statistics are averaged for the second evaluation, at most once through all images; 0
            for none. The published number is 200.
        noise: Standard deviation of noise on the pixels (0..1) of a further evaluation with batch
            statistics; 0 for none.
        on_network: Called with each network when its parameters are predicted.
        precision: What the networks compute in, one of
            :data:`ghn_fast.vision.precision.PRECISIONS`, or ``auto`` for what is fastest on the
            device. Parameters are predicted in float32.
        known: Records of an earlier call with the same arguments, by the index of their
            architecture (:class:`ghn_fast.vision.record_file.RecordFile`); of several processes,
            what one knows all know. They are taken over where the name is the same, too; networks
            are then predicted for ``on_network`` alone.

    Raises:
        ValueError: If ``images``, ``limit``, ``statistics_batches``, ``noise``, ``precision`` or
            ``batch_size`` is out of range, or the data set has no such images.
    """
    if images not in ("test", "val"):
        raise ValueError(f"images must be 'test' or 'val', got {images!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be None or 1 or more, got {limit}")
    for name, value in (("statistics_batches", statistics_batches), ("noise", noise)):
        if not value >= 0:
            raise ValueError(f"{name}: got {value}, needs a number of at least 0")
    if precision not in (AUTO, *PRECISIONS):
        raise ValueError(
            f"precision: got {precision!r}, needs one of {', '.join((AUTO, *PRECISIONS))}"
        )
    device = torch.device(device)
    if precision == AUTO:
        precision, _ = choose(device)
    image_bytes = 3 * splits.image_size**2 * 4
    image_set = splits.split(images)
    if not len(image_set):
        raise ValueError(f"dataset: {splits.name} has no {images} images to classify")
    if not len(splits.train):
        statistics_batches = 0
    batches = _Batches(
        lambda: eval_batches(
            image_set, splits, batch_size, device=device, shuffle_seed=seed, workers=workers
        ),
        len(image_set) * image_bytes,
    )
    training = None
    if statistics_batches:
        training = _Batches(
            lambda: plain_batches(
                splits, batch_size, statistics_batches, seed=seed, device=device, workers=workers
            ),
            min(len(splits.train), statistics_batches * batch_size) * image_bytes,
        )
    extra = _Extra(splits, seed, training, statistics_batches, noise, on_network, precision)
    shared: dict[int, ArchitectureResult] = {}
    for part in distributed.gather_objects(dict(known or {})):
        shared |= part
    done: list[tuple[int, ArchitectureResult]] = []
    for position, item, before in _share(items, limit, shared):
        record = before or ArchitectureResult(index=int(item.index), name=str(item.name))
        try:
            if before is None:
                _evaluate_item(
                    record, item, predict, splits, batches, device, baseline, seed, extra
                )
            elif on_network is not None:
                model = _build(item, splits, device, seed)
                predict(model, item.graph)
                use_batch_statistics(model)
                on_network(model, record)
        except Exception as error:
            record.error = one_line(error)
            if device.type == "cuda":
                torch.cuda.empty_cache()
        done.append((position, record))
        if on_result is not None:
            on_result(record)
    numbered = itertools.chain.from_iterable(distributed.gather_objects(done))
    records = [record for _, record in sorted(numbered, key=lambda pair: pair[0])]
    return EvaluationReport(
        dataset=splits.name,
        images=images,
        num_images=len(image_set),
        num_classes=splits.num_classes,
        image_size=splits.image_size,
        batch_size=batch_size,
        seed=seed,
        records=records,
        statistics_batches=statistics_batches,
        noise=noise,
        precision=precision,
    )


def _share(
    items: Iterable[EvaluationItem], limit: int | None, known: Mapping[int, ArchitectureResult]
) -> Iterator[tuple[int, EvaluationItem, ArchitectureResult | None]]:
    """This process's architectures: their place among all, and their record if it is known.

    What is missing is shared out in turn, whoever did the others: no process waits for another that
    has more to do.
    """
    rank, size = distributed.rank(), distributed.world_size()
    missing = 0
    for position, item in enumerate(itertools.islice(items, limit)):
        before = known.get(int(item.index))
        if before is None or before.name != str(item.name):
            before, owner = None, missing % size
            missing += 1
        else:
            owner = position % size
        if owner == rank:
            yield position, item, None if before is None else replace(before)


@dataclass(frozen=True)
class _Extra:
    """How networks run, and what is measured beside their accuracy with batch statistics."""

    splits: ImageSplits
    seed: int
    training: Iterable[tuple[Tensor, Tensor]] | None
    count: int
    noise: float
    on_network: Callable[[nn.Module, ArchitectureResult], None] | None
    precision: str

    @contextmanager
    def computing(self, device: torch.device) -> Iterator[None]:
        """Inside, networks compute in the precision that was asked for."""
        with tensor_cores(self.precision, device), autocast(self.precision, device):
            yield

    def accuracy(
        self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
    ) -> Accuracy:
        """Accuracy in the precision that was asked for."""
        with self.computing(device):
            return accuracy(model, batches, device=device)

    def measure(
        self,
        record: ArchitectureResult,
        model: nn.Module,
        batches: Iterable[tuple[Tensor, Tensor]],
        device: torch.device,
    ) -> None:
        if self.on_network is not None:
            self.on_network(model, record)
        if self.noise:
            noisy = noisy_batches(batches, self.splits, self.noise, self.seed)
            record.noisy_top1 = self.accuracy(model, noisy, device).top1
        if self.training is None:
            return
        record.running_top1, record.running_top5 = record.top1, record.top5
        # Without a BatchNorm layer the protocols are one.
        with self.computing(device):
            collected = collect_running_statistics(model, self.training, self.count, device=device)
        if collected:
            result = self.accuracy(model, batches, device)
            record.running_top1, record.running_top5 = result.top1, result.top5


class _Batches:
    """Batches for one iteration per architecture; they are kept if they are small.

    Args:
        start: Begins with the first batch; called now, so that wrong arguments are refused before
            any architecture is built.
        size: Bytes of all of them.
    """

    def __init__(self, start: Callable[[], Iterator[tuple[Tensor, Tensor]]], size: int) -> None:
        self._start = lambda: map(_channels_last, start())
        first = self._start()
        self._kept: Sequence[tuple[Tensor, Tensor]] | None = None
        if size <= KEPT_BATCHES:
            self._kept = list(first)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._start() if self._kept is None else iter(self._kept)


def _channels_last(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    images, targets = batch
    return images.contiguous(memory_format=torch.channels_last), targets


def _evaluate_item(
    record: ArchitectureResult,
    item: EvaluationItem,
    predict: Callable[[nn.Module, Any], None],
    splits: ImageSplits,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    baseline: bool,
    seed: int,
    extra: _Extra,
) -> None:
    """Fill a record step by step, so that it keeps what was known before an error."""
    model = _build(item, splits, device, seed)
    record.num_params = sum(parameter.numel() for parameter in model.parameters())
    use_batch_statistics(model)
    if baseline:
        result = extra.accuracy(model, batches, device)
        record.random_top1, record.random_top5 = result.top1, result.top5
        record.random_loss = result.loss

    start = _now(device)
    predict(model, item.graph)
    predicted = _now(device)
    # A predictor may have replaced modules or restored their running statistics.
    use_batch_statistics(model)
    result = extra.accuracy(model, batches, device)
    record.seconds_predict = predicted - start
    record.seconds_evaluate = _now(device) - predicted
    record.top1, record.top5, record.loss = result.top1, result.top5, result.loss
    record.finite = result.finite
    extra.measure(record, model, batches, device)


def _build(item: EvaluationItem, splits: ImageSplits, device: torch.device, seed: int) -> nn.Module:
    """The network with its random initialisation."""
    with torch.random.fork_rng(devices=[]):
        # Built on the CPU, so that the generators of accelerators need not be touched.
        initial = seeded_generator("initialise", seed, int(item.index)).initial_seed()
        torch.default_generator.manual_seed(initial)
        model = item.build(num_classes=splits.num_classes, image_size=splits.image_size)
    model.to(device)
    # Convolutions read and write images with channels last faster, on CPUs and on GPUs.
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
