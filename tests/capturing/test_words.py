"""What a capture says about a network that it cannot follow, or not to the end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ghn_fast
from ghn_fast.capturing import CaptureError, capture


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(8, 8), nn.Linear(8, 3)

    def before(self, h: Tensor) -> Tensor:
        return h

    def after(self, y: Tensor) -> Any:
        return y

    def forward(self, x: Tensor) -> Any:
        return self.after(self.out(self.before(F.relu(self.a(x)))))


def with_method(name: str, function: Any) -> Two:
    return type("Changed", (Two,), {name: lambda self, x: function(x)})()


EXPECTED = capture(Two(), (8,))


# ---- values behind the last parameter


def chosen(y: Tensor) -> Tensor:
    while y.shape[0] < 3 and float(y.max()) < 10:
        y = torch.cat((y, y))
    return y


AFTER = {
    "condition": lambda y: y if y.sum() > 0 else -y,
    "number": lambda y: {"scores": y, "best": int(y.argmax())},
    "list": lambda y: [y, y.softmax(-1).tolist()],
    "array": lambda y: y.detach().cpu().numpy(),
    "loop": chosen,
    "in": lambda y: (y, 1 in y.argmax(-1)),
    "words": lambda y: (y, "".join("abc"[i] for i in y.argmax(-1))),
    # compared by hand: it is the network that compares.
    "assertion": lambda y: y if torch.allclose(y, y) else None,
}


@pytest.mark.parametrize("name", AFTER)
def test_values_behind_the_last_parameter(name: str) -> None:
    graph = capture(with_method("after", AFTER[name]), (8,))
    assert graph.names == EXPECTED.names
    assert torch.equal(graph.edges, EXPECTED.edges)
    assert not graph.skipped
    assert graph.partial is not None
    assert "the network itself" in graph.partial
    assert "asks for values" in graph.partial


def test_the_report_says_that_the_graph_is_partial() -> None:
    ghn = ghn_fast.GHN(ghn_fast.GHNConfig(hid=8, max_shape=(16, 16, 3, 3))).eval()
    model = with_method("after", AFTER["condition"])
    for _ in range(2):
        report = ghn.predict(model, input_shape=(8,))
        assert report.partial is not None
        assert not report.skipped
    predictor = ghn.compile_plan(model, input_shape=(8,))
    assert predictor.report.partial == predictor().partial == report.partial
    assert ghn.predict(Two(), input_shape=(8,)).partial is None


@pytest.mark.parametrize("name", AFTER)
def test_values_before_the_last_parameter(name: str) -> None:
    if name in ("number", "list", "array", "in", "words"):
        function: Any = lambda h: h * len(str(AFTER[name](h)))  # noqa: E731
    else:
        function = AFTER[name]
    with pytest.raises(CaptureError, match="depends on values before it comes to its last"):
        capture(with_method("before", function), (8,))


SELECT = {
    "mask": lambda h: h[h.sum(-1) > 0],
    "mask of all": lambda h: h[h > 0].view(-1, 8),
    "masked_select": lambda h: h.masked_select(h > 0).view(-1, 8),
    "nonzero": lambda h: h[(h.sum(-1) > 0).nonzero()[:, 0]],
    "where": lambda h: h[torch.where(h.sum(-1) > 0)[0]],
    "write": lambda h: h.clone().index_put((h > 0,), torch.zeros(())),
    "set": lambda h: F.relu(h.clone().__setitem__(h > 0, 0.0) or h),
    "topk": lambda h: h.gather(1, h.topk(8, -1)[1]),
    "sort": lambda h: h[:, h[0].argsort()],
}


@pytest.mark.parametrize("name", SELECT)
def test_selections_by_features_take_all(name: str) -> None:
    graph = capture(with_method("before", SELECT[name]), (8,))
    assert not graph.skipped
    if name not in ("topk", "sort", "write"):
        assert graph.partial is not None
        assert "all elements" in graph.partial


def test_what_decides_a_choice_is_on_a_path() -> None:
    class Routed(Two):
        def __init__(self) -> None:
            super().__init__()
            self.route, self.dead = nn.Linear(8, 8), nn.Linear(8, 8)

        def before(self, h: Tensor) -> Tensor:
            self.dead(h)
            return h.gather(1, self.route(h).topk(8, -1)[1])

    graph = capture(Routed(), (8,))
    assert set(graph.skipped) == {"dead.weight", "dead.bias"}
    assert "not on a path" in graph.skipped["dead.weight"]


# ---- errors


def error_of(model: nn.Module, **inputs: Any) -> str:
    with pytest.raises(CaptureError) as error:
        capture(model, **(inputs or {"input_shape": (8,)}))
    return str(error.value)


def test_the_input_size_is_blamed_for_sizes_alone() -> None:
    def missing(h: Tensor) -> Tensor:
        raise KeyError("no such layer")

    for model in (
        nn.Linear(7, 2),
        nn.Sequential(nn.Linear(8, 4), nn.Unflatten(1, (3, 2))),
        nn.Sequential(nn.Unflatten(1, (2, 4)), nn.Conv1d(3, 4, 1)),
        with_method("before", lambda h: h.view(3, 3)),
        with_method("before", lambda h: h + torch.zeros(3)),
        with_method("before", lambda h: torch.cat((h, torch.zeros(2, 8)), 1)),
    ):
        assert "input_shape" in error_of(model)
    for function in (
        missing,
        lambda h: h.no_such_method(),
        lambda h: h[9],
        lambda h: [h][3],
        lambda h: (1 / 0) * h,
        lambda h: h if h.sum() > 0 else -h,
        lambda h: torch.ones(3)[7],
    ):
        assert "input_shape" not in error_of(with_method("before", function))


def test_errors_name_the_layer() -> None:
    assert "layer 'a' (Linear)" in error_of(Two(), input_shape=(7,))
    assert "no such layer" in error_of(with_method("before", lambda h: {}["no such layer"]))


def test_networks_that_are_nested_too_deeply() -> None:
    model: nn.Module = nn.Linear(8, 8)
    for _ in range(3000):
        model = nn.Sequential(model)
    try:
        assert "nested too deeply" in error_of(model)
    finally:
        while isinstance(model, nn.Sequential):
            model = model._modules.pop("0")  # type: ignore[assignment]


# ---- parameters that cannot be predicted


class Held(Two):
    """Uses a matrix of any kind."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(weight, requires_grad=weight.is_floating_point())

    def before(self, h: Tensor) -> Tensor:
        return F.relu(F.linear(h, self.w.to(h.dtype) if self.w.layout is torch.strided else
                               self.w.to_dense()))  # fmt: skip


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (torch.zeros(8, 8).to_sparse(), "sparse"),
        (torch.zeros(8, 8, dtype=torch.int32), "int32"),
    ],
)
def test_parameters_of_another_kind_say_why(weight: Tensor, reason: str) -> None:
    ghn = ghn_fast.GHN(ghn_fast.GHNConfig(hid=8, max_shape=(16, 16, 3, 3))).eval()
    model = Held(weight)
    assert reason in capture(model, (8,)).skipped["w"]
    with pytest.warns(UserWarning, match=reason):
        report = ghn.predict(model, input_shape=(8,))
    assert set(report.skipped) == {"w"}
    assert torch.equal(model.w.to_dense(), weight.to_dense())


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr", "to_sparse_csc"])
@pytest.mark.parametrize("function", [torch.matmul, torch.sparse.mm])
def test_sparse_buffers(layout: str, function: Any) -> None:
    class Graph(Two):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("adjacency", getattr(torch.eye(6), layout)())

        def before(self, h: Tensor) -> Tensor:
            return function(self.adjacency, h)

    graph = capture(Graph(), example_inputs=torch.zeros(6, 8))
    assert not graph.skipped


def test_parameters_on_one_storage_are_one() -> None:
    ghn = ghn_fast.GHN(ghn_fast.GHNConfig(hid=8, max_shape=(16, 16, 3, 3))).eval()

    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))
        model[2].weight = nn.Parameter(model[0].weight.data)
        return model

    model = tied()
    graph = capture(model, (8,))
    assert graph.aliases == {"2.weight": "0.weight"}
    assert [t.name for t in graph.targets].count("0.weight") == 1
    assert "2.weight" not in graph.skipped
    assert not ghn.predict(model, input_shape=(8,)).skipped
    assert torch.equal(model[0].weight, model[2].weight)
    # Not to be mistaken for a network without ties, and the other way round.
    untied = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))
    ghn.predict(untied, input_shape=(8,))
    assert not torch.equal(untied[0].weight, untied[2].weight)
    again = tied()
    ghn.predict(again, input_shape=(8,))
    assert torch.equal(again[0].weight, model[0].weight)


def test_parameters_that_overlap_are_not_both_predicted() -> None:
    ghn = ghn_fast.GHN(ghn_fast.GHNConfig(hid=8, max_shape=(16, 16, 3, 3))).eval()
    memory = torch.zeros(100)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))
    model[0].weight = nn.Parameter(memory[:64].view(8, 8))
    model[2].weight = nn.Parameter(memory[30:94].view(8, 8))
    # Both are weights of the architecture; what is written is decided where the memory is known.
    graph = capture(model, (8,))
    assert not graph.skipped and not graph.aliases
    with pytest.warns(UserWarning, match="memory is partly that of '0.weight'"):
        assert set(ghn.predict(model, input_shape=(8,)).skipped) == {"2.weight"}
    # Neighbours do not overlap.
    model[2].weight = nn.Parameter(torch.zeros(128)[64:].view(8, 8))
    assert not ghn.predict(model, input_shape=(8,)).skipped


def test_an_expanded_parameter_is_a_weight_that_nothing_is_written_to() -> None:
    ghn = ghn_fast.GHN(ghn_fast.GHNConfig(hid=8, max_shape=(16, 16, 3, 3))).eval()
    model = Held(torch.zeros(8, 1).expand(8, 8))
    assert not capture(model, (8,)).skipped
    with pytest.warns(UserWarning, match="expanded"):
        assert set(ghn.predict(model, input_shape=(8,)).skipped) == {"w"}
    assert not model.w.any()
