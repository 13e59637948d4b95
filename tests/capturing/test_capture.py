from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torchvision
from torch import Tensor, nn

import ghn_fast
from ghn_fast.capturing import CaptureError, capture
from ghn_fast.graph import NODE_TYPES, ArchGraph
from graphs import op_histogram
from networks import Branches, Shared, SmallCNN, Tied, Unsupported

CONFIG_EDGES = {"ghn1_cifar10": 1}


def kinds(graph: ArchGraph) -> list[str]:
    return [NODE_TYPES[kind] for kind in graph.op_types.tolist()]


def hops(graph: ArchGraph) -> set[tuple[str, str]]:
    return {
        (graph.names[source], graph.names[target])
        for source, target, distance in graph.edges.tolist()
        if distance == 1
    }


def check_published(path: Path) -> None:
    published = json.loads(path.read_text())
    classes = 1000 if "imagenet" in published["config"] else 10
    if published["model"] == "SmallCNN":
        model: nn.Module = SmallCNN(classes)
    else:
        model = torchvision.models.get_model(published["model"], num_classes=classes)
    graph = capture(model.eval(), virtual_edges=CONFIG_EDGES.get(published["config"], 50))
    assert graph.num_nodes == published["num_nodes"]
    assert graph.num_edges == published["num_edges"]
    assert op_histogram(graph) == published["op_histogram"]
    assert int(graph.edges[:, 2].max()) == published["max_distance"]


@pytest.mark.parametrize("name", ["SmallCNN", "resnet18"])
def test_graph_equals_the_published_one(small_fixtures_dir: Path, name: str) -> None:
    check_published(small_fixtures_dir / "parity" / f"ghn2_cifar10-{name}.json")


def test_all_graphs_equal_the_published_ones(fixtures_dir: Path) -> None:
    paths = sorted((fixtures_dir / "parity").glob("*.json"))
    assert len(paths) >= 7
    for path in paths:
        check_published(path)


def test_branches() -> None:
    graph = capture(Branches(), (3, 16, 16), virtual_edges=1)
    assert hops(graph) == {
        ("input", "stem.weight"),
        ("stem.weight", "left.weight"),
        ("left.weight", "left.bias"),
        ("left.bias", "sum"),
        ("stem.weight", "max_pool"),
        ("max_pool", "sum"),
        ("sum", "concat"),
        ("stem.weight", "right.weight"),
        ("right.weight", "concat"),
        ("concat", "norm.weight"),
        ("norm.weight", "head.weight"),
        ("head.weight", "head.bias"),
    }
    types = dict(zip(graph.names, kinds(graph), strict=True))
    assert types["left.weight"] == "sep_conv"
    assert types["right.weight"] == "dil_conv"
    assert types["norm.weight"] == "ln"
    assert types["head.bias"] == "bias"
    shapes = dict(zip(graph.names, graph.shapes, strict=True))
    assert shapes["max_pool"] == (1, 1, 3, 3)
    assert shapes["right.weight"] == (8, 4, 3, 3)
    assert shapes["sum"] is None
    assert graph.shift_names == {graph.names.index("norm.weight"): "norm.bias"}
    assert not graph.skipped


def test_nodes_are_in_topological_order() -> None:
    graph = capture(Branches(), (3, 16, 16))
    assert bool((graph.edges[:, 0] < graph.edges[:, 1]).all())
    assert kinds(graph)[0] == "input"


def test_unsupported_parameters_are_listed_with_the_reason() -> None:
    graph = capture(Unsupported(), (3, 16, 16))
    assert set(graph.skipped) == {"act.weight", "gain", "unused.weight", "unused.bias"}
    assert "PReLU" in graph.skipped["act.weight"]
    assert "not on a path" in graph.skipped["unused.weight"]
    assert ("conv.bias", "head.weight") in hops(graph)


def test_tied_parameters_are_predicted_once() -> None:
    graph = capture(Tied(), (3, 16, 16))
    assert graph.aliases == {"second.weight": "first.weight"}
    assert [t.name for t in graph.targets].count("first.weight") == 1


def test_shared_parameters_are_predicted_once() -> None:
    graph = capture(Shared(), (3, 16, 16))
    assert graph.aliases == {"second.weight": "first.weight", "second.bias": "first.bias"}
    names = [target.name for target in graph.targets]
    assert names.count("first.weight") == 1
    assert len(set(names)) == len(names) == 6
    assert graph.names.count("first.weight") == 2


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [SmallCNN, Shared, Tied])
def test_capture_changes_nothing(training: bool, kind: type[nn.Module]) -> None:
    model = nn.Sequential(kind(), nn.Dropout(0.5)).train(training)
    calls: list[str] = []
    model.register_forward_hook(lambda *_: calls.append("hook"))
    before = copy.deepcopy(model.state_dict())
    storage = {name: p.data_ptr() for name, p in model.named_parameters()}
    flags = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    rng = torch.random.get_rng_state()
    capture(model, (3, 32, 32))
    assert torch.equal(rng, torch.random.get_rng_state())
    assert flags == [module.training for module in model.modules()]
    assert hooks == [len(module._forward_hooks) for module in model.modules()]
    assert storage == {name: p.data_ptr() for name, p in model.named_parameters()}
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_failing_forward_names_the_layer_and_changes_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 30 * 30, 10))
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    with pytest.raises(CaptureError, match=r"layer '2' \(Linear\).*input_shape"):
        capture(model)
    assert before == {name: p.data_ptr() for name, p in model.named_parameters()}
    assert not nn.modules.module._global_forward_pre_hooks
    assert capture(model, (3, 32, 32)).num_nodes == 5


def test_frozen_parameters_are_captured() -> None:
    model = SmallCNN()
    expected = capture(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert capture(model).names == expected.names
    assert not any(p.requires_grad for p in model.parameters())


def test_half_precision_and_dict_outputs() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = SmallCNN()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": self.body(x)}

    graph = capture(Wrapped().half())
    assert graph.num_nodes == 12


def test_one_pixel_features_in_training_mode() -> None:
    model = nn.Sequential(SmallCNN(), nn.BatchNorm1d(10), nn.Linear(10, 5)).train()
    assert capture(model, (3, 24, 24)).num_nodes == 15
    small = torchvision.models.resnet18(num_classes=10).train()
    graph = capture(small, (3, 32, 32))
    assert torch.equal(graph.edges, capture(small.eval(), (3, 224, 224)).edges)
    ghn_fast.use_batch_statistics(small)
    assert torch.equal(graph.edges, capture(small, (3, 32, 32)).edges)
    assert small.bn1.running_mean is None


def test_plain_tensors_of_a_network() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
            self.body = SmallCNN()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x - self.mean)

    assert torch.equal(capture(Shifted()).edges, capture(SmallCNN()).edges)


def test_declared_node_types() -> None:
    class Scale(nn.Module):
        ghn_node_types: ClassVar[dict[str, str]] = {"gain": "conv"}

        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(3, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gain

    graph = capture(nn.Sequential(Scale(), SmallCNN()))
    assert graph.names[1] == "0.gain"
    Scale.ghn_node_types = {"gain": "sum"}
    with pytest.raises(ValueError, match="got 'sum', needs one of conv, sep_conv"):
        capture(nn.Sequential(Scale(), SmallCNN()))


def test_lazy_and_empty_parameters() -> None:
    with pytest.raises(CaptureError, match="run the network once"):
        capture(nn.Sequential(nn.LazyConv2d(4, 3)))
    with pytest.warns(UserWarning, match="zero-element"):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 0))
    assert capture(model, (3, 8, 8)).skipped["2.weight"] == "it has no elements"


def test_shift_that_cannot_be_predicted_says_why() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LayerNorm([8, 6, 6]))
    skipped = capture(model, (3, 8, 8)).skipped
    assert "needs one dimension" in skipped["1.weight"]
    assert "needs one dimension" in skipped["1.bias"]


def test_output_without_parameters() -> None:
    with pytest.raises(CaptureError, match="depends on no parameter"):
        capture(nn.Sequential(nn.ReLU()))


@pytest.mark.parametrize("shape", [(), (3, 0, 32), (3.0, 32, 32), 32])
def test_bad_input_shape(shape: object) -> None:
    with pytest.raises(ValueError, match="input_shape"):
        capture(SmallCNN(), shape)  # type: ignore[arg-type]


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match=r"model: got str"):
        capture("resnet18")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="virtual_edges: got 0"):
        capture(SmallCNN(), virtual_edges=0)


def test_other_virtual_edges() -> None:
    graph = capture(SmallCNN(), virtual_edges=50)
    assert torch.equal(graph.with_virtual_edges(3).edges, graph.edges[graph.edges[:, 2] <= 3])
    again = graph.with_virtual_edges(3).with_virtual_edges(50)
    assert torch.equal(again.edges, graph.edges)


def test_networkx_has_nodes_and_edges() -> None:
    graph = capture(Branches(), (3, 16, 16))
    directed = graph.to_networkx()
    assert directed.number_of_nodes() == graph.num_nodes
    assert directed.number_of_edges() == int((graph.edges[:, 2] == 1).sum())
    assert directed.nodes[0]["op"] == "input"
    assert graph.to_networkx(virtual_edges=True).number_of_edges() == graph.num_edges
