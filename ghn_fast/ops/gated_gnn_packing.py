"""The packed plan of the gated GNN in NumPy, for machines without the compiled extension.

The array is the one that gated_gnn_plan makes (csrc/common/gated_gnn_plan.h), which the Triton
kernels read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_Array = npt.NDArray[np.int64]

_MAGIC = 0x47484E31


def packed_plan(edges: Tensor, offsets: Sequence[int], levels: tuple[Tensor, Tensor]) -> Tensor:
    """Pack a plan, int32 on the CPU.

    Args:
        edges: Rows (from, to, distance) (M, 3), checked.
        offsets: Number of the first node of each graph, and the number of nodes at the end.
        levels: Level of each node (N,) in the forward and in the backward sweep.
    """
    rows = edges.numpy().reshape(-1, 3)
    ends = np.asarray(offsets, np.int64)
    nodes = int(ends[-1])
    graph = np.repeat(np.arange(len(ends) - 1), np.diff(ends))
    orders = [_order(level.numpy(), ends, graph) for level in levels]
    head = [
        *(_MAGIC, len(ends) - 1, nodes, len(rows)),
        *(len(level) - 1 for _, _, level in orders),
        *(int(rows[:, 2].max(initial=0)), 0),
    ]
    lists = [_edge_list(rows, end, nodes, ends[graph]) for end in (1, 0)]
    parts = [np.array(head), ends, *lists[0], *lists[1], *orders[0], *orders[1]]
    return torch.from_numpy(np.concatenate(parts).astype(np.int32))


def _edge_list(
    rows: _Array, end: int, nodes: int, first: _Array
) -> tuple[_Array, _Array, _Array, _Array]:
    """ptr, split, node, distance of the edges by one of their ends: those at distance 1 first."""
    here, distance = rows[:, end], rows[:, 2]
    far = distance != 1
    by_node = np.lexsort((far, here))
    counts = np.bincount(here, minlength=nodes)
    ptr = np.append(0, np.cumsum(counts))
    near = np.bincount(here[~far], minlength=nodes)
    other = rows[by_node, 1 - end]
    return ptr, ptr[:-1] + near, other - first[other], distance[by_node]


def _order(level: _Array, ends: _Array, graph: _Array) -> tuple[_Array, _Array, _Array]:
    """node, graph_level, level: the nodes of each graph by level, by number within one."""
    order = np.lexsort((level, graph))
    # A level begins where the graph or the level of the nodes changes.
    starts = np.flatnonzero(np.diff(graph[order], prepend=-1) | np.diff(level[order], prepend=-1))
    counts = np.bincount(graph[order][starts], minlength=len(ends) - 1)
    graph_level = np.append(0, np.cumsum(counts))
    return order - ends[graph[order]], graph_level, np.append(starts, ends[-1])
