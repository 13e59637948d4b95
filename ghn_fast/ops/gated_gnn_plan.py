"""Plans of message passing: who sends to whom, and in which order nodes can be updated.

In a sweep of the gated GNN a node is updated after all nodes that send it messages (arXiv
1810.05749, section 4; arXiv 2110.13100, Eq. 3). Nodes of the same level have no path between them,
so one step updates a whole level.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ghn_fast.ops.backend import library_problem
from ghn_fast.ops.collate_edges import check_edge_rows
from ghn_fast.ops.gated_gnn_packing import packed_plan


class SweepPlan(NamedTuple):
    """Order of one sweep. Nodes are renumbered by level; the plan speaks in those numbers.

    Attributes:
        order: Long tensor (N,), the node at each place.
        level_sizes: Number of nodes of each level.
        hop_source: Sender of each edge, as its place within its level, sorted by level.
        hop_target: Receiver of each edge, as its place.
        hop_sizes: Number of edges that leave each level.
        all_source: As ``hop_source``, for edges and virtual edges together.
        all_target: As ``hop_target``, likewise.
        all_distance: Shortest-path distance of each.
        all_sizes: As ``hop_sizes``, likewise.
    """

    order: Tensor
    level_sizes: list[int]
    hop_source: Tensor
    hop_target: Tensor
    hop_sizes: list[int]
    all_source: Tensor
    all_target: Tensor
    all_distance: Tensor
    all_sizes: list[int]

    def to(self, device: torch.device | str) -> SweepPlan:
        """The plan with its tensors on a device."""
        moved = [v.to(device) if isinstance(v, Tensor) else v for v in self]
        return SweepPlan._make(moved)


class GraphPlan:
    """Plan of message passing over the graphs of a batch, forward and backward.

    Args:
        edges: Long tensor (M, 3) of rows (from, to, distance), on the CPU: distance 1 for edges,
            above 1 for virtual edges. Nodes are numbered through over the graphs, and within a
            graph in topological order, so that from < to in each row.
        offsets: Number of the first node of each graph, and the number of nodes N at the end.

    Attributes:
        num_nodes: Number of nodes N.
        num_edges: Number of edges M.
        num_graphs: Number of graphs B.
        packed: The plan of the compiled back ends, an int32 tensor; ``None`` without them.

    Raises:
        TypeError: If ``edges`` is not a long tensor.
        ValueError: If a node is out of range, an edge does not lead to a later node of the same
            graph, a distance is below 1, or ``offsets`` do not ascend from 0.
    """

    def __init__(self, edges: Tensor, offsets: list[int]) -> None:
        _check(edges, offsets)
        self.num_nodes = offsets[-1]
        self.num_edges = len(edges)
        self.num_graphs = len(offsets) - 1
        self.device = torch.device("cpu")
        self.packed: Tensor | None = None
        if library_problem() is None:
            with no_inference():
                self.packed = torch.ops.ghn_fast.gated_gnn_plan(edges, torch.tensor(offsets))
        else:
            _check_edges(edges, offsets)
        self._edges: Tensor | None = edges
        self._offsets: list[int] | None = offsets
        self._sweeps: tuple[SweepPlan, SweepPlan] | None = None

    @classmethod
    def of_packed(cls, packed: Tensor, num_nodes: int) -> GraphPlan:
        """A plan that a compiled op has made, on the CPU; its edges are unpacked if asked for.

        Args:
            packed: The plan of the compiled back ends.
            num_nodes: Its number of nodes.
        """
        plan = cls.__new__(cls)
        plan.num_nodes, plan.num_edges = num_nodes, int(packed[3])
        plan.num_graphs = int(packed[1])
        plan.device, plan.packed = packed.device, packed
        plan._edges = plan._sweeps = plan._offsets = None
        return plan

    @classmethod
    def join(cls, plans: Sequence[GraphPlan]) -> GraphPlan:
        """The plan of the graphs of several plans on the CPU side by side, in their order.

        Raises:
            ValueError: If ``plans`` is empty.
        """
        if not plans:
            raise ValueError("plans: got none, needs at least one")
        if len(plans) == 1:
            return plans[0]
        packed = [plan.packed for plan in plans if plan.packed is not None]
        if len(packed) == len(plans):
            nodes = sum(plan.num_nodes for plan in plans)
            with no_inference():
                return cls.of_packed(torch.ops.ghn_fast.gated_gnn_join(packed), nodes)
        rows, offsets = [], [0]
        for plan in plans:
            rows.append(plan.edges + torch.tensor([offsets[-1], offsets[-1], 0]))
            offsets.append(offsets[-1] + plan.num_nodes)
        return cls(torch.cat(rows), offsets)

    @property
    def edges(self) -> Tensor:
        """The edges (M, 3) on the CPU that the plan is for."""
        if self._edges is None:
            assert self.packed is not None
            self._edges = torch.ops.ghn_fast.gated_gnn_plan_edges(self.packed.cpu())
        return self._edges

    @property
    def sweeps(self) -> tuple[SweepPlan, SweepPlan]:
        """Plans of the forward and of the backward sweep, for the reference; made if asked for."""
        if self._sweeps is None:
            source, target, distance = self.edges.unbind(1)
            forward, backward = level_schedule(self.edges, self.num_nodes)
            self._sweeps = (
                plan_sweep(source, target, distance, forward).to(self.device),
                plan_sweep(target, source, distance, backward).to(self.device),
            )
        return self._sweeps

    def packed_here(self) -> Tensor:
        """``packed``, made without the compiled back ends if need be, and kept."""
        if self.packed is None:
            assert self._offsets is not None
            levels = level_schedule(self.edges, self.num_nodes)
            with no_inference():
                self.packed = packed_plan(self.edges, self._offsets, levels).to(self.device)
        return self.packed

    def to(self, device: torch.device | str) -> GraphPlan:
        """The plan on a device; from one that is not the CPU it passes through there."""
        moved = GraphPlan.__new__(GraphPlan)
        moved.num_nodes, moved.num_edges = self.num_nodes, self.num_edges
        moved.num_graphs, moved._offsets = self.num_graphs, self._offsets
        moved._edges = self._edges
        moved.device = torch.device(device)
        moved.packed = self.packed
        if self.packed is not None and not _same_device(moved.device, self.packed.device):
            moved.packed = _move(self.packed, moved.device)
        moved._sweeps = None
        if self._sweeps is not None:
            moved._sweeps = (self._sweeps[0].to(device), self._sweeps[1].to(device))
        return moved

    def pin_memory(self) -> GraphPlan:
        """The plan in page-locked memory, from where it is copied to a GPU without waiting.

        Raises:
            RuntimeError: If there is no CUDA GPU.
        """
        pinned = self.to(self.device)
        if self.packed is not None:
            pinned.packed = _move(self.packed, self.device, pin=True)
        return pinned


def no_inference() -> AbstractContextManager[Any]:
    """Tensors that are made inside are none of inference mode's, wherever that is on.

    Plans are kept, and saved for backward passes, which inference tensors cannot be; and these
    have no version counter, by which a plan on a GPU is known again.
    """
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def _move(packed: Tensor, device: torch.device, *, pin: bool = False) -> Tensor:
    """The plan on a device; what the compiled back ends know of it stays known."""
    with no_inference():
        if library_problem() is None:
            return torch.ops.ghn_fast.gated_gnn_plan_to(packed.cpu(), device, pin)
        return packed.pin_memory() if pin else packed.to(device)


def _same_device(asked: torch.device, have: torch.device) -> bool:
    if str(asked) == "cuda":
        asked = torch.device("cuda", torch.cuda.current_device())
    return asked == have


def level_schedule(edges: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """Levels of nodes that are numbered in topological order.

    Args:
        edges: Long tensor (M, 3) of rows (from, to, distance) with from < to; only the rows at
            distance 1 matter, since virtual edges run along paths.
        num_nodes: Number of nodes N.

    Returns:
        Two long tensors (N,): the number of edges on the longest path that ends in the node, and
        on the longest that starts there; the levels of the forward and of the backward sweep.
    """
    hops = edges[edges[:, 2] == 1, :2]
    forward, backward = [0] * num_nodes, [0] * num_nodes
    for source, target in hops[torch.argsort(hops[:, 1], stable=True)].tolist():
        forward[target] = max(forward[target], forward[source] + 1)
    for source, target in hops[torch.argsort(-hops[:, 0], stable=True)].tolist():
        backward[source] = max(backward[source], backward[target] + 1)
    return (
        torch.tensor(forward, dtype=torch.int64),
        torch.tensor(backward, dtype=torch.int64),
    )


def plan_sweep(sources: Tensor, targets: Tensor, distances: Tensor, levels: Tensor) -> SweepPlan:
    """Plan a sweep in which messages run from ``sources`` to ``targets``.

    Args:
        sources: Long tensor (M,), sender of each edge or virtual edge.
        targets: Long tensor (M,), receiver of each.
        distances: Long tensor (M,), shortest-path distance of each, at least 1.
        levels: Long tensor (N,), level of each node; a sender's level is below its receiver's.

    Raises:
        ValueError: If an edge does not lead to a higher level.
    """
    if bool((levels[sources] >= levels[targets]).any()):
        raise ValueError("levels: an edge does not lead to a higher level")
    order = torch.argsort(levels, stable=True)
    sizes = torch.bincount(levels) if len(levels) else levels
    place = torch.empty_like(order)
    place[order] = torch.arange(len(levels))
    start = torch.cumsum(sizes, 0) - sizes

    def edges(mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        s, t, d = (v if mask is None else v[mask] for v in (sources, targets, distances))
        by_level = torch.argsort(levels[s], stable=True)
        s, t, d = s[by_level], t[by_level], d[by_level]
        level = levels[s]
        counts = torch.bincount(level, minlength=len(sizes)).tolist()
        return place[s] - start[level], place[t], d, counts

    hop_source, hop_target, _, hop_sizes = edges(distances == 1)
    all_source, all_target, all_distance, all_sizes = edges(None)
    return SweepPlan(
        order,
        sizes.tolist(),
        hop_source,
        hop_target,
        hop_sizes,
        all_source,
        all_target,
        all_distance,
        all_sizes,
    )


def _check(edges: Tensor, offsets: list[int]) -> None:
    check_edge_rows(edges, "edges")
    if not offsets or offsets[0] != 0 or sorted(offsets) != list(offsets):
        raise ValueError(f"offsets: got {offsets}, needs numbers that ascend from 0")


def _check_edges(edges: Tensor, offsets: list[int]) -> None:
    """What gated_gnn_plan checks in C++, where that is not there."""
    if edges.numel() == 0:
        return
    source, target, distance = edges.T.contiguous().unbind(0)
    low, high = int(edges[:, :2].min()), int(edges[:, :2].max())
    if low < 0 or high >= offsets[-1]:
        raise ValueError(
            f"edges: got nodes from {low} to {high}, needs nodes from 0 to {offsets[-1] - 1}"
        )
    if bool((source >= target).any()):
        raise ValueError(
            "edges: got an edge to a node that does not come later, needs nodes numbered in "
            "topological order; is there a cycle?"
        )
    ends = torch.tensor(offsets[1:])
    graphs = [torch.bucketize(node, ends, right=True) for node in (source, target)]
    if not torch.equal(*graphs):
        raise ValueError("edges: got an edge between nodes which belong to different graphs")
    low, high = int(distance.min()), int(distance.max())
    if low < 1 or high > offsets[-1]:
        raise ValueError(f"edges: got distances from {low} to {high}, needs 1 to {offsets[-1]}")
