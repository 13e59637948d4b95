"""Graphs of DeepNets-1M as GHN-3 was trained on them (arXiv 2303.04143).

The published files hold some edges that the networks do not have, and list nodes in another order
than edges (:mod:`ghn_fast.deepnets.files.node_table`). The loader of GHN-3 mends what it can see of
that in the graph as it was read; hypernetworks of that kind expect graphs that went through it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ghn_fast.deepnets.architectures.genotype import NetworkConfig
from ghn_fast.graph.arch_graph import ArchGraph
from ghn_fast.graph.node_types import NODE_TYPE_INDEX
from ghn_fast.graph.rules import GraphRules
from ghn_fast.ops.shortest_distances import shortest_distances

_JOINS = tuple(NODE_TYPE_INDEX[name] for name in ("concat", "sum", "cse"))
# Last nodes of the two parts of the stem for large images, with and without normalisation.
_STEMS = {True: (4, 6), False: (2, 3)}


def by_rules(graph: ArchGraph, config: NetworkConfig | None, rules: GraphRules) -> ArchGraph:
    """The graph of an architecture by other rules than those of GHN-2.

    Args:
        graph: The graph, by the rules of GHN-2.
        config: The architecture; ``None`` for a network that is not made of cells.
        rules: The rules.
    """
    if rules == graph.rules:
        return graph
    if rules.cells == "corrected" and config is not None:
        graph = corrected(graph, config)
    return graph.with_rules(rules)


def corrected(graph: ArchGraph, config: NetworkConfig) -> ArchGraph:
    """Mend the edges of a graph that was read from a file, in two steps.

    1. In networks with the stem for large images and without attention: if the last successor of
       the stem's first part does not follow the one before it in number, its edge starts at the
       second part instead, where that has a single successor.
    2. Of several predecessors of a node that joins nothing the lowest-numbered one stays.

    Distances are those of the new edges.

    Args:
        graph: The graph.
        config: The architecture.
    """
    pairs = graph.edges[graph.edges[:, 2] == 1, :2]
    mended = _one_predecessor(_mend_stem(pairs, config), graph.op_types)
    if torch.equal(mended, pairs):
        return graph
    edges = shortest_distances(mended, graph.num_nodes, graph.virtual_edges)
    return replace(graph, edges=edges)


def _mend_stem(pairs: Tensor, config: NetworkConfig) -> Tensor:
    if config.stem_type != 1 or "msa" in config.genotype.primitives():
        return pairs
    first, second = _STEMS[config.norm is not None]
    after_first, after_second = (
        pairs[pairs[:, 0] == node, 1].sort().values.tolist() for node in (first, second)
    )
    if len(after_second) != 1 or len(after_first) < 2 or after_first[-1] - after_first[-2] <= 1:
        return pairs
    moved = pairs.clone()
    moved[(pairs[:, 0] == first) & (pairs[:, 1] == after_first[-1]), 0] = second
    return torch.unique(moved, dim=0)


def _one_predecessor(pairs: Tensor, op_types: Tensor) -> Tensor:
    """Pairs sorted by their first node, then the second, without those that step 2 drops."""
    source, target = pairs.unbind(1)
    lowest = torch.full((len(op_types),), len(op_types)).scatter_reduce(0, target, source, "amin")
    joins = torch.isin(op_types[target], torch.tensor(_JOINS))
    return pairs[joins | (source == lowest[target])]
