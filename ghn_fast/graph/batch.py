"""A meta-batch of architecture graphs, collated for message passing."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ghn_fast.graph.arch_graph import ArchGraph
from ghn_fast.ops.plan import GraphPlan


class GraphBatch:
    """Several architecture graphs side by side, their nodes numbered through.

    Args:
        graphs: At least one graph.

    Attributes:
        graphs: The graphs.
        op_types: Long tensor (N,) of node types, N nodes in all graphs together.
        offsets: Number of the first node of each graph, and N at the end (B + 1 integers).
        edges: Long tensor (M, 3) of rows (from, to, distance), nodes numbered through.
        plan: Plan of message passing along and against the edges.

    Raises:
        ValueError: If ``graphs`` is empty.
    """

    def __init__(self, graphs: Sequence[ArchGraph]) -> None:
        if not graphs:
            raise ValueError("graphs: got none, needs at least one architecture graph")
        self.graphs = tuple(graphs)
        self.offsets = [0]
        for graph in self.graphs:
            self.offsets.append(self.offsets[-1] + graph.num_nodes)
        self.op_types = torch.cat([graph.op_types for graph in self.graphs])
        shifted = []
        for graph, offset in zip(self.graphs, self.offsets, strict=False):
            shift = torch.tensor([offset, offset, 0])
            shifted.append(graph.edges + shift)
        self.edges = torch.cat(shifted)
        self.plan = GraphPlan(self.edges, self.offsets)

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
        self.op_types = self.op_types.to(device)
        self.edges = self.edges.to(device)
        self.plan = self.plan.to(device)
        return self

    def __len__(self) -> int:
        return len(self.graphs)
