"""A meta-batch of architecture graphs, collated for message passing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ghn_fast.graph.arch_graph import ArchGraph
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
        plan: Plan of message passing along and against the edges.

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
        plans = [graph.plan for graph in self.graphs if graph.plan is not None]
        if len(plans) == len(self.graphs):
            self.plan = GraphPlan.join(plans)
        else:
            edges = collate_edges([graph.edges for graph in self.graphs], self.offsets)
            self.plan = GraphPlan(edges, self.offsets)
        self._edges: Tensor | None = None

    @property
    def edges(self) -> Tensor:
        """Long tensor (M, 3) of rows (from, to, distance), nodes numbered through.

        It is on the device of the batch, moved there when it is asked for first: message passing
        reads the plan alone.
        """
        if self._edges is None:
            self._edges = self.plan.edges.to(self.op_types.device)
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
        self.plan = self.plan.to(device)
        return self

    def pin_memory(self) -> GraphBatch:
        """Put what a GPU needs into page-locked memory, in place; returns the batch.

        Raises:
            RuntimeError: If there is no CUDA GPU.
        """
        self.op_types = self.op_types.pin_memory()
        self.plan = self.plan.pin_memory()
        return self

    def __len__(self) -> int:
        return len(self.graphs)
