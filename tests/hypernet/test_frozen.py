"""Frozen parameters keep their values; networks that nothing normalises say so."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import ghn_fast
from ghn_fast import GHN, GHNConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*were not predicted:UserWarning")


class Edges(nn.Module):
    """A network with a fixed filter in front."""

    def __init__(self) -> None:
        super().__init__()
        self.sobel = nn.Conv2d(3, 4, 3, bias=False).requires_grad_(False)
        self.norm, self.conv, self.out = nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.conv(self.norm(self.sobel(x)).relu()).mean((2, 3)))


@pytest.fixture
def ghn() -> GHN:
    return GHN(GHNConfig(hid=8, max_shape=(16, 16, 3, 3)))


def test_frozen_parameters_keep_their_values(ghn: GHN) -> None:
    # One structure, so that one graph serves networks that are frozen differently.
    for _ in range(2):
        model = Edges()
        before = model.sobel.weight.clone()
        with pytest.warns(UserWarning, match="frozen"):
            report = ghn.predict(model, input_shape=(3, 16, 16))
        assert torch.equal(model.sobel.weight, before)
        assert set(report.skipped) == {"sobel.weight"}
        assert "frozen='predict'" in report.skipped["sobel.weight"]
        assert "sobel.weight" not in report.predicted

        trainable = Edges().requires_grad_(True)
        assert not ghn.predict(trainable, input_shape=(3, 16, 16)).skipped


def test_frozen_parameters_are_predicted_on_request(ghn: GHN) -> None:
    model = Edges()
    before = model.sobel.weight.clone()
    report = ghn.predict(model, input_shape=(3, 16, 16), frozen="predict")
    assert not report.skipped
    assert not torch.equal(model.sobel.weight, before)
    assert not model.sobel.weight.requires_grad


def test_wholly_frozen_networks_are_predicted(ghn: GHN) -> None:
    model = Edges().requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not ghn.predict(model, input_shape=(3, 16, 16)).skipped


def test_compiled_plan_and_call_know_frozen_parameters(ghn: GHN) -> None:
    model = Edges()
    before = model.sobel.weight.clone()
    plan = ghn.compile_plan(model, input_shape=(3, 16, 16))
    assert set(plan.report.skipped) == {"sobel.weight"}
    plan()
    graph = ghn_fast.capture(model, (3, 16, 16))
    ghn(model, graph)
    assert torch.equal(model.sobel.weight, before)
    ghn.compile_plan(model, graph, frozen="predict")()
    assert not torch.equal(model.sobel.weight, before)


@pytest.mark.parametrize("frozen", ["skip", True, None])
def test_other_wishes_are_named(ghn: GHN, frozen: object) -> None:
    with pytest.raises(ValueError, match=r"frozen: got .*, needs 'keep' or 'predict'"):
        ghn.predict(Edges(), frozen=frozen)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"frozen: got"):
        ghn.compile_plan(Edges(), frozen=frozen)  # type: ignore[arg-type]


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight * torch.rsqrt(weight.pow(2).mean((1, 2, 3), keepdim=True))
        return nn.functional.conv2d(x, weight, self.bias)


@pytest.mark.parametrize(
    ("layer", "warned"),
    [
        (nn.Conv2d(3, 8, 3), True),
        (Standardised(3, 8, 3), True),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8)), False),
        (nn.Sequential(Standardised(3, 8, 3), nn.BatchNorm2d(8)), False),
    ],
)
def test_networks_that_nothing_normalises_are_named(
    ghn: GHN, layer: nn.Module, warned: bool
) -> None:
    model = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(10))
    model(torch.zeros(1, 3, 8, 8))
    report = ghn.predict(model, input_shape=(3, 8, 8))
    assert [("normalises" in text) for text in report.warnings] == ([True] if warned else [])
    assert ghn.compile_plan(model, input_shape=(3, 8, 8)).report.warnings == report.warnings
