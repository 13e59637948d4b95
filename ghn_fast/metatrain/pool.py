"""A pool of architectures that slowly changes, so that architectures come again.

What is prepared for an architecture, its modules and above all its CUDA graph, pays off when the
architecture comes again. The pool is a window on an endless stream of architectures: at step k it
holds those from number k // refresh on, and the meta-batch is drawn from it at random. An
architecture stays for size * refresh steps and is drawn refresh * meta_batch times on average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

_PURPOSE = 17
_ATTEMPTS = 1000


def pooled_batches(
    stream: Callable[[int], Iterator[T]],
    *,
    size: int,
    refresh: int,
    meta_batch: int,
    seed: int,
    start_step: int = 0,
    accept: Callable[[list[T]], bool] | None = None,
) -> Iterator[list[T]]:
    """Meta-batches from a pool, without end; step k is a function of the arguments and k.

    Args:
        stream: Gives the architectures from a number on.
        size: Architectures in the pool.
        refresh: Steps after which the oldest architecture gives way to the next of the stream.
        meta_batch: Architectures per step, all different.
        seed: Of the draws.
        start_step: First step.
        accept: Says whether a meta-batch may be used; a rejected one is drawn again.

    Raises:
        ValueError: If an argument is not valid, or no meta-batch is accepted.
    """
    for name, value in (("refresh", refresh), ("meta_batch", meta_batch)):
        if value < 1:
            raise ValueError(f"{name}: got {value}, needs at least 1")
    if size < meta_batch:
        raise ValueError(f"size: got {size}, needs at least the meta-batch of {meta_batch}")
    if start_step < 0:
        raise ValueError(f"start_step: got {start_step}, needs at least 0")
    return _run(stream, size, refresh, meta_batch, seed, start_step, accept)


def _run(
    stream: Callable[[int], Iterator[T]],
    size: int,
    refresh: int,
    meta_batch: int,
    seed: int,
    step: int,
    accept: Callable[[list[T]], bool] | None,
) -> Iterator[list[T]]:
    first = step // refresh
    source = stream(first)
    pool = [next(source) for _ in range(size)]
    while True:
        while first < step // refresh:
            pool = [*pool[1:], next(source)]
            first += 1
        rng: Any = np.random.default_rng((seed, _PURPOSE, step))
        for _ in range(_ATTEMPTS):
            chosen = [pool[i] for i in rng.choice(size, size=meta_batch, replace=False)]
            if accept is None or accept(chosen):
                break
        else:
            raise ValueError(
                f"pool_size: no meta-batch of {meta_batch} from the pool of {size} fits; needs a "
                "larger max_nodes or a smaller meta_batch"
            )
        yield chosen
        step += 1
