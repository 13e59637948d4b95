"""Graphs of networks that were captured before, found by structure."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, NamedTuple

from torch import nn

from ghn_fast.capturing.capture import capture
from ghn_fast.capturing.input_types import ExampleInputs, InputShape
from ghn_fast.capturing.structure import Structure, structure_of
from ghn_fast.graph.arch_graph import ArchGraph
from ghn_fast.graph.rules import GraphRules

_MOST_GRAPHS = 64


class CacheInfo(NamedTuple):
    """What the cache of graphs has done since it was cleared.

    Attributes:
        hits: Captures that were spared.
        misses: Captures of networks that were not there.
        without_key: Captures of networks whose structure has no key (see
            :mod:`ghn_fast.capturing.structure`).
        size: Graphs that are kept now.
    """

    hits: int
    misses: int
    without_key: int
    size: int


class _Cache:
    """The graphs used last, at most ``_MOST_GRAPHS``; safe to use from several threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        with self.lock:
            self.graphs: OrderedDict[tuple[Any, ...], ArchGraph] = OrderedDict()
            self.hits = self.misses = self.without_key = 0

    def find(self, key: tuple[Any, ...] | None) -> ArchGraph | None:
        with self.lock:
            if key is None:
                self.without_key += 1
                return None
            graph = self.graphs.get(key)
            if graph is None:
                self.misses += 1
            else:
                self.hits += 1
                self.graphs.move_to_end(key)
            return graph

    def keep(self, key: tuple[Any, ...], graph: ArchGraph) -> ArchGraph:
        with self.lock:
            # Another thread may have been faster; everyone gets the same graph.
            graph = self.graphs.setdefault(key, graph)
            self.graphs.move_to_end(key)
            while len(self.graphs) > _MOST_GRAPHS:
                self.graphs.popitem(last=False)
            return graph


_cache = _Cache()


def cached_capture(
    model: nn.Module,
    input_shape: InputShape | None,
    virtual_edges: int,
    *,
    example_inputs: ExampleInputs | None = None,
    rules: GraphRules = GraphRules.GHN2,
) -> tuple[ArchGraph, Structure | None]:
    """As :func:`ghn_fast.capture`, but a structure that was captured before is not again.

    Args:
        model: The network.
        input_shape, virtual_edges, example_inputs, rules: As in :func:`ghn_fast.capture`.

    Returns:
        The graph, which is shared with other callers and must not be changed, and the structure
        that it was found by, if there is one. A graph belongs to one structure alone.

    Raises:
        As :func:`ghn_fast.capture`; failures are not kept.
    """
    structure = None
    if isinstance(model, nn.Module):
        structure = structure_of(model, (input_shape, example_inputs, virtual_edges, rules))
    graph = _cache.find(None if structure is None else structure.key)
    if graph is None:
        graph = capture(
            model, input_shape, virtual_edges, example_inputs=example_inputs, rules=rules
        )
        if structure is not None:
            graph = _cache.keep(structure.key, graph)
    return graph, structure


def clear_cache() -> None:
    """Forget all graphs that were captured for predictions."""
    _cache.clear()


def cache_info() -> CacheInfo:
    """Hits, misses and size of the cache of graphs."""
    with _cache.lock:
        return CacheInfo(_cache.hits, _cache.misses, _cache.without_key, len(_cache.graphs))
