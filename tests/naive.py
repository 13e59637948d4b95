"""Slow and obvious versions of the ops, written from the papers: what the tests compare with."""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx
import numpy as np
import torch
from torch import Tensor, nn


def random_dag(num_nodes: int, density: float, seed: int) -> list[tuple[int, int]]:
    """Edges of a random directed acyclic graph whose nodes are numbered in topological order."""
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.random((num_nodes, num_nodes)) < density, k=1)
    return [(int(u), int(v)) for u, v in zip(*np.nonzero(upper), strict=True)]


def distances(
    edges: Sequence[tuple[int, int]], num_nodes: int, cutoff: int
) -> set[tuple[int, ...]]:
    """All (from, to, distance) up to a cutoff, by networkx."""
    graph = nx.DiGraph()
    graph.add_nodes_from(range(num_nodes))
    graph.add_edges_from(edges)
    lengths = nx.all_pairs_shortest_path_length(graph, cutoff=cutoff)
    return {(u, v, d) for u, row in lengths for v, d in row.items() if d > 0}


def gated_gnn(
    x: Tensor,
    rows: Sequence[tuple[int, int, int]],
    mlp: nn.Module,
    mlp_ve: nn.Module | None,
    gru: nn.GRUCell,
    steps: int = 1,
) -> Tensor:
    """One node after the other, every message computed anew for every edge."""
    states = list(x)
    for _ in range(steps):
        for forward in (True, False):
            order = range(len(states)) if forward else reversed(range(len(states)))
            for node in order:
                message = torch.zeros_like(x[0])
                for source, target, distance in rows:
                    sender, receiver = (source, target) if forward else (target, source)
                    if receiver != node:
                        continue
                    if distance == 1:
                        message = message + mlp(states[sender])
                    if mlp_ve is not None:
                        message = message + mlp_ve(states[sender]) / distance
                states[node] = gru(message[None], states[node][None])[0]
    return torch.stack(states)


def tile(block: Tensor, shape: Sequence[int]) -> Tensor:
    """Slice a block where it is larger than a shape, repeat it where it is smaller."""
    index = [torch.arange(want) % have for have, want in zip(block.shape, shape, strict=True)]
    return block[torch.meshgrid(*index, indexing="ij")]


def mlp(width: int, hidden: int, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Two layers, a ReLU after each."""
    return nn.Sequential(
        nn.Linear(width, hidden, dtype=dtype),
        nn.ReLU(),
        nn.Linear(hidden, width, dtype=dtype),
        nn.ReLU(),
    )
