"""The transformer over the nodes of a graph that propagates in GHN-3 (arXiv 2303.04143, section 3).

Degrees and the distance from the input are embedded and added to the node features; then come L
layers of attention over all pairs of nodes and an MLP, each behind a layer normalisation and beside
a residual path. The distance of two nodes, in either direction, chooses a bias of the attention
logits, one per head, the same in all layers:

    e(f, b) = W2 relu(W1 [T[f + 2], T[b + 2]] + c1) + c2

with f the distance from the first node to the second, b the one back, and 0 where there is no path.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ghn_fast.graph.batch import GraphBatch
from ghn_fast.graph.pairs import Pairs
from ghn_fast.hypernet.config import GHNConfig
from ghn_fast.hypernet.linear import linear
from ghn_fast.ops.graph_attention import graph_attention

_MOST_DEGREE = 100
_MOST_INPUT_DISTANCE = 1000
# Rows of the table of distances: two are never read, the third stands for no path.
_FIRST_ROW = 2
_DISTANCES = 257 - _FIRST_ROW - 1
_MLP_RATIO = 4


class Graphormer(nn.Module):
    """Transformer with a bias by distance.

    Args:
        config: Uses ``hid``, ``heads``, ``layers`` and ``virtual_edges``.

    Raises:
        ValueError: If ``heads`` does not divide ``hid``, or ``virtual_edges`` is above 254.
    """

    needs = ("pairs",)

    def __init__(self, config: GHNConfig) -> None:
        super().__init__()
        hid = config.hid
        if hid % config.heads:
            raise ValueError(f"heads: got {config.heads}, needs a divisor of hid, {hid}")
        if config.virtual_edges > _DISTANCES:
            raise ValueError(
                f"virtual_edges: got {config.virtual_edges}, needs at most {_DISTANCES}, the "
                "distances that a graphormer knows"
            )
        self.cutoff = config.virtual_edges
        self.in_degree = nn.Embedding(_MOST_DEGREE + 1, hid)
        self.out_degree = nn.Embedding(_MOST_DEGREE + 1, hid)
        self.input_distance = nn.Embedding(_MOST_INPUT_DISTANCE + 1, hid)
        self.distance = nn.Embedding(_FIRST_ROW + 1 + _DISTANCES, hid)
        self.pair_hidden = nn.Linear(2 * hid, hid)
        self.pair_bias = nn.Linear(hid, config.heads)
        self.layers = nn.ModuleList(_Layer(hid, config.heads) for _ in range(config.layers))

    def forward(self, x: Tensor, batch: GraphBatch) -> Tensor:
        """Update node features (N, C).

        Without gradients graphs are computed one by one, so that each gets the same numbers in
        every batch.
        """
        pairs = batch.pairs
        table = self.table()
        if len(pairs.offsets) == 2 or (torch.is_grad_enabled() and x.requires_grad):
            return self._run(x, pairs, table)
        sizes = [
            last - first for first, last in zip(pairs.offsets, pairs.offsets[1:], strict=False)
        ]
        return torch.cat(
            [
                self._run(part, own, table)
                for part, own in zip(x.split(sizes), pairs.each(), strict=True)
            ]
        )

    def table(self) -> Tensor:
        """Bias (2 c + 1, H) of each code of a pair (:class:`ghn_fast.graph.pairs.Pairs`).

        Made once in a forward pass, for all layers and graphs; it costs a few rows of an MLP.
        """
        rows = self.distance.weight[_FIRST_ROW : _FIRST_ROW + 1 + self.cutoff]
        none = rows[:1]
        away = none.expand(self.cutoff, -1)
        forward = torch.cat([none, rows[1:], away])
        back = torch.cat([none, away, rows[1:]])
        return self.pair_bias(F.relu(self.pair_hidden(torch.cat([forward, back], dim=1))))

    def _run(self, x: Tensor, pairs: Pairs, table: Tensor) -> Tensor:
        x = (
            x
            + self.in_degree(pairs.in_degrees.clamp(max=_MOST_DEGREE))
            + self.out_degree(pairs.out_degrees.clamp(max=_MOST_DEGREE))
            + self.input_distance(pairs.input_distances.clamp(max=_MOST_INPUT_DISTANCE))
        )
        for layer in self.layers:
            x = layer(x, pairs, table)
        return x


class _Layer(nn.Module):
    def __init__(self, hid: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(hid)
        self.qkv = nn.Linear(hid, 3 * hid, bias=False)
        self.out = nn.Linear(hid, hid)
        self.mlp_norm = nn.LayerNorm(hid)
        self.mlp_in = nn.Linear(hid, _MLP_RATIO * hid)
        self.mlp_out = nn.Linear(_MLP_RATIO * hid, hid)

    def forward(self, x: Tensor, pairs: Pairs, table: Tensor) -> Tensor:
        qkv = linear(self.attention_norm(x), self.qkv).view(len(x), 3, self.heads, -1)
        mixed = graph_attention(qkv, pairs.codes, pairs.offsets, table)
        x = x + linear(mixed, self.out)
        return x + linear(F.gelu(linear(self.mlp_norm(x), self.mlp_in)), self.mlp_out)
