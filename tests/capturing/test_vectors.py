"""Scales, shifts, tokens, tables and single numbers, by the operand that they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ghn_fast
from ghn_fast.capturing import capture
from tests.capturing.by_use import roles


class Between(nn.Module):
    """What a function does to features (1, 7, 6) with parameters, between two linear layers."""

    def __init__(self, use: Callable[[Any, Tensor], Tensor], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.p = nn.ParameterDict({n: nn.Parameter(torch.zeros(s)) for n, s in shapes.items()})
        self.fc, self.use, self.out = nn.Linear(8, 6), use, nn.Linear(6, 3)
        self.register_buffer("index", torch.arange(7))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.use(self, self.fc(x)))


SCALE, SHIFT, OFFSET = ("ln", None), ("bias", None), ("ln", None)
CASES: dict[str, tuple[Between, dict[str, Any]]] = {
    "addcmul": (
        Between(lambda n, x: torch.addcmul(n.p.b, n.p.a, x), a=(6,), b=(6,)),
        {"a": SCALE, "b": SHIFT},
    ),
    "addcmul of features": (
        Between(lambda n, x: torch.addcmul(x, x, n.p.a, value=0.5), a=(1, 1, 6)),
        {"a": SCALE},
    ),
    "product that is added": (
        Between(lambda n, x: x.addcmul(n.p.a, n.p.b, value=0.5), a=(6,), b=(1, 6)),
        {"a": SHIFT, "b": "is computed from it and from"},
    ),
    "addcmul of parameters": (
        Between(lambda n, x: x + torch.addcmul(n.p.a, n.p.b, n.p.c), a=(6,), b=(6,), c=(6,)),
        {"a": SHIFT, "b": SHIFT, "c": "is computed from it and from"},
    ),
    "quotient that is added": (
        Between(lambda n, x: torch.addcdiv(x, n.p.a, torch.ones(6)), a=(6,)),
        {"a": SHIFT},
    ),
    "interpolated": (Between(lambda n, x: torch.lerp(n.p.a, x, 0.3), a=(6,)), {"a": SHIFT}),
    "slices of one number": (
        Between(lambda n, x: torch.addcmul(x, x.relu(), n.p.a[1:]) * n.p.a[:1], a=(2,)),
        {"a": "single numbers"},
    ),
    "scale times a number": (Between(lambda n, x: x * (n.p.a * 2), a=(6,)), {"a": SCALE}),
    "joined scale": (
        Between(lambda n, x: x * torch.cat([n.p.a, n.p.b]), a=(2,), b=(4,)),
        {"a": SCALE, "b": SCALE},
    ),
    "expanded scale": (Between(lambda n, x: x * n.p.a.expand_as(x), a=(6,)), {"a": SCALE}),
    "row of scales": (Between(lambda n, x: x * n.p.a[1], a=(3, 6)), {"a": SCALE}),
    "in place": (Between(lambda n, x: x.mul_(n.p.a.view(1, 1, -1)), a=(6,)), {"a": SCALE}),
    "number": (Between(lambda n, x: n.p.a * x, a=(1,)), {"a": "single number"}),
    "numbers": (
        Between(lambda n, x: n.p.a[0] * x + n.p.a[1] * x.relu(), a=(2,)),
        {"a": "single numbers"},
    ),
    "unbound numbers": (
        Between(lambda n, x: sum(a * x for a in n.p.a.unbind()), a=(2,)),
        {"a": "single numbers"},
    ),
    "softmax of numbers": (
        Between(lambda n, x: n.p.a.softmax(0)[1] * x, a=(3,)),
        {"a": "passes through Softmax"},
    ),
    "exponential": (Between(lambda n, x: n.p.a.exp() * x, a=(6,)), {"a": "passes through Exp"}),
    "sum of shifts": (
        Between(lambda n, x: x + (n.p.a + n.p.b), a=(6,), b=(1, 1, 6)),
        {"a": SHIFT, "b": SHIFT},
    ),
    "subtracted": (Between(lambda n, x: x - n.p.a.view(1, -1), a=(6,)), {"a": SHIFT}),
    "mixing factor": (
        Between(lambda n, x: x * n.p.a + x.relu() * (1 - n.p.a), a=(6,)),
        {"a": "mixing factor"},
    ),
    "divisor": (Between(lambda n, x: x / n.p.a, a=(6,)), {"a": "divided by"}),
    "table": (Between(lambda n, x: x + n.p.a[n.index], a=(9, 6)), {"a": "read by index"}),
    "gathered": (
        Between(lambda n, x: x + n.p.a.gather(0, n.index[:, None].expand(7, 6)), a=(9, 6)),
        {"a": "read by index"},
    ),
    "tied": (
        Between(lambda n, x: F.linear(x + F.embedding(n.index, n.p.a), n.p.a[:6]), a=(9, 6)),
        {"a": "weight of a layer as well"},
    ),
    "mask token": (
        Between(lambda n, x: torch.where(n.index[:, None] > 3, n.p.a, x), a=(1, 1, 6)),
        {"a": SHIFT},
    ),
    "token": (
        Between(lambda n, x: torch.cat([n.p.a.expand(1, 1, 6), x], 1), a=(1, 1, 6)),
        {"a": SHIFT},
    ),
    "unknown": (Between(lambda n, x: torch.maximum(x, n.p.a), a=(6,)), {"a": "Maximum"}),
    "scale and shift": (
        Between(lambda n, x: F.layer_norm(x, (6,), n.p.a, n.p.a), a=(6,)),
        {"a": "scale and as shift"},
    ),
    "two shifts of a scale": (
        Between(
            lambda n, x: F.layer_norm(
                F.layer_norm(x, (6,), n.p.w, n.p.a).relu(), (6,), n.p.w, n.p.b
            ),
            w=(6,),
            a=(6,),
            b=(6,),
        ),
        {"w": SCALE, "a": ("shift", None), "b": SHIFT},
    ),
    "difference from one": (
        Between(lambda n, x: F.layer_norm(x, (6,), 1 + n.p.w, n.p.b), w=(6,), b=(6,)),
        {"w": OFFSET, "b": SHIFT},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_operands(case: str) -> None:
    model, expected = CASES[case]
    inputs = {"example_inputs": torch.zeros(1, 7, 8)}
    found = roles(model, **inputs)
    for name, role in expected.items():
        if isinstance(role, str):
            assert role in found[f"p.{name}"]
        else:
            assert found[f"p.{name}"] == role
    ghn = ghn_fast.GHN(ghn_fast.GHNConfig(hid=8, max_shape=(8, 8, 3, 3)))
    report = ghn.predict(model, capture(model, **inputs))
    assert {*report.predicted, *report.skipped} == {n for n, _ in model.named_parameters()}
    assert all(bool(p.isfinite().all()) for p in model.parameters())


pytestmark = pytest.mark.filterwarnings("ignore:.*were not predicted:UserWarning")


class LayerScale(nn.Module):
    def __init__(self, use: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 3)
        self.gamma, self.use = nn.Parameter(torch.full(shape, 1e-6)), use

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.out((h + self.use(self.b(h), self.gamma)).mean((2, 3)))


@pytest.mark.parametrize(
    ("use", "shape", "kind"),
    [
        (lambda x, g: x * g.view(1, -1, 1, 1), (8,), "bn"),
        (lambda x, g: g[:, None, None] * x, (8,), "bn"),
        (lambda x, g: x * g, (8, 1, 1), "bn"),
        (lambda x, g: x.mul(g.reshape(1, 8, 1, 1).expand_as(x)), (8,), "bn"),
        (lambda x, g: (x.permute(0, 2, 3, 1) * g).permute(0, 3, 1, 2), (8,), "ln"),
        (lambda x, g: (x.flatten(2).mT * g.view(1, 1, -1)).mT.view_as(x), (8,), "ln"),
        (lambda x, g: (x.flatten(2).mT * g.flatten()).mT.view_as(x), (8, 1, 1), "ln"),
    ],
)
def test_layer_scales_by_the_shape_at_their_use(
    use: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...], kind: str
) -> None:
    model = LayerScale(use, *shape)
    assert roles(model, input_shape=(3, 8, 8))["gamma"] == (kind, None)
    graph = capture(model, (3, 8, 8))
    names = graph.names
    hops = {(names[a], names[b]) for a, b, d in graph.edges.tolist() if d == 1}
    # However it is written, features run through its node.
    assert ("b.bias", "gamma") in hops and ("gamma", "sum") in hops


def test_values_follow_the_role() -> None:
    model = Between(
        lambda n, x: torch.addcmul(n.p.b, n.p.a, x) * (1 + n.p.c) + 0.1 * n.p.d,
        a=(6,),
        b=(6,),
        c=(6,),
        d=(6,),
    )
    ghn_fast.from_pretrained("ghn2-digits").predict(model, example_inputs=torch.zeros(1, 7, 8))
    means = {name: float(p.detach().mean()) for name, p in model.p.items()}
    assert means["a"] > 0.3
    # compared by hand: what is predicted about zero, and not about one.
    assert all(abs(means[name]) < 0.3 for name in "bcd")


def test_shift_of_a_shared_scale_has_a_node() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.LayerNorm(8))
    model[3].weight = model[1].weight
    found = roles(model, input_shape=(4,))
    assert found["1.bias"] == ("shift", None)
    assert found["3.bias"] == ("bias", None)


def test_experts_that_are_read_by_index_are_weights() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.out = nn.Linear(5, 8), nn.Linear(6, 3)
            self.w = nn.Parameter(torch.randn(4, 8, 6))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            chosen = self.w[x.argmax(-1) % 4]
            return self.out(torch.bmm(x[:, None], chosen)[:, 0])

    assert roles(Experts(), input_shape=(5,))["w"] == ("conv", 8)


def test_a_row_of_an_embedding_is_one_of_a_table() -> None:
    class Typed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kinds, self.fc = nn.Embedding(2, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x + self.kinds.weight[0])

    assert "read by index" in roles(Typed(), input_shape=(6,))["kinds.weight"]
