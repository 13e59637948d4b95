"""CUDA graphs of candidate networks: captured when an architecture comes again, then replayed.

A network of DeepNets-1M is some hundreds of small kernels, which take longer to launch than to run.
A graph launches all of them at once, and the networks of a pool of architectures
(:mod:`ghn_fast.metatrain.pool`) come often enough to pay for capturing them.

All graphs share one memory pool, and are replayed one after the other. That is safe because nothing
that a replay leaves behind lies in the pool: parameters, images, gradients and statistics are in
buffers that were allocated outside of it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ghn_fast.utils.cache import BoundedCache

T = TypeVar("T")

# Runs before capture, which library initialisation and autotuning need.
WARM_UP = 3


class GraphCache(Generic[T]):
    """Graphs by architecture, the most recently used ones.

    Args:
        capacity: Number of graphs that are kept, at least 1.

    Attributes:
        captured: Number of graphs that were made.
    """

    def __init__(self, capacity: int) -> None:
        self.captured = 0
        self._graphs: BoundedCache[Hashable, T] = BoundedCache(capacity)
        # Also bounded: among a million architectures nearly none comes again.
        self._met: BoundedCache[Hashable, bool] = BoundedCache(16 * capacity)

    def __len__(self) -> int:
        return len(self._graphs)

    @property
    def replayed(self) -> int:
        """Number of times that a graph was at hand since the last :meth:`clear`."""
        return self._graphs.hits

    def get(self, key: Hashable, capture: Callable[[], T]) -> T | None:
        """The graph of a key: ``None`` the first time, captured the second time, then kept.

        An architecture that comes only once is not worth capturing.
        """
        graph = self._graphs.get(key)
        if graph is not None:
            return graph
        if not self._met.get(key):
            self._met.keep(key, True)
            return None
        self.captured += 1
        return self._graphs.keep(key, capture())

    def clear(self) -> None:
        """Forget all graphs, for other images or because memory is short."""
        self._graphs.clear()


class StaticBuffers:
    """Buffers at fixed addresses that graphs read and write.

    Args:
        images: Images of the shape and layout that the graphs are for.
        targets: Their classes.
        factor: Factor on the loss, which is fixed at capture.
    """

    def __init__(self, images: Tensor, targets: Tensor, factor: float) -> None:
        self.images = images.clone(memory_format=torch.preserve_format)
        self.targets = targets.clone()
        self.factor = factor
        self.pool = torch.cuda.graph_pool_handle() if images.is_cuda else None
        self._params = images.new_empty(0, dtype=torch.float32)
        self._gradient = self._params

    def fits(self, images: Tensor, targets: Tensor, factor: float) -> bool:
        """Whether graphs captured with these buffers are valid for such a batch."""
        return (
            images.shape == self.images.shape
            and images.stride() == self.images.stride()
            and targets.shape == self.targets.shape
            and factor == self.factor
        )

    def load(self, images: Tensor, targets: Tensor) -> None:
        """Copy the images and classes of a step into the buffers."""
        self.images.copy_(images)
        self.targets.copy_(targets)

    def parameters(self, numel: int) -> tuple[Tensor, Tensor]:
        """Buffers (numel,) of parameters and gradients.

        Graphs share them from their beginnings. When a larger network comes, new ones are made;
        earlier graphs keep those that they were captured with.
        """
        if numel > self._params.numel():
            self._params = self._params.new_zeros(numel)
            self._gradient = torch.zeros_like(self._params)
        return self._params[:numel], self._gradient[:numel]


class NetworkGraph:
    """Forward and backward pass of one network as a CUDA graph.

    Args:
        graph: The graph.
        part: Parameters that it reads (n,).
        gradient: Gradients that it writes (n,).
        row: Status, loss and correct images that it writes (3,).
        generator: Source of the network's random numbers.
    """

    def __init__(
        self,
        graph: torch.cuda.CUDAGraph,
        part: Tensor,
        gradient: Tensor,
        row: Tensor,
        generator: torch.Generator,
    ) -> None:
        self._graph = graph
        self._generator = generator
        self._part = part
        self._gradient = gradient
        self._row = row

    @classmethod
    def capture(
        cls,
        step: Callable[[Tensor, Tensor], Tensor],
        part: Tensor,
        static: StaticBuffers,
        generator: torch.Generator,
    ) -> NetworkGraph:
        """Capture a network.

        Args:
            step: Runs the network on parameters (n,), leaves gradients in (n,), returns (3,).
            part: Parameters to warm up with.
            static: Buffers with the images.
            generator: Source of the network's random numbers.
        """
        buffer, gradient = static.parameters(part.numel())
        buffer.copy_(part)
        row = torch.zeros(3, device=part.device)
        side = torch.cuda.Stream(part.device)
        side.wait_stream(torch.cuda.current_stream(part.device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                row.copy_(step(buffer, gradient))
        torch.cuda.current_stream(part.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(generator)
        with torch.cuda.graph(graph, pool=static.pool):
            # Parameters that the network does not use get no gradient.
            gradient.zero_()
            row.copy_(step(buffer, gradient))
        return cls(graph, buffer, gradient, row, generator)

    def replay(self, part: Tensor, gradient: Tensor, seed: int) -> Tensor:
        """Run the network on other parameters (n,); gradients go to ``gradient`` (n,).

        Args:
            part: The parameters.
            gradient: Where the gradients go.
            seed: Of the network's random numbers.

        Returns:
            Status, loss and correct images (3,), valid until the next replay.
        """
        self._part.copy_(part)
        self._generator.manual_seed(seed)
        self._graph.replay()
        gradient.copy_(self._gradient)
        return self._row
