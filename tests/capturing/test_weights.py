"""Weights: how they are put together, their fan-in and their gain."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ghn_fast
from ghn_fast.capturing import capture
from ghn_fast.hypernet.decode_plan import plan_decoding
from tests.capturing.by_use import roles
from tolerances import assert_close


def par(*shape: int) -> nn.Parameter:
    return nn.Parameter(0.1 * torch.randn(*shape))


class Composed(nn.Module):
    """A linear layer between two others, whose weight and bias a function computes."""

    def __init__(
        self,
        weight: Callable[[nn.ParameterDict], Tensor],
        bias: Callable[[nn.ParameterDict], Tensor] | None = None,
        **shapes: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.p = nn.ParameterDict({name: par(*shape) for name, shape in shapes.items()})
        self.stem, self.weight, self.bias = nn.Linear(5, 8), weight, bias
        width = weight(self.p).shape[0]
        self.out = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias(self.p)
        return self.out(F.relu(F.linear(self.stem(x), self.weight(self.p), bias)))


BESIDE = "is computed from it"
WEIGHTS: dict[str, tuple[Composed, dict[str, Any]]] = {
    "joined": (
        Composed(lambda p: torch.cat([p.a, p.b]), a=(6, 8), b=(4, 8)),
        {"a": ("conv", 8), "b": ("conv", 8)},
    ),
    "stacked": (
        Composed(lambda p: torch.stack([p.a, p.b], 1).flatten(0, 1), a=(6, 8), b=(6, 8)),
        {"a": ("conv", 8), "b": ("conv", 8)},
    ),
    "flipped": (Composed(lambda p: p.a.flip(1), a=(6, 8)), {"a": ("conv", 8)}),
    "rolled": (Composed(lambda p: p.a.roll(1, 0).t(), a=(8, 6)), {"a": ("conv", 8)}),
    "low rank": (
        Composed(lambda p: p.w + 0.5 * (p.b @ p.a), w=(6, 8), a=(2, 8), b=(6, 2)),
        {"w": ("conv", 8), "a": BESIDE, "b": BESIDE},
    ),
    "gain": (
        Composed(lambda p: p.w * p.g.exp(), w=(6, 8), g=(6, 1)),
        {"w": ("conv", 8), "g": "passes through Exp"},
    ),
    "one of several": (Composed(lambda p: p.w[1], w=(3, 6, 8)), {"w": ("conv", 8)}),
    "slice": (Composed(lambda p: p.w[:6, :8], w=(20, 30)), {"w": ("conv", 8)}),
    "masked": (Composed(lambda p: p.w.tril(), w=(8, 8)), {"w": ("conv", 8)}),
    "clamped": (Composed(lambda p: p.w.clamp(-1, 1), w=(6, 8)), {"w": "passes through Clamp"}),
    "squared": (Composed(lambda p: p.w.pow(2), w=(6, 8)), {"w": "passes through Pow"}),
}
BIASES: dict[str, tuple[Composed, dict[str, Any]]] = {
    "joined": (
        Composed(
            lambda p: p.w,
            lambda p: torch.cat([p.q, torch.zeros(2), p.v]),
            w=(6, 8),
            q=(2,),
            v=(2,),
        ),
        {"w": ("conv", 8), "q": ("bias", None), "v": ("bias", None)},
    ),
    "one of several": (
        Composed(lambda p: p.w, lambda p: p.b[2], w=(6, 8), b=(3, 6)),
        {"w": ("conv", 8), "b": ("bias", None)},
    ),
    "sum": (
        Composed(lambda p: p.w, lambda p: p.a + 0.1 * p.b, w=(6, 8), a=(6,), b=(6,)),
        {"w": ("conv", 8), "a": ("bias", None), "b": ("bias", None)},
    ),
}


def check(model: nn.Module, expected: dict[str, Any], prefix: str = "", **inputs: Any) -> None:
    found = roles(model, **inputs)
    for name, role in expected.items():
        if isinstance(role, str):
            assert role in found[prefix + name]
        else:
            assert found[prefix + name] == role
    with pytest.warns(UserWarning) if graph_skips(found) else _nothing():
        report = ghn_fast.GHN(ghn_fast.GHNConfig(hid=8, max_shape=(8, 8, 3, 3))).predict(
            model, **inputs
        )
    assert set(report.predicted) == {n for n, role in found.items() if not isinstance(role, str)}
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def graph_skips(found: dict[str, Any]) -> bool:
    return any(isinstance(role, str) for role in found.values())


class _nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


@pytest.mark.parametrize("case", WEIGHTS)
def test_composed_weights(case: str) -> None:
    model, expected = WEIGHTS[case]
    check(model, expected, "p.", input_shape=(5,))


@pytest.mark.parametrize("case", BIASES)
def test_composed_biases(case: str) -> None:
    model, expected = BIASES[case]
    check(model, expected, "p.", input_shape=(5,))
    graph = capture(model, (5,))
    chain = [graph.names.index(f"p.{n}") for n, r in expected.items() if r == ("bias", None)]
    hops = {(a, b) for a, b, d in graph.edges.tolist() if d == 1}
    # The features run through all of them, from the weight on.
    assert {(graph.names.index("p.w"), chain[0]), *pairwise(chain)} <= hops


def test_joined_weights_are_branches() -> None:
    graph = capture(WEIGHTS["joined"][0], (5,))
    names = graph.names
    hops = {(names[a], names[b]) for a, b, d in graph.edges.tolist() if d == 1}
    assert {
        ("stem.bias", "p.a"),
        ("p.a", "concat"),
        ("stem.bias", "p.b"),
        ("p.b", "concat"),
    } <= hops


class Kernel(nn.Module):
    """A convolution with a kernel that is computed, from features perhaps."""

    def __init__(self, compute: Callable[[nn.Module, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.style, self.compute, self.w = nn.Linear(8, 4), compute, par(*shape)
        self.route, self.out = nn.Linear(8, 3), nn.LazyConv2d(3, 1)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        n = x.shape[0]
        kernel = self.compute(self, z)
        groups = n if kernel.shape[0] % 6 == 0 and kernel.dim() == 4 else 1
        y = F.conv2d(x.reshape(1, n * 4, 8, 8), kernel, padding=1, groups=groups)
        return self.out(F.relu(y).view(n, -1, 8, 8))


def modulated(net: Any, z: Tensor) -> Tensor:
    w = net.w * net.style(z).view(-1, 1, 4, 1, 1)
    w = w * torch.rsqrt(w.pow(2).sum((2, 3, 4), keepdim=True) + 1e-8)
    return w.view(-1, 4, 3, 3)


def mixed(net: Any, z: Tensor) -> Tensor:
    return (net.route(z).softmax(-1) @ net.w).view(-1, 4, 3, 3)


def mixed_by_sum(net: Any, z: Tensor) -> Tensor:
    weights = net.route(z).sigmoid().view(-1, 3, 1, 1, 1, 1)
    return (weights * net.w).sum(1).view(-1, 4, 3, 3)


@pytest.mark.parametrize(
    ("compute", "shape"),
    [
        (modulated, (1, 6, 4, 3, 3)),
        (mixed, (3, 6 * 4 * 9)),
        (mixed_by_sum, (1, 3, 6, 4, 3, 3)),
        (lambda net, z: net.w.view(6, 4, 3, 3), (6, 36)),
        (lambda net, z: net.w[1], (3, 6, 4, 3, 3)),
        (lambda net, z: net.w[:6, :4, 2:5, 2:5], (20, 10, 7, 7)),
        (lambda net, z: net.w.flip(2, 3), (6, 4, 3, 3)),
    ],
)
def test_kernels(compute: Callable[[nn.Module, Tensor], Tensor], shape: tuple[int, ...]) -> None:
    model = Kernel(compute, *shape)
    model(torch.zeros(1, 8), torch.zeros(1, 4, 8, 8))
    assert roles(model, input_shape=[(8,), (4, 8, 8)])["w"] in (("conv", 36), ("sep_conv", 36))


def test_bilinear_layer() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair, self.out = nn.Bilinear(6, 5, 8), nn.Linear(8, 4)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.out(F.relu(self.pair(a, b)))

    expected = {"pair.weight": ("conv", 30), "pair.bias": ("bias", None)}
    check(Pair(), expected, input_shape=[(6,), (5,)])


def test_deformable_convolution() -> None:
    ops = pytest.importorskip("torchvision").ops

    class Deformable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.offset, self.conv = nn.Conv2d(4, 18, 3), ops.DeformConv2d(4, 6, 3)
            self.out = nn.Conv2d(6, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.conv(x, self.offset(x)))

    expected = {"conv.weight": ("conv", 36), "conv.bias": ("bias", None)}
    check(Deformable(), expected, input_shape=(4, 8, 8))


@pytest.mark.parametrize("product", [torch._grouped_mm, F.grouped_mm])
def test_grouped_products(product: Callable[..., Tensor]) -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.w, self.out = nn.Linear(8, 8), par(2, 8, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            offs = torch.arange(1, 3, dtype=torch.int32, device=x.device) * (x.shape[0] // 2)
            return self.out(F.relu(product(self.stem(x), self.w, offs=offs)))

    assert roles(Experts(), example_inputs=torch.zeros(4, 8))["w"] == ("conv", 8)


def test_fan_in_of_the_first_product() -> None:
    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.lin = par(8, 32), nn.Linear(8, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            x = self.lin(F.relu(F.linear(x, self.w)))
            return F.linear(F.linear(x, self.lin.weight.t()), self.w.t())

    found = roles(Autoencoder(), input_shape=(32,))
    assert found["w"] == ("conv", 32) and found["lin.weight"] == ("conv", 8)


def gains(model: nn.Module, shape: tuple[int, ...]) -> dict[str, float]:
    """Variance of each weight times its fan-in."""
    graph = capture(model, shape)
    plan = plan_decoding([graph], ghn_fast.GHNConfig())
    scale = {n: row.scale for n, row in zip(plan.ranges[0], plan.params.rows, strict=True)}
    fan_in = roles(model, input_shape=shape)
    return {
        t.name: scale[t.name] ** 2 * fan_in[t.name][1] for t in graph.targets if fan_in[t.name][1]
    }


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_gain_by_groups(dims: int) -> None:
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    back = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    model = nn.Sequential(
        conv(3, 8, 1),
        conv(8, 8, 3, groups=8),
        conv(8, 8, 3, groups=4),
        back(8, 8, 3, groups=8),
        back(8, 1, 3),
        conv(1, 4, 3),
    )
    found = list(gains(model, (3, *(8,) * dims)).values())
    # One channel in each sum: depthwise, and the convolution of a single channel.
    assert_close(found, [2.0, 1.0, 2.0, 1.0, 2.0, 1.0])


class Equalised(nn.Linear):
    def __init__(self, width: int, divide: bool) -> None:
        super().__init__(width, width)
        self.divide = divide

    def forward(self, x: Tensor) -> Tensor:
        root = self.in_features**0.5
        weight = self.weight / root if self.divide else self.weight * (1 / root)
        return F.linear(x, weight, self.bias)


@pytest.mark.parametrize("divide", [False, True])
def test_weights_times_a_number_are_scaled_once(divide: bool) -> None:
    model = nn.Sequential(Equalised(64, divide), nn.ReLU(), Equalised(64, divide), nn.Linear(64, 3))
    found = gains(model, (64,))
    assert_close(found["0.weight"], 2.0 * 64)
    assert_close(found["3.weight"], 2.0)


class Scaled(nn.Module):
    """A linear layer whose weight is multiplied by a buffer of one number."""

    def __init__(self, times: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.times, self.w, self.out = times, par(8, 8), nn.Linear(8, 3)
        self.register_buffer("scale", torch.tensor(0.25))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.linear(x, self.times(self.w, self.scale)))


@pytest.mark.parametrize(
    ("times", "factor"),
    [
        (torch.mul, 0.25),
        (lambda weight, scale: weight * scale, 0.25),
        (lambda weight, scale: scale * weight, 0.25),
        (lambda weight, scale: weight / scale, 1 / 0.25),
    ],
    ids=["torch.mul", "w * scale", "scale * w", "w / scale"],
)
def test_weights_times_a_buffer_of_one_number_are_scaled(
    times: Callable[[Tensor, Tensor], Tensor], factor: float
) -> None:
    plain = gains(Scaled(lambda weight, scale: weight), (8,))
    found = gains(Scaled(times), (8,))
    assert_close(found["w"], plain["w"] / factor**2)
    assert_close(found["out.weight"], plain["out.weight"])


def test_weights_times_an_unread_number_are_kept() -> None:
    model = Scaled(lambda weight, scale: torch.mul(input=weight, other=scale))
    assert "one number" in roles(model, input_shape=(8,))["w"]


class Grouped(nn.Linear):
    def __init__(self) -> None:
        super().__init__(8, 3)
        self.weight, self.bias = par(4, 3, 8), par(4, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(x, self.weight.transpose(1, 2)) + self.bias


class Deep(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(4, 6, 3)
        self.weight = par(1, 6, 4, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.squeeze(0), self.bias)


class Narrow(nn.Conv2d):
    """A layer of a supernet, which uses a part of its kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight[:6, :4], self.bias[:6])


@pytest.mark.parametrize(
    ("layer", "shape", "fan_in"),
    [(Grouped(), (4, 2, 8), 8), (Deep(), (1, 4, 8, 8), 36), (Narrow(32, 32, 3), (1, 4, 8, 8), 36)],
)
def test_subclasses_with_other_weights(
    layer: nn.Module, shape: tuple[int, ...], fan_in: int
) -> None:
    model = nn.Sequential(layer, nn.Flatten(1), nn.LazyLinear(3))
    model(torch.zeros(shape))
    check(model, {"0.weight": ("conv", fan_in)}, example_inputs=torch.zeros(shape))


class Declared(nn.Module):
    def __init__(self, kind: str, *shape: int) -> None:
        super().__init__()
        self.ghn_node_types = {"weight": kind}
        self.weight = par(*shape)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight.sum().sinh()


@pytest.mark.parametrize(
    ("kind", "shape", "fits"),
    [
        ("bn", (1, 8, 1), True),
        ("bn", (8, 8), False),
        ("bias", (2, 8), False),
        ("conv", (8,), False),
        ("conv", (2, 3, 4, 3, 3), True),
        ("pos_enc", (8, 8), False),
    ],
)
def test_declared_types_fit_or_are_skipped(kind: str, shape: tuple[int, ...], fits: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), Declared(kind, *shape), nn.Linear(4, 3))
    found = roles(model, input_shape=(4,))["1.weight"]
    assert found[0] == kind if fits else f"declares it as '{kind}'" in found
    check(model, {}, input_shape=(4,))
