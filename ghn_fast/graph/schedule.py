"""Level schedules: which nodes of a graph can be updated together.

In a sweep of the gated GNN a node is updated after all nodes that send it messages (arXiv
1810.05749, section 4; arXiv 2110.13100, Eq. 3). Nodes of the same level have no path between them,
so one step updates a whole level.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class LevelSchedule(NamedTuple):
    """Level of every node, counted from 0, in both sweeps.

    Attributes:
        forward: Long tensor (N,), number of edges on the longest path that ends in the node.
        backward: Long tensor (N,), number of edges on the longest path that starts in the node.
    """

    forward: Tensor
    backward: Tensor


def level_schedule(edges: Tensor, num_nodes: int) -> LevelSchedule:
    """Levels of a graph whose nodes are numbered in topological order.

    Args:
        edges: Long tensor (M, 3) of rows (from, to, distance) with from < to; only the rows at
            distance 1 matter, since virtual edges run along paths.
        num_nodes: Number of nodes.
    """
    hops = edges[edges[:, 2] == 1, :2].numpy()
    forward = np.zeros(num_nodes, dtype=np.int64)
    backward = np.zeros(num_nodes, dtype=np.int64)
    by_target = hops[np.argsort(hops[:, 1], kind="stable")].tolist()
    for source, target in by_target:
        forward[target] = max(forward[target], forward[source] + 1)
    by_source = hops[np.argsort(-hops[:, 0], kind="stable")].tolist()
    for source, target in by_source:
        backward[source] = max(backward[source], backward[target] + 1)
    return LevelSchedule(torch.from_numpy(forward), torch.from_numpy(backward))
