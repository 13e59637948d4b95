"""Runs the candidate networks of a meta-batch: forward, loss, backward.

Every network reads its parameters as views of one flat buffer and leaves their gradients in another
one of the same layout, which then goes through the hypernetwork's graph once. A network's
activations live while it runs, and no longer.

On a CPU networks run side by side, each on its share of the threads; most of their layers are too
small to keep several threads busy. On a GPU they are queued on several streams, or replayed as CUDA
graphs (:mod:`ghn_fast.metatrain.cuda_graphs`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ghn_fast.metatrain.candidates import Candidate, candidate
from ghn_fast.metatrain.cuda_graphs import GraphCache, NetworkGraph, StaticBuffers
from ghn_fast.metatrain.precision import autocast

# Per parameter (offset, shape) in the flat buffer, in the order of the buffer.
Ranges = dict[str, tuple[int, tuple[int, ...]]]


class Status(IntEnum):
    """What became of an architecture in a step."""

    OK = 0
    LOSS = 1
    GRADIENT = 2
    MEMORY = 3


REASONS = {
    Status.LOSS: "the loss is not finite",
    Status.GRADIENT: "a gradient is not finite",
    Status.MEMORY: "out of memory",
}


class Outcome(NamedTuple):
    """Results of the networks of a meta-batch, on the device.

    Attributes:
        gradient: Gradients in the layout of the flat buffer; zeros for networks without a result.
        stats: Float tensor (n, 4) with status, loss, number of correct images, and seconds of each.
        seconds: Wall-clock seconds that the networks took together.
    """

    gradient: Tensor
    stats: Tensor
    seconds: float


@dataclass
class _Job:
    """A network with views of its parameters and gradients."""

    index: int
    network: Candidate
    part: Tensor
    gradient: Tensor
    names: tuple[str, ...]
    shapes: list[tuple[int, ...]]
    offsets: list[int]
    leaves: list[Tensor]
    gradients: list[Tensor]


class Executor:
    """Runs candidate networks.

    Args:
        device: Where.
        precision: One of :data:`ghn_fast.metatrain.precision.PRECISIONS`.
        channels_last: Whether images and activations are stored with channels last.
        parallel: Networks at a time: threads on a CPU, streams on a GPU. By default one per CPU
            thread of torch, and four streams.
        cuda_graphs: On a GPU the number of CUDA graphs that are kept; 0 for none.
    """

    def __init__(
        self,
        device: str | torch.device = "cpu",
        *,
        precision: str = "float32",
        channels_last: bool = True,
        parallel: int | None = None,
        cuda_graphs: int = 0,
    ) -> None:
        self.device = torch.device(device)
        self.precision = precision
        self.channels_last = channels_last
        cuda = self.device.type == "cuda"
        self._threads = torch.get_num_threads()
        self.parallel = parallel or (4 if cuda else self._threads)
        self.cuda_graphs: GraphCache[NetworkGraph] | None = None
        self._static: StaticBuffers | None = None
        if cuda and cuda_graphs:
            self.cuda_graphs = GraphCache(cuda_graphs)
        self._streams = (
            [torch.cuda.Stream(self.device) for _ in range(self.parallel)] if cuda else []
        )
        self._pool: ThreadPoolExecutor | None = None

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def run(
        self,
        architectures: Sequence[Any],
        ranges: Sequence[Ranges],
        flat: Tensor,
        images: Tensor,
        targets: Tensor,
        *,
        num_classes: int,
        factor: float,
        loss_scale: float = 1.0,
        seeds: Sequence[int] | None = None,
        costs: Sequence[float] | None = None,
        num_networks: int | None = None,
    ) -> Outcome:
        """Gradients of ``factor`` times the cross-entropy of each network.

        Args:
            architectures: The n architectures.
            ranges: Per architecture where its parameters lie in the flat buffer, ascending;
                gaps between them are for alignment.
            flat: Flat buffer of parameters (P,).
            images: Images (B, 3, S, S).
            targets: Class of each image (B,).
            num_classes: Number of classes.
            factor: Weight of each network's loss.
            loss_scale: Further factor on the loss, which the gradients are divided by again.
            seeds: Seed of the random numbers of each network; its position by default.
            costs: About how long each network takes, in any unit; the largest ones start first.
            num_networks: Networks of the meta-batch on all processes, n by default. On a CPU a
                network gets that part of the threads, wherever it runs, because the last bit of its
                results depends on it.

        Returns:
            The outcome. A network whose loss or gradient is not finite, or that does not fit into
            memory, has a status other than OK, and zeros for its gradients.
        """
        flat = flat.detach()
        gradient = torch.zeros_like(flat)
        if self.channels_last:
            images = images.to(memory_format=torch.channels_last)
        size = images.shape[-1]
        if seeds is None:
            seeds = range(len(architectures))
        jobs = []
        for index, (architecture, places) in enumerate(zip(architectures, ranges, strict=True)):
            network = candidate(
                architecture, num_classes=num_classes, image_size=size, device=self.device
            )
            jobs.append(_prepare(index, network, places, flat, gradient))
        work = _Work(images, targets, factor * loss_scale, self.precision, self.device)
        start = time.perf_counter()
        if self.device.type == "cuda":
            stats = self._run_cuda(jobs, work, seeds)
        else:
            stats = self._run_threads(jobs, work, seeds, costs, num_networks or len(jobs))
        seconds = time.perf_counter() - start
        if loss_scale != 1.0:
            gradient.div_(loss_scale)
        return Outcome(gradient, stats, seconds)

    def _run_threads(
        self,
        jobs: list[_Job],
        work: _Work,
        seeds: Sequence[int],
        costs: Sequence[float] | None,
        num_networks: int,
    ) -> Tensor:
        side_by_side = min(self.parallel, num_networks)
        if side_by_side < 2 or any(job.network.generator is None for job in jobs):
            results = [_run(job, work, seed) for job, seed in zip(jobs, seeds, strict=True)]
            return torch.tensor(results, dtype=torch.float32).reshape(-1, 4)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.parallel, "network")
        each = max(self._threads // side_by_side, 1)
        sizes = costs if costs is not None else [job.part.numel() for job in jobs]
        # The largest first, so that no thread is left with it at the end.
        order = sorted(range(len(jobs)), key=lambda i: -sizes[i])
        futures = {i: self._pool.submit(_run, jobs[i], work, seeds[i], each) for i in order}
        try:
            results = [futures[i].result() for i in range(len(jobs))]
        finally:
            # The latest number set anywhere is what threads to come begin with.
            torch.set_num_threads(self._threads)
        return torch.tensor(results, dtype=torch.float32)

    def _run_cuda(self, jobs: list[_Job], work: _Work, seeds: Sequence[int]) -> Tensor:
        stats = torch.zeros(len(jobs), 4, device=self.device)
        clocks = []
        main = torch.cuda.current_stream(self.device)
        if self.cuda_graphs is not None:
            if self._static is None or not self._static.fits(*work[:3]):
                self.cuda_graphs.clear()
                self._static = StaticBuffers(*work[:3])
            self._static.load(work.images, work.targets)
        for position, (job, seed) in enumerate(zip(jobs, seeds, strict=True)):
            graph = self._graph(job, work)
            stream = main if graph is not None else self._streams[position % self.parallel]
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                clock = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
                clock[0].record(stream)
                if graph is not None:
                    row = graph.replay(job.part, job.gradient, seed)
                else:
                    row = _attempt(job, work, seed)
                stats[job.index, :3] = row
                clock[1].record(stream)
                clocks.append(clock)
        for stream in self._streams:
            main.wait_stream(stream)
        # The one place where the host waits for the device.
        torch.cuda.synchronize(self.device)
        times = [before.elapsed_time(after) / 1000 for before, after in clocks]
        stats[:, 3] = torch.tensor(times, device=self.device)
        return stats

    def _graph(self, job: _Job, work: _Work) -> NetworkGraph | None:
        """The graph of a network that has been seen before, captured if need be."""
        static = self._static
        key, generator = job.network.key, job.network.generator
        if self.cuda_graphs is None or static is None or key is None or generator is None:
            return None

        def capture() -> NetworkGraph:
            def step(part: Tensor, gradient: Tensor) -> Tensor:
                leaves = [v.requires_grad_() for v in views(part, job.shapes, job.offsets)]
                into = views(gradient, job.shapes, job.offsets)
                fixed = _Work(
                    static.images, static.targets, work.factor, self.precision, self.device
                )
                return _forward_backward(job.network, job.names, leaves, into, gradient, fixed)

            return NetworkGraph.capture(step, job.part, static, generator)

        try:
            return self.cuda_graphs.get((key, tuple(work.images.shape), job.names), capture)
        except torch.OutOfMemoryError:
            self.cuda_graphs.clear()
            torch.cuda.empty_cache()
            return None


class _Work(NamedTuple):
    """What all networks of a step have in common."""

    images: Tensor
    targets: Tensor
    factor: float
    precision: str
    device: torch.device


def _prepare(
    index: int, network: Candidate, places: Ranges, flat: Tensor, gradient: Tensor
) -> _Job:
    shapes = [shape for _, shape in places.values()]
    region = region_of(places)
    offsets = [offset - region.start for offset, _ in places.values()]
    part, into = flat[region], gradient[region]
    leaves = [view.requires_grad_() for view in views(part, shapes, offsets)]
    gradients = views(into, shapes, offsets)
    return _Job(index, network, part, into, tuple(places), shapes, offsets, leaves, gradients)


def region_of(places: Ranges) -> slice:
    """The part of the flat buffer that holds all parameters of a network."""
    if not places:
        return slice(0, 0)
    first = next(iter(places.values()))[0]
    offset, shape = next(reversed(places.values()))
    return slice(first, offset + math.prod(shape))


def _run(
    job: _Job, work: _Work, seed: int, threads: int | None = None
) -> tuple[float, float, float, float]:
    """Run a network on the CPU: status, loss, correct images, seconds."""
    if threads is not None:
        # A property of the calling thread, as far as operations are concerned.
        torch.set_num_threads(threads)
    start = time.perf_counter()
    row = _attempt(job, work, seed).tolist()
    return row[0], row[1], row[2], time.perf_counter() - start


def _attempt(job: _Job, work: _Work, seed: int) -> Tensor:
    if job.network.generator is not None:
        job.network.generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
    try:
        return _forward_backward(
            job.network, job.names, job.leaves, job.gradients, job.gradient, work
        )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Outside of the handler, whose traceback holds the activations.
    if work.device.type == "cuda":
        torch.cuda.empty_cache()
    job.gradient.zero_()
    return torch.tensor([float(Status.MEMORY), math.nan, 0.0], device=work.device)


def _forward_backward(
    network: Candidate,
    names: Sequence[str],
    leaves: list[Tensor],
    gradients: list[Tensor],
    region: Tensor,
    work: _Work,
) -> Tensor:
    """Gradients into ``gradients``, views of ``region``; status, loss and correct images (3,).

    Nothing in here waits for the device.
    """
    with autocast(work.precision, work.device):
        logits = network(dict(zip(names, leaves, strict=True)), work.images)
    logits = logits.float()
    loss = F.cross_entropy(logits, work.targets)
    found = torch.autograd.grad(loss, leaves, torch.full_like(loss, work.factor), allow_unused=True)
    with torch.no_grad():
        pairs = [
            (into, have) for into, have in zip(gradients, found, strict=True) if have is not None
        ]
        torch._foreach_copy_([into for into, _ in pairs], [have for _, have in pairs])
        loss = loss.detach()
        status = torch.where(loss.isfinite(), 0.0, float(Status.LOSS))
        if region.numel():
            extremes = torch.stack(region.aminmax())
            good = extremes.isfinite().all()
            status = torch.where((status == 0) & ~good, float(Status.GRADIENT), status)
            region.masked_fill_(status != 0, 0.0)
        correct = (logits.argmax(1) == work.targets).sum()
        return torch.stack((status, loss, correct.float()))


def views(flat: Tensor, shapes: Sequence[tuple[int, ...]], offsets: Sequence[int]) -> list[Tensor]:
    """Views of pieces of a contiguous tensor (n,), without gradient history.

    Args:
        flat: The tensor.
        shapes: Shape of each piece.
        offsets: Where each piece begins.
    """
    first = flat.storage_offset()
    with torch.no_grad():
        return [
            flat.as_strided(shape, _strides(shape), first + offset)
            for shape, offset in zip(shapes, offsets, strict=True)
        ]


@lru_cache(maxsize=4096)
def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a contiguous tensor."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


# What the allocators of torch, the C++ library, oneDNN and CUDA's libraries say.
_OUT_OF_MEMORY = (
    *("can't allocate", "not enough memory", "bad_alloc", "out of memory"),
    *("could not create a primitive", "could not create a memory", "could not execute a primitive"),
    *("CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory did not suffice, on a GPU or a CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(words in str(error) for words in _OUT_OF_MEMORY)
