"""Candidate networks on a GPU: replayed as CUDA graphs, or queued on several streams.

Nothing in here waits for the GPU, but for captures: an architecture's first and second run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ghn_fast.metatrain.candidate_run import Job, Work, attempt, forward_backward
from ghn_fast.metatrain.cuda_device import CudaDevice
from ghn_fast.metatrain.cuda_graphs import GraphCache, Lane, NetworkGraph, StaticBuffers


class CudaNetworks:
    """Runs candidate networks on a GPU.

    Args:
        cuda: The GPU.
        lanes: Streams on which networks run side by side.
        graphs: Number of CUDA graphs that are kept; 0 for none.

    Attributes:
        graphs: The CUDA graphs, ``None`` if none are kept.
    """

    def __init__(self, cuda: CudaDevice, lanes: int, graphs: int) -> None:
        self.cuda = cuda
        self.graphs: GraphCache[NetworkGraph] | None = GraphCache(graphs) if graphs else None
        self._lanes = [Lane(cuda) for _ in range(lanes)]
        self._static: StaticBuffers | None = None
        self._clocks: list[tuple[Any, Any]] = []

    def run(self, jobs: Sequence[Job], work: Work, seeds: Sequence[int]) -> Tensor:
        """Queue all networks.

        Returns:
            Status, loss and correct images of each (n, 3), on the device.
        """
        with self.cuda.current():
            return self._run(jobs, work, seeds)

    def forget(self) -> None:
        """Give up all graphs with their memory."""
        if self.graphs is not None:
            self.graphs.clear()
        for lane in self._lanes:
            lane.renew()

    def seconds(self) -> list[float]:
        """Seconds that each network of the latest :meth:`run` took on its lane.

        Only for when they are done, as after a number that depends on them has been read: asking
        earlier waits for them.
        """
        if self._clocks:
            for _, after in self._clocks:
                after.synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in self._clocks]

    def _run(self, jobs: Sequence[Job], work: Work, seeds: Sequence[int]) -> Tensor:
        rows = torch.zeros(len(jobs), 3, device=work.device)
        main = self.cuda.main()
        static = self._load(work)
        if static is not None:
            # Captures are over before the first replay: a replay may use any lane.
            found = [self._graph(job, work, static) for job in jobs]
        else:
            found = [None] * len(jobs)
        self._clocks = []
        for lane in self._lanes:
            lane.stream.wait_stream(main)
        for position, (job, seed, graph) in enumerate(zip(jobs, seeds, found, strict=True)):
            lane = graph.lane if graph is not None else self._lanes[position % len(self._lanes)]
            with self.cuda.on(lane.stream):
                clocks = self.cuda.clock(), self.cuda.clock()
                clocks[0].record(lane.stream)
                if graph is not None:
                    row = graph.replay(job.part, job.gradient, seed)
                else:
                    row = attempt(job, work, seed)
                rows[job.index].copy_(row)
                clocks[1].record(lane.stream)
                self._clocks.append(clocks)
        for lane in self._lanes:
            main.wait_stream(lane.stream)
        return rows

    def _load(self, work: Work) -> StaticBuffers | None:
        """The batch where graphs read it; graphs for other batches are forgotten."""
        if self.graphs is None:
            return None
        if self._static is None or not self._static.fits(work.images, work.targets):
            self.forget()
            self._static = StaticBuffers(work.images, work.targets)
        assert isinstance(work.factor, float)
        self._static.load(work.images, work.targets, work.factor)
        return self._static

    def _graph(self, job: Job, work: Work, static: StaticBuffers) -> NetworkGraph | None:
        """The graph of a network that has been seen before, captured if need be."""
        if self.graphs is None or job.key is None:
            return None
        fixed = work._replace(images=static.images, targets=static.targets, factor=static.factor)

        def step(part: Tensor, gradient: Tensor) -> Tensor:
            return forward_backward(
                job.network, job.leaves(part), job.gradients(gradient), gradient, fixed
            )

        def capture() -> NetworkGraph:
            generator = job.network.generator
            assert generator is not None
            # The lane with the fewest graphs.
            lane = min(self._lanes, key=lambda lane: lane.graphs)
            return NetworkGraph.capture(step, job.part, self.cuda, lane, generator)

        names = tuple(job.places)
        try:
            return self.graphs.get((job.key, names, job.numel, work.precision), capture)
        except torch.OutOfMemoryError:
            self.forget()
            self.cuda.empty_cache()
            return None
