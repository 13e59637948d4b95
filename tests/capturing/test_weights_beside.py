"""Weights that are scaled beside the product, chosen by constants, mixed, or quantised."""

from __future__ import annotations

from collections.abc import Callable

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


class Equalised(nn.Module):
    """A convolution of standard normal weights, scaled somewhere; ``how`` says where."""

    def __init__(self, channels: int, how: str) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(32, channels, 3, 3)), par(32)
        self.number = (2 / (channels * 9)) ** 0.5
        self.register_buffer("factor", torch.tensor(self.number))
        self.register_buffer("row", torch.tensor([self.number]))
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias.view(1, -1, 1, 1)
        if self.how == "features":
            return F.conv2d(x * self.number, self.weight, padding=1) + bias
        if self.how == "result":
            return F.conv2d(x, self.weight, padding=1) * self.number + bias
        factor = {"buffer": self.factor, "row": self.row}[self.how]
        return F.conv2d(x, self.weight * factor, self.bias, padding=1)


@pytest.mark.parametrize("how", ["features", "result", "buffer", "row"])
def test_equalised_layers_are_scaled_once(how: str) -> None:
    net = nn.Sequential(
        Equalised(3, how), nn.LeakyReLU(0.2), Equalised(32, how), nn.Flatten(), nn.Linear(2048, 3)
    )
    plan = plan_decoding([capture(net, (3, 8, 8))], ghn_fast.GHNConfig())
    scale = {name: row.scale for name, row in zip(plan.ranges[0], plan.params.rows, strict=True)}
    # The layer's own factor is sqrt(2 / fan-in), which is all that there is to be.
    found = torch.tensor([scale["0.weight"], scale["2.weight"]])
    assert_close(found, torch.ones(2))


def test_other_numbers_beside_a_product_are_the_networks_own() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.out = nn.Embedding(9, 16), nn.Linear(16, 3)
            self.q, self.k = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.words(ids) * 16**0.5
            return self.out((self.q(x) * 16**-0.5 @ self.k(x).mT).softmax(-1) @ x)

    assert not capture(Attention(), example_inputs=torch.zeros(1, 5, dtype=torch.long)).gains


class Net(nn.Module):
    def __init__(self, compute: Callable[[nn.Module, Tensor], Tensor], **params: object) -> None:
        super().__init__()
        for name, value in params.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)
        self.compute = compute

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.compute(self, *inputs)


KEPT = torch.tensor([0, 3, 4, 5, 7])
CHOSEN: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "rows": lambda s, x: F.linear(x, s.w[s.kept]),
    "rows by index_select": lambda s, x: F.linear(x, s.w.index_select(0, s.kept)),
    "rows by a list": lambda s, x: F.linear(x, s.w[[0, 3, 4]]),
    "transposed": lambda s, x: x @ s.w[s.kept].t().contiguous(),
}


@pytest.mark.parametrize("case", CHOSEN)
def test_rows_of_a_weight_that_constants_choose(case: str) -> None:
    net = Net(CHOSEN[case], w=par(30, 8), kept=KEPT)
    assert roles(net, input_shape=(8,))["w"] == ("conv", 8)


def test_rows_for_pairs_of_positions_stay_a_table() -> None:
    def keys(s: nn.Module, x: Tensor) -> Tensor:
        return torch.einsum("bnd,nmd->bnm", s.q(x), s.w[s.pairs]).softmax(-1)

    net = Net(keys, w=par(7, 8), pairs=torch.arange(16).view(4, 4) % 7, q=nn.Linear(8, 8))
    assert "table" in roles(net, input_shape=(4, 8))["w"]

    def positions(s: nn.Module, x: Tensor) -> Tensor:
        return F.linear(s.q(x), s.w.weight[s.kept]).softmax(-1)

    net = Net(positions, w=nn.Embedding(9, 8), kept=KEPT, q=nn.Linear(8, 8))
    assert "table" in roles(net, input_shape=(4, 8))["w.weight"]


def shares(s: nn.Module, x: Tensor) -> Tensor:
    return s.route(x).softmax(-1)


MIXED: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "gates of single numbers": lambda s, x: F.linear(
        x, sum(g * w for g, w in zip(shares(s, x).mean(0), s.w.unbind(), strict=True))
    ),
    "sum over experts": lambda s, x: ((shares(s, x)[:, :, None, None] * s.w).sum(1) @ x[..., None])[
        ..., 0
    ],
    "einsum": lambda s, x: torch.einsum("bk,koi,bi->bo", shares(s, x), s.w, x),
    "product of shares": lambda s, x: (
        (shares(s, x) @ s.w.flatten(1)).view(-1, 8, 8) @ x[..., None]
    )[..., 0],
    "chosen by features": lambda s, x: (s.w[s.route(x).argmax(-1)] @ x[..., None])[..., 0],
}


@pytest.mark.parametrize("case", MIXED)
def test_linear_layers_that_features_mix(case: str) -> None:
    net = nn.Sequential(Net(MIXED[case], w=par(3, 8, 8), route=nn.Linear(8, 3)), nn.Linear(8, 2))
    assert roles(net, input_shape=(8,))["0.w"] == ("conv", 8)


def test_experts_that_the_input_chooses() -> None:
    net = Net(lambda s, x, k: F.linear(x, s.w[k]), w=par(3, 8, 8))
    assert roles(net, example_inputs=(torch.zeros(1, 8), torch.tensor(1)))["w"] == ("conv", 8)


@pytest.mark.parametrize("equation", ["bi,oij,bj->bo", "oij,bi,bj->bo"])
def test_bilinear_einsum(equation: str) -> None:
    def compute(s: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        operands = {"bi": x, "bj": y, "oij": s.w}
        return torch.einsum(equation, *(operands[k] for k in equation[:-4].split(","))) + s.b

    found = roles(Net(compute, w=par(4, 8, 5), b=par(4)), input_shape=[(8,), (5,)])
    assert found == {"w": ("conv", 40), "b": ("bias", None)}


def test_fake_quantised_weights() -> None:
    def compute(s: nn.Module, x: Tensor) -> Tensor:
        return F.linear(x, torch.fake_quantize_per_tensor_affine(s.w, 0.1, 0, -8, 7))

    assert roles(Net(compute, w=par(3, 8)), input_shape=(8,))["w"] == ("conv", 8)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
@pytest.mark.parametrize("learned", [False, True])
def test_cells_are_two_linear_layers(kind: type[nn.Module], learned: bool) -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.h, self.out = kind(8, 16), par(1, 16), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            state = None
            if learned:
                state = self.h.expand(x.shape[1], -1)
                state = (state, state) if kind is nn.LSTMCell else state
            for step in x:
                state = self.cell(step, state)
            return self.out(state[0] if isinstance(state, tuple) else state)

    found = roles(Loop(), example_inputs=torch.zeros(3, 2, 8))
    assert found["cell.weight_ih"] == ("conv", 8) and found["cell.weight_hh"] == ("conv", 16)
    assert found["cell.bias_ih"] == found["cell.bias_hh"] == ("bias", None)
    assert (found["h"] == ("bias", None)) == learned


def test_a_weight_that_first_meets_a_learned_state() -> None:
    def compute(s: nn.Module, x: Tensor) -> Tensor:
        h = s.h.expand(x.shape[0], -1)
        for step in x.unbind(1):
            h = torch.tanh(F.linear(step, s.w) + F.linear(h, s.u))
        return h

    net = Net(compute, w=par(8, 8), u=par(8, 8), h=par(1, 8))
    found = roles(net, example_inputs=torch.zeros(2, 3, 8))
    assert found["w"] == found["u"] == ("conv", 8)
    assert "sums over it" in found["h"]
