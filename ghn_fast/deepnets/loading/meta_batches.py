"""Meta-batches for training: which architectures, how wide, in which order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from ghn_fast.deepnets.architectures.genotype import NetworkConfig
from ghn_fast.deepnets.architectures.spec import LARGE_IMAGE
from ghn_fast.deepnets.loading.items import ArchItem
from ghn_fast.deepnets.loading.splits import ArchSequence

MAX_NODES: Final = 2200
"""Largest number of nodes of a meta-batch, as published."""

# Steps of the two widths, and sets of the widths that larger networks draw from.
_CHANNEL_STEP = 16
_FC_STEP = 64
_SMALL_FC = 4
# Parameters and cells above which a network gets the least width, and numbers of widths that large
# and middling ones draw from.
_AS_FOR_GHN2, _WIDER = (800_000, 12, 2, 3), (2_000_000, 14, 4, 5)
# Draws that replace a meta-batch with too many nodes before giving up.
_ATTEMPTS = 1000
# How many meta-batches each worker is ahead.
_AHEAD = 2

_ORDER, _REPLACEMENT, _WIDTHS = range(3)


def meta_batches(
    nets: ArchSequence,
    meta_batch: int,
    *,
    seed: int,
    start_step: int = 0,
    image_size: int = 32,
    max_nodes: int = MAX_NODES,
    num_classes: int = 10,
    num_ch: tuple[int, int] = (32, 128),
    wider: bool = False,
    workers: int = 0,
) -> Iterator[list[ArchItem]]:
    """Meta-batches of architectures with sampled widths, without end.

    Step ``k`` is a pure function of ``(seed, k)``: a run that goes on with ``start_step=k`` sees
    what one that never stopped would see. The architectures are passed through in random order,
    each once per epoch; the last meta-batch of an epoch may be smaller. As published, a meta-batch
    with more than ``max_nodes`` nodes is left out. So that the step alone determines the
    meta-batch, its place is not taken by the next one but by as many architectures drawn at random,
    repeatedly until they fit: the distribution of the meta-batches is the same, that of graphs
    within the limit.

    With ``workers``, threads of that number prepare the coming meta-batches, graphs included, while
    the caller is busy with the last one. (Threads and not processes: the compiled back end derives
    graphs without holding the interpreter's lock, and nothing has to be copied between processes.)
    What comes does not depend on their number. They are meant for graphs that take milliseconds,
    read from a file in the published layout or derived without the compiled library.

    Args:
        nets: The architectures.
        meta_batch: Number of architectures per step.
        seed: Seed of the order and of the widths.
        start_step: First step.
        image_size: Height and width of the images that the networks are for.
        max_nodes: Largest number of nodes of a meta-batch.
        num_classes: Number of classes that the networks are for.
        num_ch: Least and largest number of channels, see :func:`sample_width`.
        wider: Whether large networks draw from more widths, likewise.
        workers: Number of threads that prepare meta-batches ahead; 0 makes each when it is asked
            for, and its graphs when they are.

    Returns:
        Lists of items whose ``config`` has the sampled widths; their ``graph`` and ``build()`` are
        for ``num_classes`` and ``image_size``. Closing the iterator ends the workers.

    Raises:
        ValueError: If an argument is not valid, or (almost) no meta-batch fits into ``max_nodes``.
    """
    arguments = {"meta_batch": (meta_batch, 1), "max_nodes": (max_nodes, 1)}
    arguments |= {"image_size": (image_size, 1), "num_classes": (num_classes, 1)}
    arguments |= {"seed": (seed, 0), "start_step": (start_step, 0)}
    arguments |= {"workers": (workers, 0)}
    for name, (value, least) in arguments.items():
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: got {value!r}, needs an integer of at least {least}")
    if len(nets) == 0:
        raise ValueError("nets: got no architectures, needs at least one")
    _check_limit(nets, min(meta_batch, len(nets)), max_nodes)
    batches = _MetaBatches(
        nets, meta_batch, seed, max_nodes, image_size, num_classes, num_ch, wider
    )
    if workers:
        return batches.run_ahead(start_step, workers)
    return batches.run(start_step)


def sample_width(
    config: NetworkConfig,
    num_params: int,
    rng: np.random.Generator,
    num_ch: tuple[int, int] = (32, 128),
    fc_dim: tuple[int, int] = (64, 512),
    wider: bool = False,
) -> NetworkConfig:
    """Draw the widths of a network for training, as published.

    ``C`` is one of ``num_ch[0], num_ch[0] + 16, ..., num_ch[1]``, ``fc_dim`` one of ``fc_dim[0],
    fc_dim[0] + 64, ..., fc_dim[1]``, the first four of them for most networks. The larger the
    network, the fewer values of ``C``: only the first one with more than 800,000 parameters or 12
    cells, with 5x5 or 7x7 convolutions, or without global average pooling; the first two with more
    than 400,000 parameters or 10 cells; the first three with more than 200,000 parameters or 8
    cells. All others draw from all values, and where that gives at most 64 channels, also
    ``fc_dim``.

    ``wider`` are the widths that GHN-3 was trained with on ImageNet (arXiv 2303.04143): the first
    limits are 2,000,000 parameters and 14 cells, and below them it is the first four and five
    values instead of two and three. Sizes count at the resolution of CIFAR-10 then.

    Args:
        config: The network.
        num_params: Its number of parameters at 32 channels; see :attr:`ArchItem.base_params`.
        rng: Source of the random choices.
        num_ch: Least and largest ``C``.
        fc_dim: Least and largest ``fc_dim``.
        wider: See above.

    Raises:
        ValueError: If a range is empty or not positive.
    """
    for name, (least, largest) in (("num_ch", num_ch), ("fc_dim", fc_dim)):
        if not 0 < least <= largest:
            raise ValueError(f"{name}: got {(least, largest)}, needs 0 < least <= largest")
    channels = range(num_ch[0], num_ch[1] + 1, _CHANNEL_STEP)
    dims = range(fc_dim[0], fc_dim[1] + 1, _FC_STEP)
    dense = not {"conv_5x5", "conv_7x7"}.isdisjoint(config.genotype.primitives())
    width = _draw(rng, dims[:_SMALL_FC])
    most_params, most_cells, large, middle = _WIDER if wider else _AS_FOR_GHN2
    if num_params > most_params or not config.glob_avg or dense or config.n_cells > most_cells:
        count = channels[0]
    elif num_params > 400_000 or config.n_cells > 10:
        count = _draw(rng, channels[:large])
    elif num_params > 200_000 or config.n_cells > 8:
        count = _draw(rng, channels[:middle])
    else:
        count = _draw(rng, channels)
        if count <= 64:
            width = _draw(rng, dims)
    return replace(config, C=count, fc_dim=width)


class _MetaBatches:
    def __init__(
        self,
        nets: ArchSequence,
        meta_batch: int,
        seed: int,
        max_nodes: int,
        image_size: int,
        num_classes: int,
        num_ch: tuple[int, int],
        wider: bool,
    ) -> None:
        self._nets = nets
        self._meta_batch = meta_batch
        self._seed = seed
        self._max_nodes = max_nodes
        self._num_ch, self._wider = num_ch, wider
        self._settings = {"image_size": image_size, "num_classes": num_classes}
        self._size = "imagenet" if image_size >= LARGE_IMAGE and not wider else "cifar10"
        # The order of the last two epochs: workers are ahead in the next one.
        self._orders: dict[int, npt.NDArray[np.intp]] = {}
        self._lock = threading.Lock()

    def run(self, step: int) -> Iterator[list[ArchItem]]:
        while True:
            yield self.step(step)
            step += 1

    def run_ahead(self, step: int, workers: int) -> Iterator[list[ArchItem]]:
        pending: deque[Future[list[ArchItem]]] = deque()
        pool = ThreadPoolExecutor(workers, "meta-batches")
        try:
            while True:
                while len(pending) < _AHEAD * workers:
                    # The back end that is chosen here holds in the worker, too.
                    run = copy_context().run
                    pending.append(pool.submit(run, self._with_graphs, step + len(pending)))
                yield pending.popleft().result()
                step += 1
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _with_graphs(self, step: int) -> list[ArchItem]:
        batch = self.step(step)
        for item in batch:
            _ = item.graph  # which keeps it
        return batch

    def step(self, step: int) -> list[ArchItem]:
        """The meta-batch of a step."""
        items = self._fitting(self._indices(step))
        if items is None:
            items = self._replacement(step, len(self._indices(step)))
        rng = self._rng(_WIDTHS, step)
        result = []
        for item in items:
            if item.config is None:
                raise ValueError(f"nets: {item.name} is not made of cells, so it has no widths")
            params = item.base_params[self._size]
            config = sample_width(item.config, params, rng, self._num_ch, wider=self._wider)
            result.append(item.with_config(config, **self._settings))
        return result

    def _indices(self, step: int) -> list[int]:
        """Indices of the meta-batch of a step, as they come in the order of its epoch."""
        per_epoch = -(-len(self._nets) // self._meta_batch)
        epoch, batch = divmod(step, per_epoch)
        start = batch * self._meta_batch
        return self._order(epoch)[start : start + self._meta_batch].tolist()

    def _order(self, epoch: int) -> npt.NDArray[np.intp]:
        with self._lock:
            if epoch not in self._orders:
                bits = np.random.PCG64(np.random.SeedSequence((self._seed, _ORDER, epoch)))
                order = np.argsort(bits.random_raw(len(self._nets)), kind="stable")
                kept = {e: o for e, o in self._orders.items() if e >= epoch - 1}
                self._orders = {**kept, epoch: order}
            return self._orders[epoch]

    def _fitting(self, indices: list[int]) -> list[ArchItem] | None:
        """The architectures, ``None`` if they have too many nodes."""
        total, items = 0, []
        for index in indices:
            known = self._nets.num_nodes(index)
            if known is None:
                items.append(self._nets[index])
                known = items[-1].num_nodes
            total += known
            if total > self._max_nodes:
                return None
        return items or [self._nets[index] for index in indices]

    def _replacement(self, step: int, count: int) -> list[ArchItem]:
        rng = self._rng(_REPLACEMENT, step)
        for _ in range(_ATTEMPTS):
            items = self._fitting(_distinct(rng, len(self._nets), count))
            if items is not None:
                return items
        raise ValueError(
            f"max_nodes: got {self._max_nodes}, but none of {_ATTEMPTS} random meta-batches of "
            f"{count} architectures fits; needs a larger max_nodes or a smaller meta_batch"
        )

    def _rng(self, purpose: int, step: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, purpose, step))


def _check_limit(nets: ArchSequence, count: int, max_nodes: int) -> None:
    """Refuse a limit that not even the smallest architectures meet, if their sizes are known."""
    sizes = nets.all_nodes()
    if sizes is None:
        return
    least = int(np.partition(sizes, count - 1)[:count].sum(dtype=np.int64))
    if least > max_nodes:
        raise ValueError(
            f"max_nodes: got {max_nodes}, but the {count} smallest architectures together have "
            f"{least} nodes; needs a larger max_nodes or a smaller meta_batch"
        )


def _distinct(rng: np.random.Generator, bound: int, count: int) -> list[int]:
    return rng.choice(bound, size=count, replace=False).tolist()


def _draw(rng: np.random.Generator, values: range) -> int:
    return values[int(rng.integers(len(values)))]
