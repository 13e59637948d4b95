"""Parameters that are recognised by their use."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

import ghn_fast
from ghn_fast.capturing import capture
from ghn_fast.graph import NODE_TYPES, ArchGraph, Target
from ghn_fast.hypernet.decode_plan import plan_decoding
from graphs import op_histogram


def targets(graph: ArchGraph) -> dict[str, Target]:
    return {target.name: target for target in graph.targets}


def kinds(graph: ArchGraph) -> dict[str, str]:
    return {t.name: NODE_TYPES[int(graph.op_types[t.node])] for t in graph.targets}


def hops(graph: ArchGraph) -> set[tuple[str, str]]:
    names = graph.names
    return {(names[u], names[v]) for u, v, d in graph.edges.tolist() if d == 1}


def check(model: nn.Module, graph: ArchGraph) -> None:
    """Every parameter is a target of its shape or skipped, and prediction fills the targets."""
    params = dict(model.named_parameters())
    assert set(targets(graph)) | set(graph.skipped) == set(params)
    assert not set(targets(graph)) & set(graph.skipped)
    for target in graph.targets:
        assert target.shape == tuple(params[target.name].shape)
        assert (
            target.predicted_shape == ()
            or torch.Size(target.predicted_shape).numel() == params[target.name].numel()
        )
    config = ghn_fast.GHNConfig(hid=8, max_shape=(16, 16, 3, 3))
    for parameter in params.values():
        nn.init.constant_(parameter, torch.nan)
    if graph.skipped:
        with pytest.warns(UserWarning, match="not predicted"):
            report = ghn_fast.GHN(config).predict(model, graph)
    else:
        report = ghn_fast.GHN(config).predict(model, graph)
    assert set(report.predicted) == set(targets(graph))
    for name in report.predicted:
        assert bool(params[name].isfinite().all()), name


class Functional(nn.Module):
    """Convolution and linear layer by plain parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 1, 3, 3))
        self.offset = nn.Parameter(torch.randn(8))
        self.matrix = nn.Parameter(torch.randn(10, 8))
        self.shift = nn.Parameter(torch.randn(10))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x[:, :2].repeat(1, 4, 1, 1), self.kernel, self.offset, groups=8, dilation=2)
        return F.linear(x.mean((2, 3)), self.matrix, self.shift)


def test_functional_layers_equal_modules() -> None:
    model = Functional()
    graph = capture(model, (3, 16, 16))
    assert kinds(graph) == {
        "kernel": "dil_conv",
        "offset": "bias",
        "matrix": "conv",
        "shift": "bias",
    }
    assert [t.name for t in graph.targets if t.head] == ["matrix", "shift"]
    check(model, graph)


class Factors(nn.Module):
    """Products, einsum, scales, shifts, and a single number."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(3, 12))
        self.heads = nn.Parameter(torch.randn(4, 12, 5))
        self.scale = nn.Parameter(torch.ones(5))
        self.shift = nn.Parameter(torch.zeros(1, 1, 5))
        self.alpha = nn.Parameter(torch.ones(()))
        self.head = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2) @ self.matrix
        x = torch.einsum("bnc,hcd->bhnd", x, self.heads) * self.scale + self.shift
        return self.head((x * self.alpha).mean(2).flatten(1))


def test_products_scales_and_shifts() -> None:
    model = Factors()
    graph = capture(model, (3, 8, 8))
    found = targets(graph)
    assert kinds(graph)["scale"] == "ln"
    assert kinds(graph)["shift"] == "bias"
    # The matrix is (in, out): three terms in each of its sums, twelve in those of the heads.
    assert found["matrix"].fan_in == 3
    assert (found["heads"].predicted_shape, found["heads"].fan_in) == ((48, 5), 12)
    assert found["shift"].predicted_shape == (5,)
    assert "single number" in graph.skipped["alpha"]
    assert ("scale", "shift") in hops(graph)
    check(model, graph)


def test_fan_in_reaches_the_plan() -> None:
    graph = capture(Factors(), (3, 8, 8))
    plan = plan_decoding([graph], ghn_fast.GHNConfig())
    scales = {name: row.scale for name, row in zip(plan.ranges[0], plan.params.rows, strict=True)}
    assert scales["matrix"] == (2 / 3) ** 0.5
    assert scales["heads"] == (2 / 12) ** 0.5
    shapes = {name: row.shape for name, row in zip(plan.ranges[0], plan.params.rows, strict=True)}
    assert shapes["heads"] == (48, 5, 1, 1)
    assert plan.ranges[0]["heads"][1] == (4, 12, 5)


class Attention(nn.Module):
    """Tokens of one or two inputs through ``nn.MultiheadAttention``."""

    def __init__(self, keys: int | None, *, batch_first: bool = True) -> None:
        super().__init__()
        self.query = nn.Linear(6, 16)
        self.key = nn.Linear(6, keys or 16)
        self.batch_first = batch_first
        self.attention = nn.MultiheadAttention(
            16, 2, kdim=keys, vdim=keys, batch_first=batch_first, add_bias_kv=keys is not None
        )
        self.self_attention = nn.MultiheadAttention(16, 2, bias=False, batch_first=batch_first)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, object]:
        if not self.batch_first:
            x, y = x.transpose(0, 1), y.transpose(0, 1)
        query, key = self.query(x), self.key(y)
        x = self.attention(query, key, key)[0] + query
        x, weights = self.self_attention(x, x, x)
        return {"weights": weights.shape, "out": (self.head(x.mean(int(self.batch_first))),)}


@pytest.mark.parametrize("keys", [None, 12])
@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_attention(keys: int | None, batch_first: bool) -> None:
    model = Attention(keys, batch_first=batch_first)
    graph = capture(model, [(4, 6), (5, 6)])
    assert not graph.skipped
    assert op_histogram(graph)[NODE_TYPES.index("msa")] == 2
    found = hops(graph)
    if keys is None:
        assert kinds(graph)["attention.in_proj_weight"] == "conv"
        assert ("query.bias", "attention.in_proj_weight") in found
        assert ("key.bias", "attention.in_proj_weight") in found
    else:
        assert ("query.bias", "attention.q_proj_weight") in found
        assert ("key.bias", "attention.v_proj_weight") in found
        assert kinds(graph)["attention.bias_k"] == "bias"
    assert ("self_attention.in_proj_weight", "msa") in found
    assert ("msa", "self_attention.out_proj.weight") in found
    check(model, graph)


def test_encoder_layer() -> None:
    model = nn.Sequential(
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Flatten(), nn.Linear(64, 10)
    )
    graph = capture(model.eval(), (4, 16))
    assert not graph.skipped
    assert op_histogram(graph)[NODE_TYPES.index("msa")] == 1
    assert torch.equal(graph.edges, capture(model.train(), (4, 16)).edges)


class Recurrent(nn.Module):
    def __init__(self, layer: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer = layer(8, 6, 2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(layer: type[nn.RNNBase]) -> None:
    model = Recurrent(layer)
    graph = capture(model, (50, 8))
    assert not graph.skipped
    # One node per parameter, however long the sequence: input, 18 parameters, 2 concatenations.
    assert graph.num_nodes == 21
    assert ("layer.bias_ih_l0", "layer.weight_hh_l0") in hops(graph)
    check(model, graph)


@pytest.mark.parametrize(
    ("layers", "shape", "seen", "fan_in"),
    [
        ([nn.Conv1d(3, 8, 5), nn.BatchNorm1d(8)], (3, 32), (8, 3, 5, 1), None),
        ([nn.Conv3d(3, 8, (2, 3, 3)), nn.BatchNorm3d(8)], (3, 8, 8, 8), (8, 6, 3, 3), None),
        ([nn.ConvTranspose2d(3, 8, 4, stride=2)], (3, 8, 8), (3, 8, 4, 4), 12),
        ([nn.ConvTranspose1d(3, 8, 4)], (3, 8), (3, 8, 4, 1), 12),
    ],
)
def test_other_convolutions(
    layers: list[nn.Module], shape: tuple[int, ...], seen: tuple[int, ...], fan_in: int | None
) -> None:
    model = nn.Sequential(*layers, nn.GroupNorm(2, 8), nn.Flatten(2), Mean(), nn.Linear(8, 10))
    graph = capture(model, shape)
    target = targets(graph)["0.weight"]
    assert (target.predicted_shape, target.fan_in) == (seen, fan_in)
    assert not graph.skipped
    check(model, graph)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(2)


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        (nn.BatchNorm2d(8), "bn"),
        (nn.GroupNorm(2, 8), "ln"),
        (nn.InstanceNorm2d(8, affine=True), "ln"),
        (nn.Sequential(nn.Flatten(), nn.RMSNorm(8 * 36), nn.Unflatten(1, (8, 6, 6))), "ln"),
        (nn.SyncBatchNorm(8), "bn"),
    ],
)
def test_norm_layers(norm: nn.Module, kind: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.Flatten(), nn.Linear(288, 10))
    graph = capture(model, (3, 8, 8))
    name = next(name for name, _ in model.named_parameters() if name.startswith("1."))
    assert kinds(graph)[name] == kind
    assert not graph.skipped
    check(model, graph)


class Tables(nn.Module):
    """Tokens and tables, some of which are better left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.grid = nn.Parameter(torch.zeros(1, 8, 6, 6))
        self.layer_scale = nn.Parameter(torch.full((8, 1, 1), 1e-6))
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.tokens = nn.Parameter(torch.zeros(1, 4, 8))
        self.positions = nn.Parameter(torch.zeros(1, 41, 8))
        self.relative = nn.Parameter(torch.zeros(7, 41))
        self.logits = nn.Parameter(torch.zeros(41, 41))
        self.temperature = nn.Parameter(torch.zeros(1))
        self.head = nn.Linear(8, 10)
        self.register_buffer("index", torch.zeros(41, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x) + self.grid
        x = x + self.layer_scale * x.relu()
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.token, self.tokens, x], 1) + self.positions
        scores = x @ x.transpose(1, 2) * self.temperature.exp() + self.logits
        x = (scores + self.relative[self.index % 7]).softmax(-1) @ x
        return self.head(x.mean(1))


def test_tables_tokens_and_layer_scales() -> None:
    model = Tables()
    graph = capture(model, (3, 8, 8))
    found = kinds(graph)
    assert found["grid"] == "pos_enc"
    assert found["layer_scale"] == "bn"
    assert found["token"] == "bias"
    reasons = {
        "tokens": "several learned tokens",
        "positions": "positions of a sequence",
        "relative": "read by index",
        "logits": "attention weights",
        "temperature": "passes through Exp",
    }
    assert set(graph.skipped) == set(reasons)
    for name, reason in reasons.items():
        assert reason in graph.skipped[name]
    # What only skipped parameters lead to is no path from the input.
    assert {target for source, target in hops(graph) if source == "input"} == {
        "conv.weight",
        "token",
    }
    check(model, graph)


def test_a_layer_scale_starts_near_one() -> None:
    model = Tables()
    with pytest.warns(UserWarning):
        ghn_fast.GHN().predict(model, capture(model, (3, 8, 8)))
    assert bool(((model.layer_scale > 0.2) & (model.layer_scale < 1.8)).all())


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning):
        return weight_norm(layer)


@pytest.mark.parametrize(
    ("wrap", "main", "rest"),
    [
        (parametrizations.weight_norm, "parametrizations.weight.original1", 1),
        (parametrizations.spectral_norm, "parametrizations.weight.original", 0),
        (old_weight_norm, "weight_v", 1),
        (spectral_norm, "weight_orig", 0),
    ],
)
def test_computed_weights(wrap: Callable[[nn.Module], nn.Module], main: str, rest: int) -> None:
    model = nn.Sequential(wrap(nn.Conv2d(3, 8, 3)), nn.Flatten(), wrap(nn.Linear(288, 10)))
    graph = capture(model, (3, 8, 8))
    assert hops(graph) == {
        ("input", f"0.{main}"),
        (f"0.{main}", "0.bias"),
        ("0.bias", f"2.{main}"),
        (f"2.{main}", "2.bias"),
    }
    assert len(graph.skipped) == 2 * rest
    assert all("a weight is computed from it" in reason for reason in graph.skipped.values())


def test_standardised_weights() -> None:
    class Standardised(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean(1, keepdim=True)
            return F.linear(x, weight / weight.pow(2).sum(1, keepdim=True).sqrt(), self.bias)

    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), Standardised(288, 10))
    graph = capture(model, (3, 8, 8))
    assert ("0.bias", "2.weight") in hops(graph)
    assert ("2.weight", "2.bias") in hops(graph)
    check(model, graph)


def test_weights_behind_unknown_functions_are_skipped() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 10))
    parametrizations.orthogonal(model[2])
    graph = capture(model, (3, 8, 8))
    assert "2.parametrizations.weight.original" in graph.skipped
    assert ("0.bias", "2.bias") in hops(graph)


def test_embedding_is_left_alone() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(100, 16)
            self.head = nn.Linear(16, 10)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.table(ids).mean(1))

    model = Words()
    graph = capture(model, example_inputs=torch.zeros(1, 7, dtype=torch.long))
    assert set(graph.skipped) == {"table.weight"}
    check(model, graph)


def test_classifier_without_bias_has_its_head() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 8, bias=False), nn.Linear(8, 10, bias=False))
    graph = capture(model, (3, 4, 4))
    assert [t.name for t in graph.targets if t.head] == ["2.weight"]
