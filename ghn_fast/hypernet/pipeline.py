"""From architecture graphs to blocks of parameters: the one way that all calls take.

    collate → encode → propagate → normalise → decode

What depends on the graphs alone is prepared first (:func:`prepare`); :func:`forward` does the
arithmetic, with the weights that the hypernetwork has then. Afterwards the plan expands what was
decoded: into a flat buffer for training, or straight into the parameters of a network
(:func:`predict`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ghn_fast.capturing.structure import Structure
from ghn_fast.graph.arch_graph import ArchGraph
from ghn_fast.graph.batch import GraphBatch
from ghn_fast.hypernet.bind import Binding, Destinations, bind, find_destinations
from ghn_fast.hypernet.config import GHNConfig
from ghn_fast.hypernet.decoders import DECODERS, Plan
from ghn_fast.hypernet.encode import NodeEncoder
from ghn_fast.hypernet.report import Clock, PredictionReport
from ghn_fast.hypernet.withheld import withhold
from ghn_fast.utils.cache import BoundedCache

# Twice as many as graphs are kept (capturing/cache.py), for two hypernetworks side by side.
_MOST_PREPARED = 128


class Hypernetwork(Protocol):
    """The parts of a hypernetwork, of which :class:`ghn_fast.GHN` is one."""

    config: GHNConfig
    encoder: NodeEncoder
    propagator: nn.Module
    norm: nn.Module
    blocks: Any
    vectors: Any

    @property
    def device(self) -> torch.device:
        """Device of the weights."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights."""


@dataclass
class Prepared:
    """What a forward pass needs of graphs, on the device of a hypernetwork.

    It depends on the configuration and the device of the hypernetwork, not on its weights.

    Attributes:
        batch: The graphs, collated.
        shapes: Rows of the shape embeddings of each node, long tensor (N, 4).
        plan: What is decoded, and where it goes.
        binding: Where predictions go in networks of the structure of the one graph; ``None`` until
            :meth:`destinations` has found it.
    """

    batch: GraphBatch
    shapes: Tensor
    plan: Plan
    binding: Binding | None = None

    def destinations(
        self, model: nn.Module, structure: Structure | None, frozen: str
    ) -> Destinations:
        """Where predictions go in a network that the one graph belongs to.

        Args:
            model: The network.
            structure: Its structure, if the graph was found by that.
            frozen: What is done with frozen parameters (:func:`withhold`).
        """
        return withhold(model, self._bound(model, structure), frozen)

    def _bound(self, model: nn.Module, structure: Structure | None) -> Destinations:
        """Where predictions go but for what is withheld, which does not follow from structure."""
        (graph,), (ranges,) = self.batch.graphs, self.plan.ranges
        if structure is not None and self.binding is not None:
            known = self.binding.destinations(graph, structure)
            if known is not None:
                return known
        found = find_destinations(model, graph, tuple(ranges))
        if structure is not None and self.binding is None:
            self.binding = Binding.of(model, structure, found)
        return found


_Key = tuple[tuple[ArchGraph, ...], GHNConfig, torch.device, bool]
# Keys are graphs by identity, which the values hold as well: nothing but the capacity bounds them.
_kept: BoundedCache[_Key, Prepared] = BoundedCache(_MOST_PREPARED)


def collate(ghn: Hypernetwork, graphs: Sequence[ArchGraph]) -> tuple[GraphBatch, Tensor]:
    """The graphs as a batch, and the rows of the shape embeddings (N, 4) of its nodes.

    Raises:
        TypeError, ValueError: As :class:`~ghn_fast.graph.batch.GraphBatch`.
    """
    batch = GraphBatch(graphs).to(ghn.device)
    rules = ghn.config.graph_rules
    for index, graph in enumerate(graphs):
        if graph.rules != rules:
            raise ValueError(
                f"graphs[{index}]: made by {graph.rules}, needs the rules of the hypernetwork, "
                f"{ghn.config.rules!r}: {rules}"
            )
    for needed in getattr(ghn.propagator, "needs", ()):
        getattr(batch, needed)
    shapes = ghn.encoder.shape_index_of(batch.graphs)
    return batch, shapes.to(ghn.device, non_blocking=True)


def prepare(
    ghn: Hypernetwork, graphs: Sequence[ArchGraph], *, head: bool = True, keep: bool = False
) -> Prepared:
    """Prepare graphs for a hypernetwork, or find them prepared.

    Args:
        ghn: The hypernetwork.
        graphs: At least one graph.
        head: Whether the classifier's own heads predict weight and bias at a graph's end.
        keep: Whether the graphs are known not to change, so that the result can be kept.

    Raises:
        TypeError, ValueError: As :func:`collate`.
    """
    key = (tuple(graphs), ghn.config, ghn.device, head)
    found = _kept.get(key) if keep else None
    if found is None:
        batch, shapes = collate(ghn, graphs)
        plan = DECODERS[ghn.config.decoder].plan(graphs, ghn.config, head=head)
        found = Prepared(batch, shapes, plan)
        if keep:
            found = _kept.keep(key, found)
    return found


def embed(
    ghn: Hypernetwork, batch: GraphBatch, shapes: Tensor, clock: Clock | None = None
) -> Tensor:
    """Node embeddings (N, C) after propagation, differentiable.

    Args:
        ghn: The hypernetwork.
        batch, shapes: What :func:`collate` made of the graphs.
        clock: Ends the stages ``encode`` and ``propagate``.
    """
    clock = clock or Clock()
    x = ghn.encoder(batch.op_types, shapes)
    clock.lap("encode")
    x = ghn.norm(ghn.propagator(x, batch))
    clock.lap("propagate")
    return x


def forward(ghn: Hypernetwork, prepared: Prepared, clock: Clock | None = None) -> Any:
    """What the plan expands to parameters, differentiable.

    Args:
        ghn: The hypernetwork.
        prepared: What :func:`prepare` made of the graphs for it.
        clock: Ends the stages ``encode``, ``propagate`` and ``decode``.
    """
    clock = clock or Clock()
    x = embed(ghn, prepared.batch, prepared.shapes, clock)
    decode = DECODERS[ghn.config.decoder].decode
    decoded = decode(x, prepared.plan, ghn.blocks, ghn.vectors)
    clock.lap("decode")
    return decoded


def predict(
    ghn: Hypernetwork,
    prepared: Prepared,
    destinations: Destinations,
    clock: Clock,
    *,
    batch_statistics: bool,
) -> PredictionReport:
    """Predict the parameters of one network and write them into it.

    Args:
        ghn: The hypernetwork.
        prepared: The network's graph, prepared.
        destinations: Where predictions go (:meth:`Prepared.destinations`).
        clock: Gets the seconds of all stages.
        batch_statistics: Whether BatchNorm layers are switched to batch statistics.
    """
    with torch.no_grad():
        decoded = forward(ghn, prepared, clock)
        return bind(decoded, prepared.plan, destinations, clock, batch_statistics=batch_statistics)
