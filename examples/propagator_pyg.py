"""Plug a graph neural network of torch_geometric into a hypernetwork.

Any module that maps node features (N, C) and a GraphBatch to node features (N, C) can take the
place of the gated GNN. Here graph attention layers run along the edges of all graphs of the batch,
once forwards and once backwards.

    pip install "ghn-fast[pyg]"
    python examples/propagator_pyg.py
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn
from torch_geometric.nn import GATv2Conv

import ghn_fast
from ghn_fast.graph.batch import GraphBatch


class GraphAttention(nn.Module):
    """Two graph attention layers; distances of virtual edges are edge features 1/s."""

    def __init__(self, config: ghn_fast.GHNConfig) -> None:
        super().__init__()
        self.along = GATv2Conv(config.hid, config.hid // 4, heads=4, edge_dim=1)
        self.against = GATv2Conv(config.hid, config.hid // 4, heads=4, edge_dim=1)

    def forward(self, x: Tensor, batch: GraphBatch) -> Tensor:
        """Update node features (N, C)."""
        source_target = batch.edges[:, :2].T
        weight = batch.edges[:, 2:].to(x.dtype).reciprocal()
        x = x + self.along(x, source_target, weight).relu()
        return x + self.against(x, source_target.flip(0), weight).relu()


def main() -> None:
    """Predict a ResNet-18 with a hypernetwork of fresh weights; it trains like any other."""
    ghn_fast.register_propagator("gat", GraphAttention)
    torch.manual_seed(0)
    ghn = ghn_fast.GHN(ghn_fast.GHNConfig(propagator="gat"))
    report = ghn.predict(torchvision.models.resnet18(num_classes=10))
    milliseconds = 1e3 * report.seconds["total"]
    print(f"{len(report.predicted)} tensors predicted in {milliseconds:.0f} ms, none skipped:")
    print(report.skipped or "-")


if __name__ == "__main__":
    main()
