"""A meta-batch of architecture graphs, collated for message passing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ghn_fast.graph.arch_graph import ArchGraph
from ghn_fast.graph.pairs import Pairs
from ghn_fast.ops.collate_edges import collate_edges
from ghn_fast.ops.gated_gnn_plan import GraphPlan


class GraphBatch:
    """Several architecture graphs side by side, their nodes numbered through.

    Graphs that came with a plan of their own, as those of DeepNets-1M do, are put together from
    these plans.

    Args:
        graphs: At least one graph; their edges are on the CPU, sorted or not.

    Attributes:
        graphs: The graphs.
        op_types: Long tensor (N,) of node types, N nodes in all graphs together.
        offsets: Number of the first node of each graph, and N at the end (B + 1 integers).

    What propagation reads of the edges (:attr:`plan`, :attr:`pairs`) is made when it is asked for.

    Raises:
        TypeError: If one of ``graphs`` is not an architecture graph.
        ValueError: If ``graphs`` is empty, or the edges of a graph (``edges[i]`` in the message,
            for ``graphs[i]``) name a node that it does not have, do not lead to a later node, or
            have an impossible distance.
    """

    def __init__(self, graphs: Sequence[ArchGraph]) -> None:
        if not graphs:
            raise ValueError("graphs: got none, needs at least one architecture graph")
        for index, graph in enumerate(graphs):
            if not isinstance(graph, ArchGraph):
                raise TypeError(
                    f"graphs[{index}]: got {type(graph).__name__}, needs an ArchGraph "
                    "(ghn_fast.capture makes one of a network)"
                )
        self.graphs = tuple(graphs)
        self.offsets = [0]
        for graph in self.graphs:
            self.offsets.append(self.offsets[-1] + graph.num_nodes)
        self.op_types = torch.cat([graph.op_types for graph in self.graphs])
        self._plan: GraphPlan | None = None
        self._pairs: Pairs | None = None
        # On the CPU, unless the plans of the graphs have them.
        self._rows: Tensor | None = None
        self._edges: Tensor | None = None
        if any(graph.plan is None for graph in self.graphs):
            self._rows = collate_edges([graph.edges for graph in self.graphs], self.offsets)

    @property
    def plan(self) -> GraphPlan:
        """Plan of message passing along and against the edges, on the device of the batch."""
        if self._plan is None:
            if self._rows is None:
                plans = [graph.plan for graph in self.graphs if graph.plan is not None]
                self._plan = GraphPlan.join(plans).to(self.op_types.device)
            else:
                self._plan = GraphPlan(self._rows, self.offsets).to(self.op_types.device)
        return self._plan

    @property
    def pairs(self) -> Pairs:
        """Distances of all pairs of nodes within each graph, on the device of the batch.

        Raises:
            ValueError: If the graphs list distances up to different limits.
        """
        if self._pairs is None:
            cutoffs = {graph.virtual_edges for graph in self.graphs}
            if len(cutoffs) > 1:
                raise ValueError(
                    f"graphs: got virtual edges up to {sorted(cutoffs)}, needs one limit for all"
                )
            # The plan is for message passing, and reading edges from it on a GPU would wait for it.
            edges = self._rows
            if edges is None:
                edges = collate_edges([graph.edges for graph in self.graphs], self.offsets)
            with torch.inference_mode(False):
                made = Pairs.of(edges, self.offsets, *cutoffs)
            self._pairs = made.to(self.op_types.device)
        return self._pairs

    @property
    def edges(self) -> Tensor:
        """Long tensor (M, 3) of rows (from, to, distance), nodes numbered through.

        It is on the device of the batch, moved there when it is asked for first: message passing
        reads the plan alone.
        """
        if self._edges is None:
            rows = self.plan.edges if self._rows is None else self._rows
            self._edges = rows.to(self.op_types.device)
        return self._edges

    @property
    def num_nodes(self) -> int:
        """Number of nodes of all graphs together."""
        return self.offsets[-1]

    @property
    def shapes(self) -> list[tuple[int, ...] | None]:
        """Shape of the parameter of every node (see :class:`ArchGraph`)."""
        return [shape for graph in self.graphs for shape in graph.shapes]

    def to(self, device: torch.device | str) -> GraphBatch:
        """Move the tensors to a device, in place; returns the batch."""
        self.op_types = self.op_types.to(device, non_blocking=self.op_types.is_pinned())
        self._edges = None
        if self._plan is not None:
            self._plan = self._plan.to(device)
        if self._pairs is not None:
            self._pairs = self._pairs.to(device)
        return self

    def pin_memory(self) -> GraphBatch:
        """Put what a GPU needs into page-locked memory, in place; returns the batch.

        Raises:
            RuntimeError: If there is no CUDA GPU.
        """
        self.op_types = self.op_types.pin_memory()
        self._plan = self.plan.pin_memory()
        return self

    def __len__(self) -> int:
        return len(self.graphs)
