from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import ghn_fast
from ghn_fast.deepnets import SampledNets
from ghn_fast.graph.batch import GraphBatch
from ghn_fast.hypernet import propagate
from networks import Branches, Shared, SmallCNN, Unsupported
from tolerances import assert_close

SMALL = ghn_fast.GHNConfig(max_shape=(16, 16, 5, 5), hid=8, num_classes=10)


def make(config: ghn_fast.GHNConfig = SMALL) -> ghn_fast.GHN:
    return ghn_fast.GHN(config).eval()


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_fills_in_place_and_returns_the_model() -> None:
    model = SmallCNN()
    before, pointers = values(model), [p.data_ptr() for p in model.parameters()]
    assert make()(model) is model
    assert pointers == [p.data_ptr() for p in model.parameters()]
    for name, after in values(model).items():
        assert not torch.equal(after, before[name]), name


def test_report_names_every_parameter_once() -> None:
    model = Unsupported()
    with pytest.warns(UserWarning, match=r"4 of 8 parameters were not predicted.*'gain'"):
        report = make().predict(model, input_shape=(3, 16, 16))
    names = [name for name, _ in model.named_parameters()]
    assert sorted([*report.predicted, *report.skipped]) == sorted(names)
    assert "PReLU" in report.skipped["act.weight"]
    assert set(report.seconds) == {
        "capture", "encode", "propagate", "decode", "expand", "bind", "total",
    }  # fmt: skip
    assert torch.equal(model.gain, torch.ones(8, 1, 1))


def test_one_warning_per_prediction() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make()(Unsupported(), input_shape=(3, 16, 16))
    assert len(caught) == 1


def test_shared_parameters_are_predicted_once() -> None:
    report = make().predict(Shared(), input_shape=(3, 16, 16))
    assert len(report.predicted) == 6
    assert not report.skipped


def test_graph_at_hand_gives_the_same() -> None:
    ghn, first, second = make(), Branches(), Branches()
    ghn(first, input_shape=(3, 16, 16))
    graph = ghn_fast.capture(second, (3, 16, 16), virtual_edges=3)
    ghn(second, graph=graph)
    for name, value in values(first).items():
        assert torch.equal(value, values(second)[name]), name


def test_graph_of_another_network_is_refused() -> None:
    ghn, graph = make(), ghn_fast.capture(SmallCNN(width=16))
    with pytest.raises(ValueError, match=r"'layers.0.weight' of shape \(16, 3, 5, 5\).*\(32, 3"):
        ghn(SmallCNN(width=32), graph=graph)
    with pytest.raises(ValueError, match="which Branches does not have"):
        ghn(Branches(), graph=graph)
    with pytest.raises(TypeError, match="graph: got str"):
        ghn(SmallCNN(), graph="resnet")
    with pytest.raises(TypeError, match="model: got int"):
        ghn(3)


def test_batch_of_graphs_equals_one_by_one() -> None:
    ghn = make()
    graphs = [
        ghn_fast.capture(SmallCNN()),
        ghn_fast.capture(Branches(), (3, 16, 16)),
        ghn_fast.capture(SmallCNN(width=8)),
    ]
    together = ghn.predict_tensors(graphs)
    for graph, tensors in zip(graphs, together, strict=True):
        (alone,) = ghn.predict_tensors([graph])
        assert list(alone) == list(tensors)
        for name in alone:
            assert_close(tensors[name], alone[name], context="ghn", name=name)


def test_gradients_reach_every_weight() -> None:
    ghn = make().train()
    graphs = [ghn_fast.capture(SmallCNN()), ghn_fast.capture(Branches(), (3, 16, 16))]
    flat, _ = ghn.predict_flat(graphs)
    flat.square().sum().backward()
    for name, parameter in ghn.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_batch_norm_uses_batch_statistics_in_eval_mode() -> None:
    model = SmallCNN().eval()
    report = make().predict(model)
    assert report.batch_statistics == ["layers.4"]
    model.eval()
    norm = model.layers[4]
    seen: list[tuple[Tensor, Tensor]] = []
    norm.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    model(torch.randn(8, 3, 32, 32))
    x, output = seen[0]
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = x.var((0, 2, 3), keepdim=True, unbiased=False)
    scale, shift = norm.weight.view(-1, 1, 1), norm.bias.view(-1, 1, 1)
    expected = (x - mean) / (variance + norm.eps).sqrt() * scale + shift
    assert_close(output, expected, context="ghn")


def test_running_statistics_can_stay() -> None:
    model = SmallCNN()
    report = make().predict(model, batch_statistics=False)
    assert report.batch_statistics == []
    assert model.layers[4].running_mean is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_kept(dtype: torch.dtype) -> None:
    ghn, model, reference = make(), SmallCNN().to(dtype), SmallCNN()
    ghn(model)
    ghn(reference)
    for name, value in values(model).items():
        assert value.dtype == dtype
        assert torch.equal(value, values(reference)[name].to(dtype)), name


@pytest.mark.filterwarnings("ignore:.*parameters were not predicted:UserWarning")
@pytest.mark.parametrize("size", [32, 40])
def test_networks_of_deepnets_say_their_input_shape(size: int) -> None:
    item = SampledNets("test", 10, 0)[3]
    network, reference = item.build(image_size=size), item.build(image_size=size)
    ghn = make()
    ghn(network)
    ghn(reference, graph=item.graph_for(num_classes=10, image_size=size))
    for name in ghn.predict(network).predicted:
        assert torch.equal(values(network)[name], values(reference)[name]), name


def test_parameters_on_meta_are_reported() -> None:
    with pytest.warns(UserWarning, match="meta device"):
        report = make().predict(SmallCNN().to("meta"))
    assert not report.predicted
    assert all("meta" in reason for reason in report.skipped.values())


def test_head_can_be_left_alone() -> None:
    model = SmallCNN(num_classes=7)
    before = values(model)
    with pytest.warns(UserWarning, match="2 of 10"):
        report = make().predict(model, head=False)
    assert set(report.skipped) == {"layers.10.weight", "layers.10.bias"}
    assert all("head=False" in reason for reason in report.skipped.values())
    assert torch.equal(model.layers[10].weight, before["layers.10.weight"])


@pytest.mark.parametrize("classes", [3, 10, 25])
def test_any_number_of_classes(classes: int) -> None:
    ghn = make()
    model, reference = SmallCNN(classes), SmallCNN(10)
    ghn(reference)
    model_graph = ghn_fast.capture(model)
    tensors = ghn.predict_tensors([model_graph])[0]
    assert tensors["layers.10.weight"].shape == (classes, 128)
    ghn(model)
    # Without gradients it is decoded by another op.
    assert_close(model.layers[10].weight, tensors["layers.10.weight"], context="ghn")


def test_embed_takes_model_graph_and_graphs() -> None:
    ghn, model = make(), SmallCNN()
    graph = ghn_fast.capture(model)
    expected = ghn.embed(model)
    assert expected.shape == (graph.num_nodes, SMALL.hid)
    assert not expected.requires_grad
    assert torch.equal(ghn.embed(graph), expected)
    assert ghn.embed([graph, graph]).shape == (2 * graph.num_nodes, SMALL.hid)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"virtual_edges": 1, "normalize": False, "layer_norm": False}, "message"),
        ({"propagator": "mlp"}, "layers"),
        ({"steps": 3}, "virtual_message"),
        ({"hid": 24, "max_shape": (20, 12, 7, 7), "num_classes": 3}, "virtual_message"),
    ],
)
def test_variants(changes: dict[str, object], names: str) -> None:
    config = ghn_fast.GHNConfig.from_dict({**SMALL.to_dict(), **changes})
    ghn = make(config)
    assert any(name.startswith(f"propagator.{names}") for name, _ in ghn.named_parameters())
    assert ("norm.weight" in ghn.state_dict()) is config.layer_norm
    model = ghn(SmallCNN())
    assert all(value.isfinite().all() for value in values(model).values())


@pytest.fixture
def registry() -> Iterator[None]:
    before = dict(propagate._registry)
    yield
    propagate._registry.clear()
    propagate._registry.update(before)


def test_own_propagator(registry: None) -> None:
    class Mean(nn.Module):
        def __init__(self, config: ghn_fast.GHNConfig) -> None:
            super().__init__()
            self.linear = nn.Linear(config.hid, config.hid)

        def forward(self, x: Tensor, batch: GraphBatch) -> Tensor:
            assert batch.edges.shape[1] == 3
            return self.linear(x) + x.mean(0)

    ghn_fast.register_propagator("mean", Mean)
    config = ghn_fast.GHNConfig.from_dict({**SMALL.to_dict(), "propagator": "mean"})
    assert isinstance(make(config).propagator, Mean)
    make(config)(SmallCNN())
    with pytest.raises(ValueError, match="'mean' is registered already"):
        ghn_fast.register_propagator("mean", Mean)


def test_torch_geometric_propagator(registry: None) -> None:
    pytest.importorskip("torch_geometric", reason="the extra 'pyg' is not installed")
    import importlib.util
    from pathlib import Path

    path = Path(__file__).parents[2] / "examples" / "propagator_pyg.py"
    spec = importlib.util.spec_from_file_location("propagator_pyg", path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main()


def test_unknown_propagator_lists_the_known() -> None:
    with pytest.raises(
        ValueError, match=r"'gcn', registered are \['gated_gnn', 'graphormer', 'mlp'\]"
    ):
        make(ghn_fast.GHNConfig(propagator="gcn"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hid": 6}, "hid: got 6"),
        ({"max_shape": (64, 64, 11, 5)}, "max_shape"),
        ({"num_classes": 0}, "num_classes: got 0"),
        ({"virtual_edges": 0}, "virtual_edges: got 0"),
        ({"depth": 2}, "unknown entry 'depth'"),
    ],
)
def test_bad_configurations(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ghn_fast.GHNConfig.from_dict(changes)


class TwoInputs(nn.Module):
    """An image and a vector, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.vector = nn.Linear(5, 8)
        self.head = nn.Linear(8, 10)

    def forward(self, image: torch.Tensor, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.conv(image).mean((2, 3)) + self.vector(vector)
        return {"logits": self.head(features)}


@pytest.mark.parametrize(
    "inputs",
    [
        {"input_shape": [(3, 16, 16), (5,)]},
        {"example_inputs": (torch.zeros(2, 3, 16, 16), torch.zeros(2, 5))},
        {"example_inputs": {"vector": torch.zeros(1, 5), "image": torch.zeros(1, 3, 16, 16)}},
    ],
    ids=["shapes", "positional", "named"],
)
def test_several_inputs(inputs: dict[str, object]) -> None:
    ghn, model = make(), TwoInputs()
    for _ in range(2):
        report = ghn.predict(model, **inputs)  # type: ignore[arg-type]
        assert report.predicted == [name for name, _ in model.named_parameters()]
    assert ghn.compile_plan(model, **inputs)().skipped == {}  # type: ignore[arg-type]
    assert len(ghn.embed(model, **inputs)) > 6  # type: ignore[arg-type]
