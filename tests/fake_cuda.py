"""A GPU that is the CPU: what is recorded is run again by calling it again."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ghn_fast.metatrain.cuda_device import CudaDevice


class FakeStream:
    """A stream on which everything is done at once."""

    def wait_stream(self, other: FakeStream) -> None:
        pass


class FakeClock:
    """An event with the time at which it was recorded."""

    def record(self, stream: FakeStream) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: FakeClock) -> float:
        return 1e3 * (other.time - self.time)


class FakeCuda(CudaDevice):
    """The calls of a GPU, made on the CPU.

    Attributes:
        error: Raised by the next recordings, if it is set.
        empty: Whether recordings come out empty.
        recorded, replayed: How many.
    """

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.error: BaseException | None = None
        self.empty = False
        self.recorded = self.replayed = 0
        self._graphs: dict[object, weakref.WeakSet[Callable[[], None]]] = {}
        self._used: set[object] = set()

    def current(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def stream(self) -> FakeStream:
        return FakeStream()

    def main(self) -> FakeStream:
        return FakeStream()

    def on(self, stream: FakeStream) -> AbstractContextManager[Any]:
        return nullcontext()

    def clock(self) -> FakeClock:
        return FakeClock()

    def pool(self) -> object:
        return object()

    def record(
        self,
        body: Callable[[], None],
        stream: FakeStream,
        pool: object,
        generator: torch.Generator,
    ) -> Callable[[], None]:
        if self.error is not None:
            raise self.error
        # As torch's allocator: memory of graphs that are all gone takes no further one.
        live = self._graphs.setdefault(pool, weakref.WeakSet())
        if pool in self._used and not live:
            raise RuntimeError("use_count > 0")
        self._used.add(pool)
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            if not self.empty:
                body()

        live.add(replay)
        return replay

    def synchronize(self) -> None:
        pass

    def empty_cache(self) -> None:
        pass
