"""Features begin where the input arrives; constants are none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ghn_fast.capturing import CaptureError, capture
from ghn_fast.graph import NODE_TYPES, ArchGraph
from tests.capturing.by_use import roles

IDS = torch.zeros(1, 7, dtype=torch.long)


class OwnNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = OwnNorm(dim)
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.gamma = nn.Parameter(torch.full((dim,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        scores = (self.q(h) @ self.k(h).transpose(-1, -2)).softmax(-1)
        return x + self.gamma * self.o(scores @ self.v(h))


class Behind(nn.Module):
    """A front, two blocks, a head: whatever the front is, the rest is the same."""

    def __init__(self, front: nn.Module) -> None:
        super().__init__()
        self.front, self.norm = front, OwnNorm(16)
        self.blocks = nn.ModuleList(Block(16) for _ in range(2))
        self.head = nn.Linear(16, 50, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.front(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class OwnFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Square.apply(x)  # type: ignore[no-any-return]


class Factor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class OneHot(nn.Module):
    """Symbols by a product instead of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 50))

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(F.one_hot(ids, 50).float(), self.weight)


def hops(graph: ArchGraph) -> set[tuple[str, str]]:
    """Edges, those of the front as if they came from the input.

    Means over the input itself are part of it.
    """
    names = ["input" if name.startswith("front") else name for name in graph.names]
    found = {(names[a], names[b]) for a, b, d in graph.edges.tolist() if d == 1}
    return found - {
        ("input", "input"),
        ("input", "glob_avg"),
        ("glob_avg", "blocks.0.norm.weight"),
    }


@pytest.mark.parametrize(
    ("front", "example"),
    [
        (nn.Embedding(50, 16), IDS),
        (OneHot(), IDS),
        (nn.LayerNorm(16), torch.zeros(1, 7, 16)),
        (OwnNorm(16), torch.zeros(1, 7, 16)),
        (Factor(), torch.zeros(1, 7, 16)),
        (OwnFunction(), torch.zeros(1, 7, 16)),
        (nn.Identity(), torch.zeros(1, 7, 16)),
        (nn.Sequential(nn.Embedding(50, 16), nn.LayerNorm(16)), IDS),
    ],
    ids=["embedding", "one-hot", "norm", "own norm", "scale", "function", "none", "embedding+norm"],
)
def test_graph_behind_any_front(front: nn.Module, example: Tensor) -> None:
    model, linear = Behind(front), Behind(nn.Linear(5, 16, bias=False))
    inputs = {"example_inputs": example}
    reference = {"example_inputs": torch.zeros(1, 7, 5)}
    found, expected = roles(model, **inputs), roles(linear, **reference)
    rest = {name: role for name, role in found.items() if not name.startswith("front")}
    del expected["front.weight"]
    assert rest == expected
    assert rest["blocks.0.gamma"] == ("ln", None)
    assert hops(capture(model, **inputs)) == hops(capture(linear, **reference))


def test_tied_table_and_attention_by_products() -> None:
    model = Behind(nn.Embedding(50, 16))
    model.head.weight = model.front.weight
    found = roles(model, example_inputs=IDS)
    assert "table" in found["front.weight"] and "layer" in found["front.weight"]
    assert found["blocks.1.v.weight"] == ("conv", 16)


def test_masks_of_the_input_are_no_branches() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = nn.Embedding(50, 16), nn.Linear(16, 5)
            self.q, self.k = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            x = self.table(ids)
            scores = self.q(x) @ self.k(x).transpose(1, 2)
            return self.out((scores + (1 - mask.float()[:, None]) * -1e4).softmax(-1) @ x)

    graph = capture(Masked(), example_inputs=(IDS, torch.ones(1, 7, dtype=torch.long)))
    assert ("input", "sum") not in hops(graph)
    assert set(graph.skipped) == {"table.weight"}


def test_input_that_is_added_later_is_a_branch() -> None:
    class Denoiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(6, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = (x - 0.5) / 0.25
            return self.b(torch.cat([self.a(x), x], 1)) + x

    graph = capture(Denoiser(), (3, 8, 8))
    assert list(graph.names).count("concat") == list(graph.names).count("sum") == 1
    assert {("input", "concat"), ("input", "sum")} <= hops(graph)


class Constants(nn.Module):
    """Summands and factors that numbers and buffers join."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(8, 6), nn.Linear(6, 3)
        self.a, self.b, self.c = (nn.Parameter(torch.zeros(6)) for _ in range(3))
        self.register_buffer("factor", torch.full((6,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x) + 0.1 * self.a + self.b * self.factor
        return self.out(x * (1 + self.c))


def test_constants_are_no_features() -> None:
    model = Constants()
    found = roles(model, input_shape=(8,))
    assert found["a"] == found["b"] == ("bias", None)
    graph = capture(model, (8,))
    row = {target.name: target.row for target in graph.targets}
    # A scale that is stored as its difference from one is predicted around zero.
    assert found["c"] == ("ln", None) and row["c"] == 1
    assert "sum" not in [NODE_TYPES[i] for i in graph.op_types.tolist()]


def test_output_of_the_input_alone() -> None:
    class Alone(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu().mean((2, 3))

    with pytest.raises(CaptureError, match="depends on no parameter"):
        capture(Alone(), (3, 8, 8))


class Box:
    """Inputs in an object that nothing knows."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


def test_inputs_that_cannot_be_followed() -> None:
    class Boxed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.scale = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.ones(6))
            self.out = nn.Linear(6, 3)

        def forward(self, box: Box) -> Tensor:
            return self.out(box.x @ self.weight * self.scale)

    found = roles(Boxed(), example_inputs=(Box(torch.zeros(2, 8)),))
    assert found["weight"] == ("conv", 8) and found["scale"] == ("ln", None)


def test_tensors_in_dataclasses_are_followed() -> None:
    @dataclass
    class Batch:
        image: Tensor
        symbols: Tensor

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.scale = nn.Embedding(9, 6), nn.Parameter(torch.ones(6))
            self.factor, self.fc, self.out = (
                nn.Parameter(torch.ones(8)),
                nn.Linear(8, 6),
                nn.Linear(6, 3),
            )

        def forward(self, batch: Batch) -> Tensor:
            x = self.fc(batch.image * self.factor)
            return self.out(x + self.table(batch.symbols) * self.scale)

    found = roles(Both(), example_inputs=(Batch(torch.zeros(1, 8), torch.zeros(1).long()),))
    assert found["factor"] == found["scale"] == ("ln", None)


@pytest.mark.parametrize("of_input", [True, False])
def test_rows_that_a_buffer_chooses_are_no_features(of_input: bool) -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.factor = nn.Embedding(9, 6), nn.Parameter(torch.ones(6))
            self.fc, self.out = nn.Linear(8, 6), nn.Linear(6, 3)
            self.register_buffer("index", torch.zeros(1).long())

        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            rows = self.table(ids + 1 if of_input else self.index + 1)
            return self.out(self.fc(x) + rows * self.factor)

    found = roles(Rows(), example_inputs=(torch.zeros(1, 8), torch.zeros(1).long()))
    assert "table" in found["table.weight"]
    assert (found["factor"] == ("ln", None)) is of_input


def filled(tensor: Tensor, values: Tensor) -> Tensor:
    tensor[:] = values
    return tensor


@torch.no_grad()
def without_gradients(table: Tensor, ids: Tensor) -> Tensor:
    return table[ids]


@pytest.mark.parametrize(
    "read",
    [
        lambda table, ids: table[ids],
        lambda table, ids: table.index_select(0, ids.flatten())[None],
        lambda table, ids: F.embedding((ids + 1).clamp(max=8), table),
        lambda table, ids: F.embedding_bag(ids, table)[:, None],
        lambda table, ids: table.gather(0, ids.mT.expand(7, 16))[None],
        # Values of the input decide, and what is computed of them is still the input.
        lambda table, ids: F.embedding(ids[ids >= 0][None], table),
        lambda table, ids: table[(ids >= 0).nonzero()[:, 1]][None],
        # One row after the other, and numbers that were taken out of the input.
        lambda table, ids: torch.stack([table[number] for number in ids[0]])[None],
        lambda table, ids: torch.stack([table[int(number)] for number in ids[0]])[None],
        lambda table, ids: torch.stack([table[number] for number in ids[0].tolist()])[None],
        lambda table, ids: F.embedding(torch.tensor(ids.tolist()), table),
        lambda table, ids: table[ids.unique_consecutive(dim=1)] if ids.max() < 50 else table[None],
        lambda table, ids: table[filled(torch.zeros(1, 7, dtype=torch.long), ids)],
        lambda table, ids: without_gradients(table, ids),
    ],
)
def test_rows_that_the_input_chooses_are_features(read: Any) -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(50, 16))

        def forward(self, ids: Tensor) -> Tensor:
            return read(self.weight, ids)  # type: ignore[no-any-return]

    found = roles(Behind(Table()), example_inputs=IDS)
    assert "table" in found["front.weight"]
    assert found["norm.weight"] == found["blocks.1.gamma"] == ("ln", None)
