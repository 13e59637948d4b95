"""All-pairs shortest-path distances on a directed acyclic graph, up to a cutoff."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_FAR = np.int32(1 << 30)


def shortest_distances(edges: Tensor, num_nodes: int, cutoff: int) -> Tensor:
    """Edges and virtual edges of a directed acyclic graph with their shortest-path distances.

    A pair of nodes (u, v) is listed when a path of at most ``cutoff`` edges leads from u to v; the
    pairs at distance 1 are the edges themselves, the others are virtual edges (arXiv 2110.13100,
    section 4.1, Eq. 4).

    Args:
        edges: Long tensor (E, 2) of pairs (from, to). Nodes are numbered in topological order, so
            that from < to in each pair.
        num_nodes: Number of nodes.
        cutoff: Largest distance to list, at least 1; 1 lists only the edges.

    Returns:
        Long tensor (M, 3) of rows (from, to, distance), sorted by from, then to. Empty (0, 3) for a
        graph without edges.

    Raises:
        TypeError: If ``edges`` is not an integer tensor.
        ValueError: If a shape, an index or the order of the nodes is wrong, or ``cutoff`` below 1.
    """
    _check(edges, num_nodes, cutoff)
    distances = distance_matrix(edges.cpu().numpy(), num_nodes)
    source, target = np.nonzero((distances > 0) & (distances <= cutoff))
    rows = np.stack((source, target, distances[source, target]), axis=1)
    return torch.from_numpy(rows.astype(np.int64, copy=False)).to(edges.device)


def distance_matrix(edges: npt.NDArray[np.integer], num_nodes: int) -> npt.NDArray[np.int32]:
    """Dense matrix of shortest-path distances of a graph in topological order.

    Args:
        edges: Pairs (from, to) with from < to, shape (E, 2).
        num_nodes: Number of nodes N.

    Returns:
        Matrix (N, N) with the distance from row to column, and 0 where there is no path (and on the
        diagonal).
    """
    # Row v of `inverse` holds the distance from every node to v. All predecessors of v come before
    # it, so one row operation per edge completes it.
    inverse = np.full((num_nodes, num_nodes), _FAR, dtype=np.int32)
    by_target = edges[np.argsort(edges[:, 1], kind="stable")]
    for source, target in by_target.tolist():
        row = inverse[target, :source]
        np.minimum(row, inverse[source, :source] + 1, out=row)
        inverse[target, source] = 1
    inverse[inverse >= _FAR] = 0
    return inverse.T


def _check(edges: Tensor, num_nodes: int, cutoff: int) -> None:
    if not isinstance(edges, Tensor) or edges.dtype not in (torch.int64, torch.int32):
        got = edges.dtype if isinstance(edges, Tensor) else type(edges).__name__
        raise TypeError(f"edges: got {got}, needs an int64 or int32 tensor")
    if edges.ndim != 2 or edges.shape[1] != 2:
        raise ValueError(f"edges: got shape {tuple(edges.shape)}, needs (E, 2)")
    if num_nodes < 0:
        raise ValueError(f"num_nodes: got {num_nodes}, needs at least 0")
    if cutoff < 1:
        raise ValueError(f"cutoff: got {cutoff}, needs at least 1")
    if edges.numel() == 0:
        return
    low, high = int(edges.min()), int(edges.max())
    if low < 0 or high >= num_nodes:
        raise ValueError(
            f"edges: got indices from {low} to {high}, needs indices from 0 to {num_nodes - 1}"
        )
    if bool((edges[:, 0] >= edges[:, 1]).any()):
        raise ValueError(
            "edges: got an edge to a node that does not come later, needs nodes numbered in "
            "topological order (from < to); is there a cycle?"
        )
