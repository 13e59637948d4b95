"""The ops: message passing, expansion, distances, collation, decoding."""

from __future__ import annotations

from .base import Suite, of


@of("gated_gnn", "forward")
class GatedGNNForward(Suite):
    """Both sweeps."""


@of("gated_gnn", "backward")
class GatedGNNBackward(Suite):
    """The backward pass alone, of all inputs and weights."""


@of("expand_params", "forward")
class ExpandParamsForward(Suite):
    """Blocks into the flat buffer."""


@of("expand_params", "backward")
class ExpandParamsBackward(Suite):
    """The backward pass alone."""


@of("shortest_distances", "call")
class ShortestDistances(Suite):
    """Distances up to 50."""


@of("collate_edges", "call")
class CollateEdges(Suite):
    """The edges of a meta-batch in one table."""


@of("decode", "forward")
class DecodeForward(Suite):
    """Node embeddings into blocks."""


@of("decode", "backward")
class DecodeBackward(Suite):
    """The backward pass alone, of embeddings and weights."""
