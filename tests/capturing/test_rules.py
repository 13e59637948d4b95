"""Graphs by the rules of GHN-3: what is a node, and which parameters have one."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import ghn_fast
from ghn_fast.capturing import clear_cache
from ghn_fast.capturing.cache import cached_capture
from ghn_fast.graph import NODE_TYPES, ArchGraph
from ghn_fast.graph.node_types import LANGUAGE_NODE_TYPES
from ghn_fast.graph.rules import GraphRules
from tolerances import assert_close


def edges(graph: ArchGraph) -> list[tuple[str, str]]:
    """The edges by the names of their nodes, a type with its number in the graph."""
    names = [
        f"{name}{node}" if name in NODE_TYPES else name for node, name in enumerate(graph.names)
    ]
    return [(names[a], names[b]) for a, b, d in graph.edges.tolist() if d == 1]


class Gated(nn.Module):
    """Squeeze-and-excitation between two convolutions, and a mean without kept dimensions."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.down, self.up = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.last = nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 10)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        gate = self.gate(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.head(self.last(gate * x).mean((2, 3)))


def test_squeeze_and_excitation() -> None:
    for gate in (nn.Sigmoid(), nn.Hardsigmoid()):
        graph = ghn_fast.capture(Gated(gate), (3, 8, 8), rules=GraphRules.GHN3)
        product = f"cse{graph.names.index('cse')}"
        assert ("first.bias", "down.weight") in edges(graph)
        assert ("first.bias", product) in edges(graph)
        assert ("up.bias", product) in edges(graph)
        assert graph.names.count("glob_avg") == 1
    # Other products have no node.
    graph = ghn_fast.capture(Gated(nn.Tanh()), (3, 8, 8), rules=GraphRules.GHN3)
    assert "cse" not in graph.names
    assert graph.names.count("glob_avg") == 2


class Attention(nn.Module):
    """Attention written out, with a table of summands of the logits."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(6, 6) for _ in range(3))
        self.out, self.head = nn.Linear(6, 6), nn.Linear(6, 4)
        self.norm = nn.LayerNorm(6)
        self.table = nn.Parameter(torch.zeros(5, 5))
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = self.query(h), self.key(h), self.value(h)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=self.table)
        else:
            mixed = (q @ k.transpose(1, 2) * 6**-0.5 + self.table).softmax(2) @ v
        return self.head((x + self.out(mixed)).mean(1))


def test_attention() -> None:
    expected = None
    for fused in (False, True):
        graph = ghn_fast.capture(Attention(fused), (5, 6), rules=GraphRules.GHN3)
        assert graph.names.count("msa") == 1
        assert "table" in graph.skipped
        found = {(a.rstrip("0123456789"), b.rstrip("0123456789")) for a, b in edges(graph)}
        for name in ("query", "key", "value"):
            assert (f"{name}.bias", "msa") in found
        assert ("msa", "out.weight") in found
        assert ("value.bias", "out.weight") not in found
        expected = expected or found
        assert found == expected


class Tokens(nn.Module):
    """LayerScale, a class token and a table of positions of a grid with the token's row first."""

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 2, 2)
        self.token = nn.Parameter(torch.zeros(1, 1, 6))
        self.positions = nn.Parameter(torch.randn(1, positions, 6))
        self.inner = nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.full((6,), 1e-6))
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        if self.positions.shape[1] > x.shape[1]:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        x = x + self.positions
        x = x + self.scale * self.inner(x)
        return self.head(x[:, 0])


def test_positions_are_predicted_and_free_vectors_are_not() -> None:
    model = Tokens(17)
    graph = ghn_fast.capture(model, (3, 8, 8), rules=GraphRules.GHN3)
    assert set(graph.skipped) == {"token", "scale"}
    assert all("belongs to no layer" in reason for reason in graph.skipped.values())
    assert "concat" not in graph.names
    node = graph.names.index("positions")
    assert graph.shapes[node] == (1, 6, 4, 4)
    assert [b for a, b in edges(graph) if a == "positions"] == [f"sum{node + 1}"]
    assert [a for a, b in edges(graph) if b == "positions"] == []
    usual = ghn_fast.capture(model, (3, 8, 8))
    assert set(usual.skipped) == {"positions"}
    published = ghn_fast.capture(model, (3, 8, 8), rules=GraphRules.GHN2_PUBLISHED)
    assert set(published.skipped) == {"positions", "token", "scale"}


@pytest.mark.filterwarnings("ignore:.*parameters were not predicted:UserWarning")
def test_the_first_row_of_a_table_of_positions_stays() -> None:
    config = ghn_fast.GHNConfig(
        max_shape=(8, 8, 3, 3), hid=8, num_classes=4, rules="ghn3", window="middle"
    )
    ghn = ghn_fast.GHN(config).eval()
    for model in (Tokens(17), Tokens(16)):
        before = model.positions.detach().clone()
        report = ghn.predict(model, input_shape=(3, 8, 8))
        assert "positions" in report.predicted
        rows = model.positions.shape[1] - 16
        after = model.positions.detach()
        assert torch.equal(after[:, :rows], before[:, :rows])
        assert not (after[:, rows:] == before[:, rows:]).any()
        graph = ghn_fast.capture(model, (3, 8, 8), rules=GraphRules.GHN3)
        (tensors,) = ghn.predict_tensors([graph])
        assert_close(tensors["positions"][:, rows:], after[:, rows:], context="ghn")
        assert not tensors["positions"][:, :rows].any()


def test_a_final_mean_comes_before_the_classifier() -> None:
    model = torchvision.models.squeezenet1_1(num_classes=7)
    graph = ghn_fast.capture(model, rules=GraphRules.GHN3)
    assert graph.names[-3:] == ("glob_avg", "classifier.1.weight", "classifier.1.bias")
    assert graph.shapes[-2] == (7, 512)
    heads = [target for target in graph.targets if target.head]
    assert [(h.name, h.shape, h.predicted_shape) for h in heads] == [
        ("classifier.1.weight", (7, 512, 1, 1), (7, 512)),
        ("classifier.1.bias", (7,), (7,)),
    ]


def test_a_final_matrix_alone_has_a_head_by_the_rules_of_ghn2() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 4, bias=False))
    shape = (3, 2, 2)
    usual, other = (
        ghn_fast.capture(model, shape, rules=rules) for rules in (GraphRules.GHN2, GraphRules.GHN3)
    )
    assert [t.name for t in usual.targets if t.head] == ["3.weight"]
    assert [t.name for t in other.targets if t.head] == []


def test_rules_are_part_of_the_key() -> None:
    clear_cache()
    model = Gated(nn.Sigmoid())
    graphs = [
        cached_capture(model, (3, 8, 8), 50, rules=rules)[0]
        for rules in (GraphRules.GHN2, GraphRules.GHN3, GraphRules.GHN2)
    ]
    assert graphs[0] is graphs[2]
    assert [graph.rules for graph in graphs[:2]] == [GraphRules.GHN2, GraphRules.GHN3]
    clear_cache()


def test_published_rules_of_ghn2_leave_layer_scale() -> None:
    model = torchvision.models.convnext_tiny(num_classes=10)
    usual, published = (
        ghn_fast.capture(model, rules=rules)
        for rules in (GraphRules.GHN2, GraphRules.GHN2_PUBLISHED)
    )
    assert usual.num_nodes - published.num_nodes == 18
    assert sum(name.endswith("layer_scale") for name in published.skipped) == 18


class RMSNorm(nn.Module):
    """As language models write it out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Gate(nn.Module):
    """A block of a language model: RMS normalisation and an MLP with a gate, symbols first."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.norm, self.last = RMSNorm(6), nn.RMSNorm(6)
        self.gate, self.up = nn.Linear(6, 8, bias=False), nn.Linear(6, 8, bias=False)
        self.down, self.head = nn.Linear(8, 6, bias=False), nn.Linear(6, 11, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, symbols: Tensor) -> Tensor:
        x = self.table(symbols)
        h = self.norm(x)
        x = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return self.head(self.last(x))


def test_language_models() -> None:
    symbols = torch.arange(3)[None]
    graph = ghn_fast.capture(Gate(False), example_inputs=symbols, rules=GraphRules.LANGUAGE)
    assert not graph.skipped
    types = [LANGUAGE_NODE_TYPES[kind] for kind in graph.op_types.tolist()]
    assert types == [
        *("input", "pos_enc", "rmsnorm", "conv", "conv", "gate", "conv", "sum", "rmsnorm", "conv")
    ]
    tied = ghn_fast.capture(Gate(True), example_inputs=symbols, rules=GraphRules.LANGUAGE)
    assert tied.num_nodes == graph.num_nodes - 1
    assert tied.names.count("table.weight") == 1
    assert LANGUAGE_NODE_TYPES[tied.op_types[1]] == "conv"
    beside = ghn_fast.capture(
        Gate(False), example_inputs=symbols, rules=GraphRules.LANGUAGE_PUBLISHED
    )
    assert ("input0", "head.weight") in edges(beside)
    assert ("last.weight", "head.weight") in edges(graph)
    # RMS normalisation has a node of layer normalisation elsewhere.
    vision = ghn_fast.capture(Gate(False), example_inputs=symbols, rules=GraphRules.GHN3)
    assert int(vision.op_types.max()) < 15
    assert not vision.skipped
