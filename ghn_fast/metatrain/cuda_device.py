"""What candidate networks ask of a GPU: streams, clocks, and work recorded to be replayed.

One class has all calls of ``torch.cuda`` that running networks takes. Tests put one in its place
that does the same on the CPU, so that all but these calls is tested without a GPU.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any

import torch


class CudaDevice:
    """A GPU.

    Args:
        device: Which one; ``cuda`` is the one that is current now.
    """

    def __init__(self, device: torch.device) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", index)

    def current(self) -> AbstractContextManager[Any]:
        """Context in which the GPU is torch's current one, as captures and launches need it."""
        return torch.cuda.device(self.device)

    def stream(self) -> Any:
        """A stream of its own."""
        return torch.cuda.Stream(self.device)

    def main(self) -> Any:
        """The stream that is current."""
        return torch.cuda.current_stream(self.device)

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        """Context whose work goes to a stream."""
        return torch.cuda.stream(stream)

    def clock(self) -> Any:
        """An event that has a time."""
        return torch.cuda.Event(enable_timing=True)

    def pool(self) -> Any:
        """A memory pool for recorded work that is replayed one after the other."""
        return torch.cuda.graph_pool_handle()

    def generator(self) -> torch.Generator:
        """A source of random numbers, which recorded work may draw from."""
        return torch.Generator(self.device)

    def record(
        self, body: Callable[[], None], stream: Any, pool: Any, generator: torch.Generator
    ) -> Callable[[], None]:
        """Record what ``body`` queues on the GPU, without running it.

        Args:
            body: Queues work, and does not wait for any.
            stream: Where it is recorded; it is on this GPU, whichever is current elsewhere.
            pool: Memory for what ``body`` allocates (:meth:`pool`).
            generator: What it draws random numbers from.

        Returns:
            A function that queues the work again, on the current stream.

        Raises:
            RuntimeError: If something in ``body`` cannot be recorded. The current stream is then
                what it was before.
        """
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(generator)
        # What torch.cuda.graph does, but for giving all free memory back to the driver first, which
        # would make every capture as slow as the first. A stream's context is left in any case;
        # torch.cuda.graph of 2.11 leaves its stream current where a capture fails at its end.
        collects = gc.isenabled()
        # Destroying what was captured before is not allowed in a capture.
        gc.disable()
        try:
            with torch.cuda.stream(stream):
                # Other threads may go on with what a capture forbids, such as pinning memory.
                graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                try:
                    body()
                except BaseException:
                    with suppress(RuntimeError):
                        graph.capture_end()
                    raise
                graph.capture_end()
        finally:
            if collects:
                gc.enable()
        return graph.replay

    def synchronize(self) -> None:
        """Wait until the GPU is done."""
        torch.cuda.synchronize(self.device)

    def empty_cache(self) -> None:
        """Give memory that is not in use back to the driver."""
        torch.cuda.empty_cache()
