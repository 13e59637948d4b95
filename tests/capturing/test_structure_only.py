"""Capture reads structure only: nothing of a network changes, nothing of it is computed."""

from __future__ import annotations

import copy
import functools
import random
import threading
import warnings
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import ghn_fast
from ghn_fast.capturing import CaptureError, capture
from ghn_fast.graph import ArchGraph
from graphs import assert_same_graph
from networks import Shared, SmallCNN, Tied

CALLS: list[str] = []


class Stateful(nn.Module):
    """Draws random numbers, moves tensors, writes to itself, and keeps modules in odd places."""

    def __init__(self, fail: bool = False) -> None:
        super().__init__()
        self.fail = fail
        self.conv = parametrizations.spectral_norm(nn.Conv2d(3, 8, 3))
        self.norm = nn.BatchNorm2d(8)
        self.hidden = [nn.Conv2d(8, 8, 1)]
        self.activate = functools.partial(self.activation, 0.1)
        self.seen: dict[str, Any] = {}
        self.count = 0
        self.register_buffer("total", torch.zeros(1))
        self.mean = torch.ones(1, 3, 1, 1)
        self.head = nn.Linear(8, 10)

    def activation(self, slope: float, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), slope)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.seen["x"] = x
        self.total += 1
        self.mean.mul_(2)
        noise = torch.rand(1, device="cpu") * random.random() + float(np.random.rand())
        x = self.activate((x - self.mean).to("cpu") + noise)
        x = F.dropout(self.hidden[0](x), 0.5, training=True)
        if self.fail:
            raise KeyError("on purpose")
        return self.head(x.cpu().mean((2, 3)))


def state(model: nn.Module) -> dict[str, Any]:
    modules = list(model.modules())
    return {
        "storage": {name: p.data_ptr() for name, p in model.named_parameters()},
        "identity": [id(p) for p in [*model.parameters(), *model.buffers()]],
        "training": [module.training for module in modules],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules],
        "attributes": [sorted(module.__dict__) for module in modules],
        "gradients": [(p.grad, p.requires_grad) for p in model.parameters()],
        "types": [type(module) for module in modules],
    }


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fail", [True, False])
def test_nothing_changes(training: bool, fail: bool) -> None:
    model = Stateful(fail).train(training)
    for module in model.modules():
        module.register_forward_hook(lambda *_: CALLS.append("hook"))
        module.register_forward_pre_hook(lambda *_: CALLS.append("pre-hook"))
    CALLS.clear()
    before = state(model)
    values = copy.deepcopy(model.state_dict())
    generators = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    if fail:
        with pytest.raises(CaptureError, match="on purpose"):
            capture(model, (3, 8, 8))
    else:
        graph = capture(model, (3, 8, 8))
        assert {t.name for t in graph.targets} == {name for name, _ in model.named_parameters()}
    assert state(model) == before
    assert (model.count, model.seen, CALLS) == (0, {}, [])
    assert torch.equal(model.mean, torch.ones(1, 3, 1, 1))
    for name, value in model.state_dict().items():
        assert torch.equal(value, values[name]), name
    assert random.getstate() == generators[0]
    assert (np.random.get_state()[1] == generators[1][1]).all()
    assert np.random.get_state()[2:] == generators[1][2:]
    assert torch.equal(torch.random.get_rng_state(), generators[2])


def test_no_arithmetic_on_real_tensors() -> None:
    """A network whose values cannot be read at all is captured."""
    model = SmallCNN()
    expected = capture(model)

    class Untouchable(torch.Tensor):
        armed = False

        @classmethod
        def __torch_dispatch__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            assert not cls.armed, f"{func} ran on a real tensor"
            return args[0]

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                untouchable = torch.Tensor._make_wrapper_subclass(
                    Untouchable, parameter.shape, dtype=parameter.dtype, device="cpu"
                )
                module._parameters[name] = nn.Parameter(untouchable, requires_grad=False)
    Untouchable.armed = True
    with pytest.raises(AssertionError, match="ran on a real tensor"):
        model(torch.zeros(1, 3, 32, 32))
    graph = capture(model)
    assert_same_graph(graph, expected)


def test_stand_ins_are_freed_at_once() -> None:
    model = SmallCNN()
    parts: list[weakref.ref[nn.Module]] = []
    original = nn.Sequential.forward

    def forward(self: nn.Sequential, x: Tensor) -> Tensor:
        parts.extend(weakref.ref(module) for module in self.modules())
        return original(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Sequential, "forward", forward)
        capture(model)
    assert parts
    assert all(part() is None for part in parts)


def run_together(tasks: list[Any]) -> list[Any]:
    """Results of functions that start at the same time, each in a thread."""
    barrier = threading.Barrier(len(tasks))
    results: list[Any] = [None] * len(tasks)

    def work(index: int) -> None:
        barrier.wait()
        try:
            results[index] = tasks[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_threads_capture_the_same_network() -> None:
    model = torchvision.models.resnet18(num_classes=10).train()
    expected = capture(model, (3, 64, 64))
    before = state(model)
    run: list[Any] = [functools.partial(capture, model, (3, 64, 64))] * 4
    for _ in range(3):
        for graph in run_together(run):
            assert isinstance(graph, ArchGraph), graph
            assert_same_graph(graph, expected)
    assert state(model) == before


def test_a_network_computes_while_it_is_captured() -> None:
    model = SmallCNN().eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(image)

    def compute() -> bool:
        with torch.no_grad():
            return all(torch.equal(model(image), expected) for _ in range(50))

    def capture_often() -> bool:
        return all(capture(model, (3, 32, 32)).num_nodes == 12 for _ in range(50))

    assert run_together([compute, capture_often, compute, capture_often]) == [True] * 4


def test_threads_predict_different_networks() -> None:
    ghn = ghn_fast.GHN(ghn_fast.GHNConfig(hid=8, max_shape=(16, 16, 3, 3))).eval()
    alone, together = [[SmallCNN(width=8 * (i + 1)) for i in range(4)] for _ in range(2)]
    for model in alone:
        ghn.predict(model)
    run_together([functools.partial(ghn.predict, model) for model in together])
    for one, other in zip(alone, together, strict=True):
        for first, second in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(first, second)


def test_threads_predict_the_same_network() -> None:
    ghn = ghn_fast.GHN(ghn_fast.GHNConfig(hid=8, max_shape=(16, 16, 3, 3))).eval()
    alone, together = SmallCNN(), SmallCNN()
    ghn.predict(alone)
    for report in run_together([functools.partial(ghn.predict, together)] * 4):
        assert isinstance(report, ghn_fast.PredictionReport), report
        assert not report.skipped
    for first, second in zip(alone.parameters(), together.parameters(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_callers_gradient_mode_does_not_matter(context: Any) -> None:
    model = SmallCNN()
    expected = capture(model)
    with context():
        graph = capture(model)
    assert torch.equal(graph.edges, expected.edges)


def test_forward_without_gradients_is_recorded() -> None:
    class Quiet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = SmallCNN()
            self.head = nn.Linear(10, 10)

        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x).detach())

    assert not capture(Quiet()).skipped


def test_forward_that_changes_a_parameter() -> None:
    class Clamped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = SmallCNN()
            self.gain = nn.Parameter(torch.ones(10))

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.gain.clamp_(0, 1)
            return self.body(x) * self.gain

    model = Clamped()
    nn.init.constant_(model.gain, 3.0)
    assert not capture(model).skipped
    assert bool((model.gain == 3).all())


def test_compiled_networks() -> None:
    model = nn.Sequential(SmallCNN(), torch.compile(nn.Linear(10, 5)))
    whole = torch.compile(model)
    graph = capture(whole)
    assert {t.name for t in graph.targets} == {name for name, _ in whole.named_parameters()}
    assert all(name.startswith("_orig_mod.") for name in graph.names if "weight" in name)
    model.compile()
    compiled = model._compiled_call_impl
    assert torch.equal(capture(model).edges, graph.edges)
    assert model._compiled_call_impl is compiled


def test_meta_and_half_precision() -> None:
    expected = capture(SmallCNN())
    for model in (SmallCNN().to("meta"), SmallCNN().bfloat16(), SmallCNN().half()):
        graph = capture(model)
        assert_same_graph(graph, expected)


class Pair(nn.Module):
    """Two inputs, and options; control flow on shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(3, 8, 3)
        self.vector = nn.Linear(5, 8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor, y: dict[str, Tensor] | Tensor, *, double: bool = False) -> Any:
        y = y["y"] if isinstance(y, dict) else y
        x = self.image(x)
        while x.shape[-1] > 4:
            x = F.max_pool2d(x, 2)
        x = x.mean((2, 3)) + self.vector(y)
        return None, {"out": [self.head(x * 2 if double else x)]}


def test_several_inputs() -> None:
    model = Pair()
    graph = capture(model, [(3, 32, 32), (5,)])
    assert not graph.skipped
    x, y = torch.randn(1, 3, 32, 32, dtype=torch.float64), torch.zeros(1, 5)
    for inputs in ((x, {"y": y}), {"x": x, "y": y, "double": True}, [x, y]):
        again = capture(model, example_inputs=inputs)
        assert_same_graph(again, graph)
    assert torch.equal(y, torch.zeros(1, 5))
    with pytest.raises(CaptureError, match="several inputs"):
        capture(model, (3, 32, 32))
    with pytest.raises(ValueError, match="only one of them"):
        capture(model, (3, 32, 32), example_inputs=(x, y))
    with pytest.raises(ValueError, match="input_shape"):
        capture(model, [(3, 32, 32), (0,)])


def test_one_tensor_as_example() -> None:
    graph = capture(SmallCNN(), example_inputs=torch.empty(1, 3, 32, 32))
    assert torch.equal(graph.edges, capture(SmallCNN(), (3, 32, 32)).edges)


def test_all_outputs_count() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = SmallCNN()
            self.first = nn.Linear(10, 4)
            self.second = nn.Linear(10, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.body(x)
            return self.first(x), self.second(x)

    assert not capture(Heads()).skipped


def test_forward_that_depends_on_values() -> None:
    class Values(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = SmallCNN()
            self.head = nn.Linear(10, 10)

        def forward(self, x: Tensor) -> Tensor:
            y = self.body(x)
            return self.head(y if y.sum() > 0 else -y)

    with pytest.raises(CaptureError, match=r"the network itself.*depends on values"):
        capture(Values())


def test_constants_have_values() -> None:
    class Constants(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = SmallCNN()

        def forward(self, x: Tensor) -> Outputs:
            rows = torch.linspace(0, 2, 3, device=x.device).long().tolist()
            mask = torch.zeros(10)
            mask[rows] = 1
            y = self.body(x)
            mask[int(mask.sum()) :] = y.mean()
            return Outputs(y * mask)

    model = Constants()
    state = torch.random.get_rng_state()
    assert not capture(model).skipped
    assert torch.equal(state, torch.random.get_rng_state())


@dataclass
class Outputs:
    out: Tensor


def test_networks_held_elsewhere() -> None:
    """The network's own modules, reached past its stand-in, do not change either."""

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.norm = nn.BatchNorm2d(8)
            self.me = weakref.ref(self)
            self.children_again = {"me": [self]}

        def forward(self, x: Tensor) -> Tensor:
            return self.me().norm(self.children_again["me"][0].conv(x))

    model = Around().train()
    before = copy.deepcopy(model.norm.state_dict())
    assert not capture(model, (3, 8, 8)).skipped
    for name, value in model.norm.state_dict().items():
        assert torch.equal(value, before[name])


def test_torchscript_is_refused() -> None:
    class Double(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(Double())
    with pytest.raises(TypeError, match="TorchScript"):
        capture(nn.Sequential(SmallCNN(), scripted))


@pytest.mark.parametrize("kind", [Shared, Tied])
def test_shared_parameters_have_one_stand_in(kind: type[nn.Module]) -> None:
    graph = capture(nn.Sequential(kind(), nn.ReLU()), (3, 16, 16))
    assert set(graph.aliases.values()) <= {t.name for t in graph.targets}
