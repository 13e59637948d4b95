"""Processes of one job: who they are, and the little that they tell each other.

``torchrun --nproc-per-node 4 -m ghn_fast train ...`` starts processes that find each other through
environment variables. Without torchrun everything here works for one process, at no cost.

    with distributed.job("cpu") as here:
        for index in range(here.rank, 1000, here.size):
            ...
        everything = distributed.interleave(distributed.gather_objects(results))
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

# Longer than the slowest thing that one process does while the others wait for it.
TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Place:
    """Where a process stands in its job.

    Attributes:
        rank: Its number among all processes.
        size: Number of processes.
        local_rank: Its number on its machine.
        restarts: How many times torchrun has restarted the job.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    restarts: int = 0


def launched() -> Place:
    """What the launcher said in the environment; one process if there is no launcher.

    Raises:
        ValueError: If the variables are no numbers that fit together.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT")
    values = []
    for name, default in zip(names, (0, 1, 0, 0), strict=True):
        text = os.environ.get(name, str(default))
        try:
            values.append(int(text))
        except ValueError:
            raise ValueError(f"{name}: got {text!r} in the environment, needs a number") from None
    place = Place(*values)
    if not 0 <= place.rank < place.size:
        raise ValueError(
            f"RANK: got {place.rank} in the environment, needs 0 to {place.size - 1} (WORLD_SIZE "
            f"is {place.size}); start the job with torchrun"
        )
    return place


@contextmanager
def job(device: str = "cpu") -> Iterator[Place]:
    """Join the job that torchrun started, and leave it at the end.

    Communication is NCCL for ``cuda`` and gloo for ``cpu``. A process group that exists already is
    used and left alone.

    Args:
        device: Type of device that the job computes on.
    """
    place = launched()
    if place.size == 1 or dist.is_initialized():
        yield place
        return
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.set_device(place.local_rank)
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=_fresh_store(place),
        rank=place.rank,
        world_size=place.size,
        timeout=TIMEOUT,
    )
    try:
        yield place
        # Nobody leaves while another one still needs it to communicate.
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _fresh_store(place: Place) -> dist.Store:
    """The job's key-value store, without what an attempt before a restart has left in it.

    torchrun may keep one store over restarts, and a process then finds the address of a dead one if
    it asks before the new one has written its own. On one machine all processes know the number of
    restarts. On several machines they do not (each agent counts those that it began), and the
    store is used as it is.
    """
    store = next(iter(dist.rendezvous("env://", place.rank, place.size, timeout=TIMEOUT)))[0]
    if os.environ.get("LOCAL_WORLD_SIZE") != str(place.size):
        return store
    return dist.PrefixStore(f"attempt-{place.restarts}", store)


def device_for(device: str) -> str:
    """The device of this process: under torchrun, ``cuda`` means the GPU of its local rank."""
    place = launched()
    if device == "cuda" and place.size > 1:
        return f"cuda:{place.local_rank}"
    return device


def rank() -> int:
    """Number of this process, 0 without a job."""
    return dist.get_rank() if _active() else 0


def world_size() -> int:
    """Number of processes, 1 without a job."""
    return dist.get_world_size() if _active() else 1


def is_main() -> bool:
    """Whether this process writes files and prints."""
    return rank() == 0


def barrier() -> None:
    """Wait until all processes are here."""
    if _active():
        dist.barrier()


def gather_objects(value: T) -> list[T]:
    """The values of all processes, by rank, in all processes; values are pickled."""
    if not _active():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def interleave(parts: Sequence[Sequence[T]]) -> list[T]:
    """Put in order what was shared out in turn: item k went to process k % :func:`world_size`.

    A process that stopped early has fewer; what it lacks is left out.
    """
    longest = max(map(len, parts))
    return [part[k] for k in range(longest) for part in parts if k < len(part)]


def broadcast_object(value: T) -> T:
    """The value of rank 0, in all processes; it is pickled."""
    if not _active():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def all_reduce(tensor: Tensor) -> None:
    """Add up a tensor over all processes, in place."""
    if _active():
        dist.all_reduce(tensor)


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()
