"""Distances up to 50 on a deep network's graph of about 1,000 nodes."""

from __future__ import annotations

from typing import Any

import torch
from measure import Measurement, seconds, spread

import ghn_fast
from ghn_fast.deepnets import SampledNets
from ghn_fast.graph import ArchGraph
from ghn_fast.ops.shortest_distances import shortest_distances

NODES, CUTOFF, TARGET_MS = 1000, 50, 3.0
CANDIDATES = 200


def large_graph() -> ArchGraph:
    """The graph nearest to 1,000 nodes among the first networks of the split ``deep``.

    Its networks are drawn like those for training, with more cells.
    """
    nets = SampledNets("deep", CANDIDATES, seed=1)
    graphs = (nets[index].graph for index in range(CANDIDATES))
    return min(graphs, key=lambda graph: abs(graph.num_nodes - NODES))


def measure_cpu(repeats: int, graph: ArchGraph | None = None) -> list[Measurement]:
    """Measure the op, and filling memory of the size of its output, in turn."""
    graph = large_graph() if graph is None else graph
    edges = graph.edges[graph.edges[:, 2] == 1, :2].contiguous()
    with ghn_fast.backend("reference"):
        expected = shortest_distances(edges, graph.num_nodes, CUTOFF)
    with ghn_fast.backend("cpu"):

        def run() -> torch.Tensor:
            return shortest_distances(edges, graph.num_nodes, CUTOFF)

        if not torch.equal(run(), expected):
            raise RuntimeError("results differ from the reference")
        pairs = [
            (seconds(run, 0.05), seconds(lambda: torch.empty_like(expected).fill_(1), 0.05))
            for _ in range(repeats)
        ]
    times = spread([time for time, _ in pairs])
    details: dict[str, Any] = {
        "nodes": graph.num_nodes,
        "edges": len(edges),
        "pairs": len(expected),
        "bytes": expected.numel() * expected.element_size(),
        **times,
        "fill": spread([time for _, time in pairs]),
    }
    name = f"shortest_distances up to {CUTOFF}, {graph.num_nodes} nodes"
    return [Measurement(name, times["median_ms"], "ms", at_most=TARGET_MS, details=details)]
