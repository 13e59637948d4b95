"""The edges of several graphs in one table, their nodes numbered through."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ghn_fast.ops.backend import library_problem, register_op, resolve


def collate_edges(edges: Sequence[Tensor], offsets: Sequence[int]) -> Tensor:
    """Put the edges of a batch of graphs below each other and add each graph's first node.

    Runs on the back ends ``reference`` and ``cpu`` (see :mod:`ghn_fast.ops.backend`), on the host.

    Args:
        edges: For each graph a long tensor (M_g, 3) of rows (from, to, distance) on the CPU, with
            from < to, both below the number of nodes of the graph.
        offsets: Number of the first node of each graph, from 0, and the number of nodes at the end.

    Returns:
        Long tensor (M, 3) of all rows, in the order of the graphs; (0, 3) without edges.

    Raises:
        TypeError: If a tensor is not a long one.
        ValueError: If there are no graphs, a shape is wrong, a tensor is not on the CPU, an edge
            leaves its graph or does not lead to a later node, a distance is not from 1 to one less
            than the number of nodes, or ``offsets`` do not ascend from 0.
    """
    _check(edges, offsets)
    if resolve("collate_edges", "cpu") == "reference":
        return reference(edges, offsets)
    return torch.ops.ghn_fast.collate_edges(list(edges), list(offsets))


def reference(edges: Sequence[Tensor], offsets: Sequence[int]) -> Tensor:
    """:func:`collate_edges` in plain PyTorch."""
    shifted = []
    for index, (rows, (start, end)) in enumerate(zip(edges, pairwise(offsets), strict=True)):
        _check_rows(rows, index, end - start)
        shifted.append(rows + torch.tensor([start, start, 0]))
    return torch.cat(shifted)


def check_edge_rows(rows: Tensor, name: str) -> None:
    """Raise TypeError or ValueError unless a tensor is one of rows (from, to, distance)."""
    if not isinstance(rows, Tensor) or rows.dtype != torch.int64:
        got = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
        raise TypeError(f"{name}: got {got}, needs an int64 tensor")
    if rows.device.type != "cpu":
        raise ValueError(f"{name}: got a tensor on {rows.device}, needs it on the CPU")
    if rows.ndim != 2 or rows.shape[1] != 3:
        raise ValueError(f"{name}: got shape {tuple(rows.shape)}, needs (M, 3)")


def _check(edges: Sequence[Tensor], offsets: Sequence[int]) -> None:
    if not edges:
        raise ValueError("edges: got no tensors, needs one per graph")
    for index, rows in enumerate(edges):
        check_edge_rows(rows, f"edges[{index}]")
    if len(offsets) != len(edges) + 1:
        raise ValueError(
            f"offsets: got {len(offsets)} numbers, needs {len(edges) + 1}, one more than graphs"
        )
    if offsets[0] != 0 or any(a > b for a, b in pairwise(offsets)):
        raise ValueError(f"offsets: got {list(offsets)}, needs numbers that ascend from 0")


def _check_rows(rows: Tensor, graph: int, num_nodes: int) -> None:
    """What the compiled op checks itself: the first row that is wrong, and why."""
    source, target, distance = rows.unbind(1)
    outside = (rows[:, :2] < 0).any(1) | (rows[:, :2] >= num_nodes).any(1)
    backward = source >= target
    length = (distance < 1) | (distance >= num_nodes)
    wrong = (outside | backward | length).nonzero()
    if len(wrong) == 0:
        return
    row = int(wrong[0])
    start, end, got = rows[row].tolist()
    where = f"edges[{graph}]: row {row}"
    if outside[row]:
        raise ValueError(
            f"{where} joins nodes {start} and {end}, needs nodes from 0 to {num_nodes - 1}"
        )
    if backward[row]:
        raise ValueError(
            f"{where} leads from node {start} to node {end}, needs nodes numbered in topological "
            "order (from < to); is there a cycle?"
        )
    raise ValueError(f"{where} has distance {got}, needs 1 to {num_nodes - 1}")


def _fake(edges: Sequence[Tensor], offsets: Sequence[int]) -> Tensor:
    return edges[0].new_empty(sum(rows.shape[0] for rows in edges), 3)


if library_problem() is None:
    torch.library.register_fake("ghn_fast::collate_edges", _fake)

register_op("collate_edges", {"cpu": library_problem}, on_host=True)
