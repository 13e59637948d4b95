"""The gated GNN as the published system runs it: node by node.

All graphs of a batch go through their topological orders in step. For every node the messages of
its senders are computed anew, by the perceptrons, for every edge; then the GRU updates the nodes
that stand at the same position of their graphs, in place in the table of all states. This is what
the compiled op is measured against. Indices are prepared beforehand, outside of what is timed.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Step(NamedTuple):
    """What is updated at one position: nodes, and their edges with the place of the receiver."""

    nodes: Tensor
    hop_source: Tensor
    hop_place: Tensor
    source: Tensor
    place: Tensor
    distance: Tensor


class Baseline:
    """Node-by-node message passing over a batch of graphs.

    Args:
        edges: Long tensor (M, 3) of rows (from, to, distance), nodes numbered through.
        offsets: Number of the first node of each graph, and the number of nodes at the end.
    """

    def __init__(self, edges: Tensor, offsets: list[int]) -> None:
        spans = list(pairwise(offsets))
        longest = max(end - start for start, end in spans)
        self.sweeps: list[list[Step]] = []
        for sender, receiver in ((0, 1), (1, 0)):
            rows_of: list[list[int]] = [[] for _ in range(offsets[-1])]
            for row, node in enumerate(edges[:, receiver].tolist()):
                rows_of[node].append(row)
            steps = []
            for position in range(longest) if receiver == 1 else reversed(range(longest)):
                nodes = [start + position for start, end in spans if start + position < end]
                rows = torch.tensor([r for n in nodes for r in rows_of[n]], dtype=torch.int64)
                place = torch.tensor([i for i, n in enumerate(nodes) for _ in rows_of[n]]).long()
                source, distance = edges[rows, sender], edges[rows, 2]
                hop = distance == 1
                steps.append(
                    Step(
                        torch.tensor(nodes),
                        source[hop],
                        place[hop],
                        source,
                        place,
                        distance.unsqueeze(1),
                    )
                )
            self.sweeps.append(steps)

    def to(self, device: torch.device | str) -> Baseline:
        """Move the indices to a device, in place; returns the baseline."""
        self.sweeps = [
            [Step._make(tensor.to(device) for tensor in step) for step in steps]
            for steps in self.sweeps
        ]
        return self

    def __call__(
        self, x: Tensor, mlp: nn.Module, mlp_ve: nn.Module | None, gru: nn.GRUCell
    ) -> Tensor:
        """Make one forward and one backward sweep over node features (N, C)."""
        states = x.clone()
        for steps in self.sweeps:
            for step in steps:
                message = x.new_zeros(len(step.nodes), x.shape[1])
                message = message.index_add(0, step.hop_place, mlp(states[step.hop_source]))
                if mlp_ve is not None:
                    sent = mlp_ve(states[step.source]) / step.distance
                    message = message.index_add(0, step.place, sent)
                states[step.nodes] = gru(message, states[step.nodes])
        return states
