"""Generate files of DeepNets-1M, with any number of processes."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from multiprocessing import get_context
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from ghn_fast.deepnets.files.formats import choose_format
from ghn_fast.deepnets.files.hdf5 import Record
from ghn_fast.deepnets.files.packed import Chunk
from ghn_fast.deepnets.files.writing import hdf5_record, make_chunk, new_files
from ghn_fast.deepnets.sampling.held_out import left_out
from ghn_fast.deepnets.sampling.sampler import sample_config
from ghn_fast.deepnets.sampling.splits import check_split

# Architectures per task: a tenth of a second of work, some hundred kilobytes of result. A packed
# file gets a few at a time.
_TASK = {"hdf5": 64, "packed": 1024}
_CHUNK = 64


class _Job(NamedTuple):
    split: str
    seed: int
    exclude: Collection[str]
    format: str


def generate(
    split: str,
    count: int,
    out: str | os.PathLike[str],
    *,
    workers: int = 1,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    exclude: Collection[str] | None = None,
    overwrite: bool = False,
    format: str = "auto",
) -> Path:
    """Sample the first architectures of a split and write them into files.

    The files depend on ``split``, ``count``, ``seed`` and ``exclude`` alone, not on ``workers``.

    On SIGINT (Ctrl-C) and SIGTERM the architectures finished so far are kept, as valid files with
    fewer of them; then KeyboardInterrupt is raised, or SystemExit with status 143.

    Args:
        split: Name of the split.
        count: Number of architectures.
        out: Folder for the files.
        workers: Number of processes. Above 1, new ones are started, which import the caller's main
            module: guard its body with ``if __name__ == "__main__":``.
        seed: Seed of the data set; see :func:`ghn_fast.deepnets.sample_config`.
        progress: Called with the number of finished architectures, after each one, in the packed
            format after every 64.
        exclude: Keys of architectures that must not come up. If not set, ``train`` is made without
            :func:`ghn_fast.deepnets.held_out_keys`, and nothing is left out of other splits.
        overwrite: Whether to replace existing files of the split, in either format.
        format: The format: ``packed`` (:mod:`ghn_fast.deepnets.files.packed`), ``hdf5`` (the
            published one, :mod:`ghn_fast.deepnets.files.hdf5`), or ``auto``: packed for ``train``
            and ``search``.

    Returns:
        Path of the packed file or of the HDF5 file.

    Raises:
        ValueError: If ``split`` or ``format`` is unknown, ``count`` or ``workers`` is below 1, or
            ``seed`` is negative.
        FileExistsError: If there are files of the split and ``overwrite`` is false.
        RuntimeError: If a process dies; the architectures finished before are kept.
    """
    check_split(split)
    for name, value, least in (("count", count, 1), ("workers", workers, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: got {value!r}, needs an integer of at least {least}")
    job = _Job(split, seed, left_out(split, exclude), choose_format(format, split))
    with _Interrupts() as interrupts, new_files(out, split, job.format, seed, overwrite) as writer:
        alone = workers == 1
        parts = _make(job, 0, count) if alone else _parallel(job, count, workers, interrupts)
        try:
            with closing(parts):
                for part in parts:
                    writer.add(part)
                    if progress is not None:
                        progress(len(writer))
                    interrupts.check()
        except BrokenProcessPool as error:
            # A signal to all processes ends the others first.
            interrupts.check()
            kept = len(writer)
            writer.close()
            raise RuntimeError(
                f"workers: a process died, perhaps for want of memory; {kept} of {count} "
                f"architectures are kept in {writer.data_path.parent}"
            ) from error
    return writer.data_path


def make_record(
    split: str, index: int, seed: int, exclude: Collection[str] = frozenset()
) -> Record:
    """Sample an architecture and derive what HDF5 files hold of it."""
    return hdf5_record(sample_config(split, index, seed, exclude=exclude))


def _make(job: _Job, start: int, stop: int) -> Generator[Record | Chunk, None, None]:
    split, seed, exclude, format = job
    if format == "hdf5":
        for index in range(start, stop):
            yield make_record(split, index, seed, exclude)
        return
    for first in range(start, stop, _CHUNK):
        indices = range(first, min(first + _CHUNK, stop))
        yield make_chunk([sample_config(split, i, seed, exclude=exclude) for i in indices])


def _task(job: _Job, start: int, stop: int) -> list[Record | Chunk]:
    return list(_make(job, start, stop))


def _parallel(
    job: _Job, count: int, workers: int, interrupts: _Interrupts
) -> Generator[Record | Chunk, None, None]:
    """Parts in the order of their indices; a few tasks per process are under way at a time."""
    # Tasks no larger than an even share, so that small counts occupy all processes.
    size = max(1, min(_TASK[job.format], count // workers))
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker)
    pending: deque[Future[list[Record | Chunk]]] = deque()
    start = 0
    try:
        while pending or start < count:
            while start < count and len(pending) < 3 * workers:
                stop = min(start + size, count)
                with _without_interrupts():
                    future = pool.submit(_task, job, start, stop)
                pending.append(future)
                start = stop
            yield from _wait(pending[0], interrupts)
            pending.popleft()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _wait(future: Future[list[Record | Chunk]], interrupts: _Interrupts) -> list[Record | Chunk]:
    while True:
        try:
            return future.result(timeout=0.1)
        except TimeoutError:
            interrupts.check()


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Hold SIGINT back; processes that are started meanwhile never see one.

    Ctrl-C reaches all processes of a terminal, and only the first one should act on it.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(1)


class _Interrupts:
    """Turns SIGINT and SIGTERM into exceptions at chosen places, instead of anywhere.

    Signals belong to the main thread; in any other one nothing changes.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._previous: dict[int, object] = {}

    def check(self) -> None:
        """Raise KeyboardInterrupt or SystemExit if a signal came since the last call."""
        received, self._received = self._received, None
        if received == signal.SIGINT:
            raise KeyboardInterrupt
        if received is not None:
            raise SystemExit(128 + received)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._received = number

    def __enter__(self) -> _Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
