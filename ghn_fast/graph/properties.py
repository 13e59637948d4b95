"""Properties of architecture graphs, as tables of DeepNets-1M report them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean, pstdev

from ghn_fast.graph.arch_graph import ArchGraph


@dataclass(frozen=True)
class GraphProperties:
    """Size and shape of an architecture graph, virtual edges left out.

    Attributes:
        nodes: Number of nodes.
        edges: Number of edges.
        average_degree: Mean number of neighbours of a node, in and out: 2 * edges / nodes.
        average_path: Mean length of the shortest path between two nodes, edge directions ignored
            (arXiv 2110.13100, Table 1), over all pairs that are connected; 0 if there are none.
        depth: Number of edges on the longest directed path.
    """

    nodes: int
    edges: int
    average_degree: float
    average_path: float
    depth: int

    def __str__(self) -> str:
        return (
            f"{self.nodes} nodes, {self.edges} edges, average degree {self.average_degree:.2f}, "
            f"average shortest path {self.average_path:.2f}, longest path {self.depth}"
        )


def graph_properties(graph: ArchGraph) -> GraphProperties:
    """Compute the properties of an architecture graph.

    Args:
        graph: The graph; with or without virtual edges the result is the same.
    """
    nodes = graph.num_nodes
    edges = main_edges(graph)
    return GraphProperties(
        nodes,
        len(edges),
        2 * len(edges) / nodes if nodes else 0.0,
        _average_path(nodes, edges),
        max(longest_path_ranks(nodes, edges), default=0),
    )


def summarise_properties(graphs: Iterable[ArchGraph]) -> str:
    """One line on many graphs: mean ± standard deviation of each property.

    Raises:
        ValueError: If there are no graphs.
    """
    found = [graph_properties(graph) for graph in graphs]
    if not found:
        raise ValueError("graphs: got none, needs at least one")

    def show(values: list[float]) -> str:
        return f"{mean(values):.2f} ± {pstdev(values):.2f}"

    return (
        f"average degree {show([p.average_degree for p in found])}, "
        f"average shortest path {show([p.average_path for p in found])}, "
        f"longest path {show([float(p.depth) for p in found])} ({len(found)} graphs)"
    )


def main_edges(graph: ArchGraph) -> list[tuple[int, int]]:
    """Pairs (from, to) of a graph's edges, without virtual edges."""
    hops = graph.edges[graph.edges[:, 2] == 1, :2]
    return [(source, target) for source, target in hops.tolist()]


def longest_path_ranks(nodes: int, edges: list[tuple[int, int]]) -> list[int]:
    """Number of edges on the longest path that ends in each node.

    Args:
        nodes: Number of nodes, in topological order.
        edges: Pairs (from, to) with from < to.
    """
    ranks = [0] * nodes
    for source, target in sorted(edges):
        ranks[target] = max(ranks[target], ranks[source] + 1)
    return ranks


def _average_path(nodes: int, edges: list[tuple[int, int]]) -> float:
    neighbours: list[set[int]] = [set() for _ in range(nodes)]
    for source, target in edges:
        neighbours[source].add(target)
        neighbours[target].add(source)
    # Bit u of ball[v] says that u is at most `radius` edges away from v. Integers as bit sets grow
    # all balls by one edge in 2E operations.
    ball = [1 << node for node in range(nodes)]
    pairs, total, radius = 0, 0, 0
    while True:
        grown = []
        for node, near in enumerate(neighbours):
            union = ball[node]
            for other in near:
                union |= ball[other]
            grown.append(union)
        radius += 1
        met = sum(union.bit_count() for union in grown) - nodes - pairs
        if met == 0:
            return total / pairs if pairs else 0.0
        pairs += met
        total += radius * met
        ball = grown
