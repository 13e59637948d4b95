"""All-pairs shortest-path distances on a directed acyclic graph, up to a cutoff."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ghn_fast.ops.backend import library_problem, register_op, resolve

_FAR = np.int32(1 << 30)
_MOST = 2**31 - 1


def shortest_distances(edges: Tensor, num_nodes: int, cutoff: int) -> Tensor:
    """Edges and virtual edges of a directed acyclic graph with their shortest-path distances.

    A pair of nodes (u, v) is listed when a path of at most ``cutoff`` edges leads from u to v; the
    pairs at distance 1 are the edges themselves, the others are virtual edges (arXiv 2110.13100,
    section 4.1, Eq. 4).

    Runs on the back ends ``reference`` and ``cpu`` (see :mod:`ghn_fast.ops.backend`), always on the
    host: edges on another device are copied there, and the result is copied back.

    Args:
        edges: Tensor (E, 2) of pairs (from, to), int64 or int32, in any order. Nodes are numbered
            in topological order, so that from < to in each pair. A repeated pair counts once.
        num_nodes: Number of nodes, at most 2^31 - 1.
        cutoff: Largest distance to list, at least 1; 1 lists only the edges.

    Returns:
        Long tensor (M, 3) of rows (from, to, distance), sorted by from, then to, on the device of
        ``edges``. Empty (0, 3) for a graph without edges. The same on every back end and for every
        number of threads.

    Raises:
        TypeError: If ``edges`` is not an int64 or int32 tensor.
        ValueError: If a shape, an index or the order of the nodes is wrong, ``num_nodes`` is
            negative or too large, ``cutoff`` is below 1, or the back end that is asked for cannot
            run.
    """
    _check(edges, num_nodes, cutoff)
    here = edges.cpu()
    if resolve("shortest_distances", "cpu") == "reference":
        return reference(here, num_nodes, cutoff).to(edges.device)
    # No path is longer than the number of nodes; the op takes 64 bits.
    cutoff = min(cutoff, _MOST)
    return torch.ops.ghn_fast.shortest_distances(here, num_nodes, cutoff).to(edges.device)


def reference(edges: Tensor, num_nodes: int, cutoff: int) -> Tensor:
    """:func:`shortest_distances` in NumPy, by a dense matrix (N, N)."""
    if len(edges) == 0:
        return torch.zeros(0, 3, dtype=torch.int64)
    _check_edges(edges, num_nodes)
    distances = distance_matrix(edges.numpy(), num_nodes)
    source, target = np.nonzero((distances > 0) & (distances <= cutoff))
    rows = np.stack((source, target, distances[source, target]), axis=1)
    return torch.from_numpy(rows.astype(np.int64, copy=False))


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
    if not 0 <= num_nodes <= _MOST:
        raise ValueError(f"num_nodes: got {num_nodes}, needs 0 to {_MOST}")
    if cutoff < 1:
        raise ValueError(f"cutoff: got {cutoff}, needs at least 1")


def _check_edges(edges: Tensor, num_nodes: int) -> None:
    """What the compiled op checks itself."""
    low, high = int(edges.min()), int(edges.max())
    if low < 0 or high >= num_nodes:
        raise ValueError(
            f"edges: got indices from {low} to {high}, needs indices from 0 to {num_nodes - 1}"
        )
    wrong = (edges[:, 0] >= edges[:, 1]).nonzero()
    if len(wrong):
        row = int(wrong[0])
        source, target = edges[row].tolist()
        raise ValueError(
            f"edges: row {row} leads from node {source} to node {target}, needs nodes numbered in "
            "topological order (from < to); is there a cycle?"
        )


def _fake(edges: Tensor, num_nodes: int, cutoff: int) -> Tensor:
    pairs: Any = torch.library.get_ctx().new_dynamic_size()
    return edges.new_empty((pairs, 3), dtype=torch.int64)


if library_problem() is None:
    torch.library.register_fake("ghn_fast::shortest_distances", _fake)

register_op("shortest_distances", {"cpu": library_problem}, on_host=True)
