"""Hooks, derivatives, checkpoints and modes of a forward pass are followed, or named truly."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from ghn_fast.capturing import CaptureError, capture
from ghn_fast.graph import NODE_TYPES, ArchGraph


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.b(F.relu(self.a(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.features(x))


def same(first: ArchGraph, second: ArchGraph) -> bool:
    return first.names == second.names and torch.equal(first.edges, second.edges)


EXPECTED = capture(Two(), (8,))


# ---- hooks


class Tapped(Two):
    """Collects what layers yield by hooks that the forward pass registers."""

    def __init__(self, register: Callable[[nn.Module, list[Any]], Any]) -> None:
        super().__init__()
        self.out = nn.Linear(16, 3)
        self.register = register

    def forward(self, x: Tensor) -> Tensor:
        got: list[Tensor] = []
        handles = [self.register(layer, got) for layer in (self.a, self.b)]
        self.features(x)
        for handle in handles:
            handle.remove()
        self.features(x)
        return self.out(torch.cat(got, -1))


REGISTER = {
    "forward hook": lambda m, got: m.register_forward_hook(lambda m, i, o: got.append(o)),
    "with keywords": lambda m, got: m.register_forward_hook(
        lambda m, a, k, o: got.append(o), with_kwargs=True
    ),
    "prepended": lambda m, got: m.register_forward_hook(
        lambda m, i, o: got.append(o), prepend=True
    ),
    "pre-hook": lambda m, got: m.register_forward_pre_hook(
        lambda m, i: got.append(F.linear(i[0], m.weight, m.bias))
    ),
    "that changes the output": lambda m, got: m.register_forward_hook(
        lambda m, i, o: (got.append(o), o * 2)[1]
    ),
    "that changes the input": lambda m, got: m.register_forward_pre_hook(
        lambda m, a, k: (got.append(a[0]), ((a[0] * 2,), k))[1], with_kwargs=True
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REGISTER)
def test_hooks_that_the_forward_pass_registers(name: str) -> None:
    net = Tapped(REGISTER[name])
    unused = {"b.weight", "b.bias"} if name == "that changes the input" else set()
    assert set(capture(net, (8,)).skipped) == unused
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in net.modules())


def test_hooks_that_belong_to_the_network_are_called() -> None:
    class Collected(Two):
        def __init__(self) -> None:
            super().__init__()
            self.got: list[Tensor] = []
            self.a.register_forward_hook(self.collect)
            self.b.register_forward_hook(functools.partial(self.collect))

        def collect(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
            self.got.append(output)

        def forward(self, x: Tensor) -> Tensor:
            self.features(x)
            return self.out(self.got.pop() + self.got.pop())

    net = Collected()
    assert not capture(net, (8,)).skipped
    assert net.got == []


def test_hooks_for_all_modules_that_the_forward_pass_registers() -> None:
    class Watching(Two):
        def forward(self, x: Tensor) -> Tensor:
            got: list[Tensor] = []
            before = nn.modules.module.register_module_forward_pre_hook(
                lambda module, inputs: got.append(inputs[0])
            )
            after = nn.modules.module.register_module_forward_hook(
                lambda module, inputs, output: output * 2
            )
            try:
                self.features(x)
            finally:
                before.remove()
                after.remove()
            return self.out(got[-1])

    assert set(capture(Watching(), (8,)).skipped) == {"b.weight", "b.bias"}


@pytest.mark.parametrize("installed", [True, False])
def test_hooks_of_an_installed_package_belong_to_its_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    name = f"package_of_hooks_{installed}".lower()
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text(
        "from torch import nn\n"
        "def watch(module, inputs, output):\n    module.got = output\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.out = nn.Linear(8, 8), nn.Linear(8, 3)\n"
        "        self.a.register_forward_hook(watch)\n"
        "    def forward(self, x):\n"
        "        self.a(x)\n"
        "        return self.out(self.a.got)\n"
    )
    if installed:
        (tmp_path / f"{name}-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    net = importlib.import_module(name).Net()
    if installed:
        assert not capture(net, (8,)).skipped
    else:
        with pytest.raises(CaptureError):
            capture(net, (8,))


CALLS: list[str] = []


def test_hooks_of_others_are_not_called_and_named_if_something_fails() -> None:
    net = Two()
    net.a.register_forward_hook(lambda *_: CALLS.append("hook"))
    handle = nn.modules.module.register_module_forward_hook(lambda *_: CALLS.append("global"))
    try:
        assert same(capture(net, (8,)), EXPECTED)
        capture(Tapped(REGISTER["forward hook"]), (8,))
    finally:
        handle.remove()
    assert CALLS == []
    got: dict[str, Tensor] = {}
    net.forward = lambda x: net.out(got["a"])  # type: ignore[method-assign]
    with pytest.raises(CaptureError, match="Hooks of the network were not called"):
        capture(net, (8,))


# ---- derivatives, checkpoints and modes


class Own(torch.autograd.Function):
    """A function of one's own that runs a whole layer, as checkpoints do."""

    @staticmethod
    def forward(ctx: Any, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        with torch.no_grad():
            return run(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return None, gradient


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w.t() + b

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, w = ctx.saved_tensors
        return gradient @ w, gradient.t() @ x, gradient.sum(0)


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def run(net: Two, x: Tensor, how: str) -> Tensor:
    if how == "reentrant":
        return net.out(checkpoint(net.b, F.relu(net.a(x)), use_reentrant=True))
    if how == "from the image on":
        return net.out(checkpoint(net.features, x, use_reentrant=True))
    if how == "to the output":
        return checkpoint(lambda h: net.out(net.b(h)), net.a(x), use_reentrant=True)
    if how == "whole":
        return checkpoint(lambda x: net.out(net.features(x)), x, use_reentrant=True)
    if how == "nested":
        inner = functools.partial(checkpoint, net.b, use_reentrant=True)
        return net.out(checkpoint(lambda h: F.relu(inner(h)), net.a(x), use_reentrant=True))
    if how == "several outputs":
        h, g = checkpoint(lambda x: (net.a(x), net.b(x)), x.clone(), use_reentrant=True)
        return net.out(h + g)
    if how == "sequential":
        layers = nn.Sequential(net.a, nn.ReLU(), net.b)
        return net.out(checkpoint_sequential(layers, 2, x, use_reentrant=True))
    if how == "not reentrant":
        return net.out(checkpoint(net.features, x, use_reentrant=False))
    if how == "own function":
        return net.out(F.relu(Own.apply(net.b, F.relu(net.a(x)))))
    if how == "function of parameters":
        return net.out(F.relu(Product.apply(F.relu(net.a(x)), net.b.weight, net.b.bias)))
    if how == "activation":
        return net.out(Swish.apply(net.b(Swish.apply(net.a(x)))))
    if how == "inference mode":
        with torch.inference_mode():
            return net.out(net.features(x))
    if how == "inference mode of a part":
        with torch.inference_mode():
            h = net.a(x)
        return net.out(F.relu(net.b(F.relu(h.clone()))))
    if how == "no_grad":
        with torch.no_grad():
            return net.out(net.features(x))
    if how == "set_grad_enabled":
        torch.set_grad_enabled(False)
        try:
            return net.out(net.features(x))
        finally:
            torch.set_grad_enabled(True)
    if how == "data of a weight":
        h = F.relu(F.linear(x, net.a.weight.data, net.a.bias.data))
        return net.out(F.relu(F.linear(h, net.b.weight.detach(), net.b.bias)))
    if how == "data of features":
        return net.out(F.relu(net.b(F.relu(net.a(x)).data)))
    if how == "written data":
        net.a.weight.data.clamp_(-1, 1)
        net.b.weight.data = net.b.weight.data * 0.5
        return net.out(net.features(x))
    if how == "autocast":
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return net.out(net.features(x))
    if how == "vmap":
        return torch.func.vmap(lambda x: net.out(net.features(x)))(x)
    if how == "functional_call":
        state = dict(net.b.named_parameters())
        return net.out(F.relu(torch.func.functional_call(net.b, state, F.relu(net.a(x)))))
    if how == "jvp":
        return net.out(torch.func.jvp(net.features, (x,), (torch.ones_like(x),))[1])
    if how == "grad":
        return net.out(torch.func.grad(lambda x: net.features(x).sum())(x))
    if how == "autograd.grad":
        x = x.detach().requires_grad_(True)
        return net.out(torch.autograd.grad(net.features(x).sum(), x, create_graph=True)[0])
    if how == "autograd.grad of weights":
        grads = torch.autograd.grad(net.a(x).sum(), [net.a.weight, net.a.bias], create_graph=True)
        return net.out(F.relu(net.b(F.linear(x, net.a.weight - grads[0], net.a.bias - grads[1]))))
    if how == "jacobian":
        return net.out(torch.autograd.functional.jacobian(net.features, x).sum((0, 1, 2)))
    raise ValueError(how)


SAME = """
reentrant|from the image on|to the output|whole|nested|sequential|not reentrant|own function
function of parameters|activation|inference mode|inference mode of a part|no_grad|set_grad_enabled
data of a weight|data of features|written data|autocast|functional_call
""".strip().replace("\n", "|").split("|")  # fmt: skip
REACHED = ["several outputs", "vmap", "jvp", "grad", "autograd.grad", "autograd.grad of weights",
           "jacobian"]  # fmt: skip


class Run(Two):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return run(self, x, self.how)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("how", SAME + REACHED)
@pytest.mark.parametrize("context", [contextlib.nullcontext, torch.no_grad])
def test_ways_to_run_layers(how: str, context: Any) -> None:
    net = Run(how)
    with context():
        graph = capture(net, (8,))
    assert not graph.skipped
    assert graph.partial is None
    if how in SAME:
        assert same(graph, EXPECTED)


@pytest.mark.parametrize("how", ["backward", "backward of a tensor"])
def test_backward_is_named(how: str) -> None:
    class Backward(Two):
        def forward(self, x: Tensor) -> Tensor:
            loss = self.features(x).sum()
            loss.backward() if how != "backward" else torch.autograd.backward(loss)
            return self.out(self.a.weight.grad[None])

    with pytest.raises(CaptureError, match=r"calls backward\(\)") as error:
        capture(Backward(), (8,))
    assert "input_shape" not in str(error.value)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("layers", [1, 2])
def test_learned_first_states(kind: Any, layers: int) -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = kind(8, 16, layers, batch_first=True), nn.Linear(16, 4)
            self.h0 = nn.Parameter(torch.zeros(layers, 1, 16))
            self.c0 = nn.Parameter(torch.zeros(layers, 1, 16))

        def forward(self, x: Tensor) -> Tensor:
            h, c = (s.expand(-1, x.shape[0], -1).contiguous() for s in (self.h0, self.c0))
            y, _ = self.rnn(x, (h, c) if kind is nn.LSTM else h)
            return self.out(y[:, -1])

    graph = capture(First(), example_inputs=torch.zeros(2, 5, 8))
    states = ["h0", "c0"] if kind is nn.LSTM else ["h0"]
    types = dict(zip(graph.names, (NODE_TYPES[k] for k in graph.op_types.tolist()), strict=True))
    for name in states:
        if layers == 1:
            assert types[name] == "bias"
        else:
            assert "learned tokens" in graph.skipped[name]
    assert {t.name for t in graph.targets} >= {"rnn.weight_ih_l0", "rnn.weight_hh_l0"}


def test_the_state_of_an_encoder_leads_to_the_decoder() -> None:
    class Translate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enc, self.dec = nn.GRU(8, 16, batch_first=True), nn.GRU(8, 16, batch_first=True)
            self.out = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            _, state = self.enc(x)
            return self.out(self.dec(x[:, :1], state)[0])

    assert not capture(Translate(), example_inputs=torch.zeros(2, 5, 8)).skipped


def test_complex_and_integer_parameters_say_what_they_are() -> None:
    class Spectral(Two):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(5, dtype=torch.cfloat))
            self.n = nn.Parameter(torch.ones(8, dtype=torch.int8), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.fft.irfft(torch.fft.rfft(self.a(x)) * self.w, n=8)
            return self.out(F.relu(self.b(h * self.n)))

    skipped = capture(Spectral(), (8,)).skipped
    assert "complex" in skipped["w"]
    assert "int8" in skipped["n"]
    assert set(skipped) == {"w", "n"}
