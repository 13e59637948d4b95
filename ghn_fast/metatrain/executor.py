"""Runs the candidate networks of a meta-batch: forward, loss, backward.

Every network reads its parameters as views of one flat buffer and leaves their gradients in another
one of the same layout, which then goes through the hypernetwork's graph once. A network's
activations live while it runs, and no longer.

On a CPU networks run side by side, each on its share of the threads; most of their layers are too
small to keep several threads busy. On a GPU they are queued on several streams, or replayed as CUDA
graphs (:mod:`ghn_fast.metatrain.cuda_networks`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ghn_fast.metatrain.candidate_run import Job, Ranges, Work, attempt
from ghn_fast.metatrain.cuda_device import CudaDevice
from ghn_fast.metatrain.cuda_networks import CudaNetworks
from ghn_fast.vision.precision import AUTO, PRECISIONS, casts, choose, tensor_cores


class Outcome(NamedTuple):
    """Results of the networks of a meta-batch.

    Attributes:
        gradient: Gradients in the layout of the flat buffer; zeros for networks without a result.
        stats: Float tensor (n, 3) with status, loss and number of correct images of each, on the
            device.
        seconds: Wall-clock seconds of each network; ``None`` on a GPU, which is not done yet (see
            :meth:`Executor.late_seconds`).
        total: Wall-clock seconds that the call took.
    """

    gradient: Tensor
    stats: Tensor
    seconds: list[float] | None
    total: float


class Executor:
    """Runs candidate networks.

    Args:
        device: Where.
        precision: One of :data:`ghn_fast.vision.precision.PRECISIONS`.
        channels_last: Whether images and activations are stored with channels last.
        parallel: Networks at a time: threads on a CPU, streams on a GPU. By default one per CPU
            thread of torch, and four streams.
        cuda_graphs: On a GPU the number of CUDA graphs that are kept; 0 for none.
        cuda: The calls of a GPU, for tests without one.
        label_smoothing: Of the cross-entropy.
    """

    def __init__(
        self,
        device: str | torch.device = "cpu",
        *,
        precision: str = "float32",
        channels_last: bool = True,
        parallel: int | None = None,
        cuda_graphs: int = 0,
        cuda: CudaDevice | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        self.device = torch.device(device)
        self.precision = choose(self.device)[0] if precision == AUTO else precision
        self.channels_last = channels_last
        self.label_smoothing = label_smoothing
        if cuda is None and self.device.type == "cuda":
            cuda = CudaDevice(self.device)
        if cuda is not None:
            self.device = cuda.device
        self._threads = torch.get_num_threads()
        self.parallel = parallel or (self._threads if cuda is None else 4)
        self.on_gpu = None if cuda is None else CudaNetworks(cuda, self.parallel, cuda_graphs)
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
            memory, has a status other than OK, and zeros for its gradients. On a GPU the networks
            have been queued, and nothing has waited for them.
        """
        flat = flat.detach()
        gradient = torch.zeros_like(flat)
        if self.channels_last and images.ndim == 4:
            images = images.to(memory_format=torch.channels_last)
        if seeds is None:
            seeds = range(len(architectures))
        work = Work(
            images,
            targets,
            factor * loss_scale,
            self.precision,
            self.device,
            num_classes,
            self.label_smoothing,
        )
        # All weights are cast at once.
        cast = casts(self.precision, self.device) and flat.dtype == torch.float32
        narrow = flat.to(PRECISIONS[self.precision]) if cast else None
        jobs = [
            Job(index, architecture, places, flat, gradient, work, narrow)
            for index, (architecture, places) in enumerate(zip(architectures, ranges, strict=True))
        ]
        start = time.perf_counter()
        seconds: list[float] | None = None
        with tensor_cores(self.precision, self.device):
            if self.on_gpu is not None:
                stats = self.on_gpu.run(jobs, work, seeds)
            else:
                rows = self._run_threads(jobs, work, seeds, costs, num_networks or len(jobs))
                stats = torch.tensor([row[:3] for row in rows]).reshape(-1, 3)
                seconds = [row[3] for row in rows]
        total = time.perf_counter() - start
        if loss_scale != 1.0:
            gradient.div_(loss_scale)
        return Outcome(gradient, stats, seconds, total)

    def late_seconds(self) -> list[float] | None:
        """Seconds of each network of the latest :meth:`run` on a GPU; ``None`` without one.

        Waits until they are done, if they are not.
        """
        return None if self.on_gpu is None else self.on_gpu.seconds()

    def _run_threads(
        self,
        jobs: list[Job],
        work: Work,
        seeds: Sequence[int],
        costs: Sequence[float] | None,
        num_networks: int,
    ) -> list[tuple[float, float, float, float]]:
        side_by_side = min(self.parallel, num_networks)
        if side_by_side < 2 or any(job.network.generator is None for job in jobs):
            return [_run(job, work, seed) for job, seed in zip(jobs, seeds, strict=True)]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.parallel, "network")
        each = max(self._threads // side_by_side, 1)
        sizes = costs if costs is not None else [job.numel for job in jobs]
        # The largest first, so that no thread is left with it at the end.
        order = sorted(range(len(jobs)), key=lambda i: -sizes[i])
        # The back end that is chosen here holds in the threads, too.
        futures = {
            i: self._pool.submit(copy_context().run, _run, jobs[i], work, seeds[i], each)
            for i in order
        }
        try:
            return [futures[i].result() for i in range(len(jobs))]
        finally:
            # The latest number set anywhere is what threads to come begin with.
            torch.set_num_threads(self._threads)


def _run(
    job: Job, work: Work, seed: int, threads: int | None = None
) -> tuple[float, float, float, float]:
    """Run a network on the CPU: status, loss, correct images, seconds."""
    if threads is not None:
        # A property of the calling thread, as far as operations are concerned.
        torch.set_num_threads(threads)
    start = time.perf_counter()
    row = attempt(job, work, seed).tolist()
    return row[0], row[1], row[2], time.perf_counter() - start
