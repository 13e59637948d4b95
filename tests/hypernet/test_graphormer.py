from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import ghn_fast
from ghn_fast.deepnets import SampledNets
from ghn_fast.graph import ArchGraph
from ghn_fast.graph.batch import GraphBatch
from ghn_fast.graph.rules import GraphRules
from ghn_fast.hypernet.decode import plain_layers
from ghn_fast.hypernet.graphormer import Graphormer
from ghn_fast.ops.decode_blocks import DecoderWeights, is_compiled
from tolerances import assert_close

CONFIG = ghn_fast.GHNConfig(
    max_shape=(16, 16, 5, 5),
    hid=16,
    propagator="graphormer",
    layers=2,
    heads=4,
    rules="ghn3",
    window="middle",
)


@pytest.fixture(scope="module")
def graphs() -> list[ArchGraph]:
    return [net.graph for net in SampledNets("train", 3, 2, rules=GraphRules.GHN3)]


def naive(model: Graphormer, x: Tensor, graph: ArchGraph) -> Tensor:
    """One graph with dense matrices, the bias of each pair computed for itself."""
    size = graph.num_nodes
    forward = torch.zeros(size, size, dtype=torch.int64)
    forward[graph.edges[:, 0], graph.edges[:, 1]] = graph.edges[:, 2]
    hops = forward == 1
    x = (
        x
        + model.in_degree(hops.sum(0).clamp(max=100))
        + model.out_degree(hops.sum(1).clamp(max=100))
    )
    x = x + model.input_distance(forward[0])
    pairs = torch.cat([model.distance(forward + 2), model.distance(forward.T + 2)], dim=2)
    bias = model.pair_bias(F.relu(model.pair_hidden(pairs)))
    for layer in model.layers:
        q, k, v = layer.qkv(layer.attention_norm(x)).view(size, 3, layer.heads, -1).unbind(1)
        logits = torch.einsum("ihd,jhd->ijh", q, k) / q.shape[2] ** 0.5 + bias
        mixed = torch.einsum("ijh,jhd->ihd", logits.softmax(1), v).flatten(1)
        x = x + layer.out(mixed)
        x = x + layer.mlp_out(F.gelu(layer.mlp_in(layer.mlp_norm(x))))
    return x


def test_a_batch_is_its_graphs_one_by_one(graphs: list[ArchGraph]) -> None:
    model = Graphormer(CONFIG).double()
    batch = GraphBatch(graphs)
    x = torch.randn(batch.num_nodes, CONFIG.hid, dtype=torch.float64, requires_grad=True)
    out = model(x, batch)
    sizes = [graph.num_nodes for graph in graphs]
    expected = torch.cat(
        [naive(model, part, graph) for part, graph in zip(x.split(sizes), graphs, strict=True)]
    )
    assert_close(out, expected, context="ghn")
    weight = torch.randn_like(out)
    weights = [x, *model.parameters()]
    got = torch.autograd.grad(out, weights, weight)
    want = torch.autograd.grad(expected, weights, weight)
    names = ["x", *dict(model.named_parameters())]
    for name, a, b in zip(names, got, want, strict=True):
        # A bias of all logits changes nothing: its gradient is what rounding leaves.
        scale = 1.0 if name == "pair_bias.bias" else None
        assert_close(a, b, context="gradient", scale=scale, name=name)


def test_a_batch_equals_each_alone(graphs: list[ArchGraph]) -> None:
    ghn = ghn_fast.GHN(CONFIG).eval()
    with torch.no_grad():
        together = ghn.embed(graphs).split([graph.num_nodes for graph in graphs])
        for graph, embedded in zip(graphs, together, strict=True):
            assert torch.equal(ghn.embed(graph), embedded)


def test_the_table_follows_the_weights(graphs: list[ArchGraph]) -> None:
    ghn = ghn_fast.GHN(CONFIG).eval()
    with torch.no_grad():
        before = ghn.embed(graphs)
        assert torch.equal(ghn.embed(graphs), before)
        ghn.propagator.pair_bias.bias[0] += 1
        ghn.propagator.distance.weight[3] += 1
        assert not torch.equal(ghn.embed(graphs), before)


def test_gradients_reach_every_weight(graphs: list[ArchGraph]) -> None:
    ghn = ghn_fast.GHN(CONFIG)
    flat, _ = ghn.predict_flat(graphs)
    flat.square().sum().backward()
    for name, weight in ghn.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name


def test_checkpoint(tmp_path_factory: pytest.TempPathFactory, graphs: list[ArchGraph]) -> None:
    ghn = ghn_fast.GHN(CONFIG).eval()
    loaded = ghn_fast.from_pretrained(
        ghn_fast.save_pretrained(ghn, tmp_path_factory.mktemp("ghn3") / "ckpt")
    )
    assert loaded.config == CONFIG
    assert torch.equal(loaded.embed(graphs), ghn.embed(graphs))


def test_graphs_by_other_rules_are_refused(graphs: list[ArchGraph]) -> None:
    ghn = ghn_fast.GHN(CONFIG)
    other = SampledNets("train", 1, 2)[0].graph
    with pytest.raises(
        ValueError, match=r"graphs\[1\]: made by GraphRules\(blocks='places'.*'ghn3'"
    ):
        ghn.predict_flat([graphs[0], other])


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="heads: got 3, needs a divisor of hid, 16"):
        ghn_fast.GHN(replace(CONFIG, heads=3))
    with pytest.raises(ValueError, match="virtual_edges: got 255, needs at most 254"):
        ghn_fast.GHN(replace(CONFIG, virtual_edges=255))
    with pytest.raises(ValueError, match="rules: got 'ghn9', needs one of ghn2, ghn2-published"):
        ghn_fast.GHNConfig(rules="ghn9")
    with pytest.raises(ValueError, match="window: got 'edge', needs one of corner, middle"):
        ghn_fast.GHNConfig(window="edge")


@pytest.mark.parametrize(
    ("name", "count"),
    [("ghn3-t", 6_906_632), ("ghn3-s", 35_810_368), ("ghn3-l", 214_668_960),
     ("ghn3-xl", 654_365_184)],
)  # fmt: skip
def test_published_sizes(name: str, count: int) -> None:
    with torch.device("meta"):
        ghn = ghn_fast.GHN(ghn_fast.GHNConfig.named(name))
    assert sum(weight.numel() for weight in ghn.parameters()) == count
    assert ghn_fast.GHNConfig.named(name, 10).max_shape[2:] == (11, 11)
    with pytest.raises(ValueError, match="name: got 'ghn3', needs one of ghn3-t"):
        ghn_fast.GHNConfig.named("ghn3")


@pytest.mark.library
def test_predicted_parameters_are_those_of_each_alone(graphs: list[ArchGraph]) -> None:
    """Bit for bit, on the compiled back end."""
    ghn = ghn_fast.GHN(CONFIG).eval()
    plain = plain_layers(ghn.blocks), plain_layers(ghn.vectors)
    weights = DecoderWeights(*(plain[0] or ()), *(plain[1] or ()))
    with torch.no_grad():
        assert is_compiled(torch.zeros(1, CONFIG.hid), weights)
        together = ghn.predict_tensors(graphs)
        for graph, tensors in zip(graphs, together, strict=True):
            (alone,) = ghn.predict_tensors([graph])
            assert list(alone) == list(tensors)
            for name, value in alone.items():
                assert torch.equal(value, tensors[name]), name
