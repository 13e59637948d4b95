"""CUDA graphs of candidate networks: captured when an architecture comes again, then replayed.

A network of DeepNets-1M is some hundreds of small kernels, which take longer to launch than to run.
A graph launches all of them at once, and the networks of a pool of architectures
(:mod:`ghn_fast.metatrain.pool`) come often enough to pay for capturing them.

Graphs are replayed in several lanes, side by side, because a network by itself leaves most of a GPU
idle. The graphs of a lane share a memory pool, and are replayed one after the other. That is safe
because nothing that a replay leaves behind lies in the pool: parameters, images, gradients and
statistics are in buffers that were allocated outside of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from ghn_fast.metatrain.cuda_device import CudaDevice
from ghn_fast.utils.cache import BoundedCache

T = TypeVar("T")

# Runs before a capture: library initialisation and autotuning are over after the first.
WARM_UP = 1


class EmptyGraphError(RuntimeError):
    """A capture that has recorded nothing."""


class GraphCache(Generic[T]):
    """Graphs by architecture, the most recently used ones.

    Args:
        capacity: Number of graphs that are kept, at least 1.

    Attributes:
        captured: Number of graphs that were made.
        refused: Number of captures that failed.
    """

    def __init__(self, capacity: int) -> None:
        self.captured = 0
        self.refused = 0
        self._graphs: BoundedCache[Hashable, T] = BoundedCache(capacity)
        # Also bounded: among a million architectures nearly none comes again.
        self._met: BoundedCache[Hashable, bool] = BoundedCache(16 * capacity)
        self._hopeless: BoundedCache[Hashable, bool] = BoundedCache(16 * capacity)

    def __len__(self) -> int:
        return len(self._graphs)

    @property
    def replayed(self) -> int:
        """Number of times that a graph was at hand since the last :meth:`clear`."""
        return self._graphs.hits

    def get(self, key: Hashable, capture: Callable[[], T]) -> T | None:
        """The graph of a key: ``None`` the first time, captured the second time, then kept.

        An architecture that comes only once is not worth capturing. One whose capture fails is not
        captured again; the first such failure is a warning.

        Raises:
            Exception: What ``capture`` raises, unless it is a RuntimeError.
            torch.OutOfMemoryError: If memory is too short for the graph. It may be captured later.
        """
        graph = self._graphs.get(key)
        if graph is not None:
            return graph
        if key in self._hopeless:
            return None
        if not self._met.get(key):
            self._met.keep(key, True)
            return None
        try:
            found = capture()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._hopeless.keep(key, True)
            if not self.refused:
                warnings.warn(
                    f"a candidate network cannot be captured as a CUDA graph, and runs without: "
                    f"{' '.join(str(error).split())[:300]}",
                    RuntimeWarning,
                    stacklevel=2,
                )
            self.refused += 1
            return None
        self.captured += 1
        return self._graphs.keep(key, found)

    def clear(self) -> None:
        """Forget all graphs, for other images or because memory is short."""
        self._graphs.clear()


class StaticBuffers:
    """Buffers at fixed addresses that graphs read.

    Args:
        images: Images of the shape and layout that the graphs are for.
        targets: Their classes.
    """

    def __init__(self, images: Tensor, targets: Tensor) -> None:
        self.images = images.clone(memory_format=torch.preserve_format)
        self.targets = targets.clone()
        # Factor on the loss, (): it changes without the graphs being captured anew.
        self.factor = torch.zeros((), device=images.device)
        self._factor: float | None = None

    def fits(self, images: Tensor, targets: Tensor) -> bool:
        """Whether graphs captured with these buffers are valid for such a batch."""
        return (
            images.shape == self.images.shape
            and images.stride() == self.images.stride()
            and images.dtype == self.images.dtype
            and targets.shape == self.targets.shape
        )

    def load(self, images: Tensor, targets: Tensor, factor: float) -> None:
        """Copy the images, classes and the factor of a step into the buffers."""
        self.images.copy_(images)
        self.targets.copy_(targets)
        if factor != self._factor:
            self.factor.fill_(factor)
            self._factor = factor


class Lane:
    """Where graphs are replayed one after the other: a stream, memory, and buffers of their own.

    Args:
        cuda: The GPU.

    Attributes:
        stream: The stream.
        graphs: How many graphs have been captured for it since it was renewed.
    """

    def __init__(self, cuda: CudaDevice) -> None:
        self.stream = cuda.stream()
        self._cuda = cuda
        self.renew()

    def renew(self) -> None:
        """Give up memory and buffers; graphs that are still replayed keep those that they have."""
        self.graphs = 0
        self._pool: Any = None
        self._keeper: Any = None
        self._part = torch.empty(0, device=self._cuda.device)
        self._gradient = self._part

    @property
    def pool(self) -> Any:
        """Memory pool of the lane's graphs; another one until a capture into it succeeds."""
        if self._keeper is None:
            self._pool = self._cuda.pool()
        return self._pool

    def took(self, replay: Callable[[], None]) -> None:
        """Count a graph that was captured into the pool.

        The first one stays until the lane is renewed: torch refuses to capture into a pool whose
        last graph is gone.
        """
        self.graphs += 1
        if self._keeper is None:
            self._keeper = replay

    def buffers(self, part: Tensor) -> tuple[Tensor, Tensor]:
        """Buffers of parameters and gradients, like ``part`` (n,).

        Graphs share them from their beginnings. When a larger network comes, new ones are made;
        earlier graphs keep those that they were captured with.
        """
        numel = part.numel()
        if numel > self._part.numel() or part.dtype != self._part.dtype:
            self._part = part.new_zeros(numel)
            self._gradient = torch.zeros_like(self._part)
        return self._part[:numel], self._gradient[:numel]


class _Captured(NamedTuple):
    """A graph and what it reads and writes."""

    replay: Callable[[], None]
    part: Tensor
    gradient: Tensor
    row: Tensor


class NetworkGraph:
    """Forward and backward pass of one network as a CUDA graph.

    Args:
        captured: The graph, and where it reads and writes.
        lane: Where it is replayed.
        generator: Source of the network's random numbers.
    """

    def __init__(self, captured: _Captured, lane: Lane, generator: torch.Generator) -> None:
        self.lane = lane
        self._captured = captured
        self._generator = generator

    @classmethod
    def capture(
        cls,
        step: Callable[[Tensor, Tensor], Tensor],
        part: Tensor,
        cuda: CudaDevice,
        lane: Lane,
        generator: torch.Generator,
    ) -> NetworkGraph:
        """Capture a network, on the lane's stream.

        Args:
            step: Runs the network on parameters (n,), leaves gradients in (n,), returns (3,), of
                which the first number is finite.
            part: Parameters to warm up with.
            cuda: The GPU.
            lane: Where it will be replayed.
            generator: Source of the network's random numbers.

        Raises:
            RuntimeError: If the network cannot be captured, or the graph turns out to be empty.
        """
        main = cuda.main()
        lane.stream.wait_stream(main)
        with cuda.on(lane.stream):
            buffer, gradient = lane.buffers(part)
            buffer.copy_(part)
            row = torch.zeros(3, device=part.device)
            for _ in range(WARM_UP):
                row.copy_(step(buffer, gradient))

        def body() -> None:
            # Parameters that the network does not use get no gradient.
            gradient.zero_()
            row.copy_(step(buffer, gradient))

        replay = cuda.record(body, lane.stream, lane.pool, generator)
        # A graph may be empty without an error, when its kernels went to another device or stream,
        # and would leave in place what it should write.
        with cuda.on(lane.stream):
            row.fill_(torch.nan)
            replay()
            empty = bool(row[0].isnan())
        main.wait_stream(lane.stream)
        if empty:
            raise EmptyGraphError("the captured CUDA graph does nothing when it is replayed")
        lane.took(replay)
        return cls(_Captured(replay, buffer, gradient, row), lane, generator)

    def replay(self, part: Tensor, gradient: Tensor, seed: int) -> Tensor:
        """Run the network on other parameters (n,); gradients go to ``gradient`` (n,).

        It is queued on the current stream, which is the lane's.

        Args:
            part: The parameters.
            gradient: Where the gradients go.
            seed: Of the network's random numbers.

        Returns:
            Status, loss and correct images (3,), valid until the next replay.
        """
        replay, own_part, own_gradient, row = self._captured
        own_part.copy_(part)
        self._generator.manual_seed(seed)
        replay()
        gradient.copy_(own_gradient)
        return row
