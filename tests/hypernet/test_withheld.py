"""What keeps its values although it could be predicted: memory that is not a parameter's alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ghn_fast import GHN, GHNConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*were not predicted:UserWarning")
SHAPE = (3, 8, 8)


@pytest.fixture
def ghn() -> GHN:
    return GHN(GHNConfig(hid=8, max_shape=(16, 16, 3, 3)))


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def check(ghn: GHN, model: nn.Module, skipped: set[str], shared: int = 0) -> dict[str, str]:
    """Predict; the skipped keep their values, all others have those of an ordinary network.

    Of the skipped, the first ``shared`` elements belong to another parameter.
    """
    reference, before = network(), values(model)
    ghn.predict(reference, input_shape=SHAPE)
    report = ghn.predict(model, input_shape=SHAPE)
    assert set(report.skipped) == skipped
    assert set(report.predicted) == set(before) - skipped
    for name, value in values(model).items():
        if name in skipped:
            assert torch.equal(value.flatten()[shared:], before[name].flatten()[shared:]), name
        else:
            assert torch.equal(value, values(reference)[name]), name
    return report.skipped


def test_an_expanded_parameter_is_skipped_before_anything_is_written(ghn: GHN) -> None:
    for _ in range(2):
        model = network()
        model[2].bias = nn.Parameter(torch.zeros(1).expand(8))
        assert "expanded view" in check(ghn, model, {"2.bias"})["2.bias"]


def test_of_two_parameters_that_overlap_one_is_predicted(ghn: GHN) -> None:
    for _ in range(2):
        model, memory = network(), torch.zeros(300)
        model[0].weight = nn.Parameter(memory[:216].view(8, 3, 3, 3))
        model[2].weight = nn.Parameter(memory[215:279].view(8, 8, 1, 1))
        reasons = check(ghn, model, {"2.weight"}, shared=1)
        assert reasons["2.weight"] == (
            "its memory is partly that of '0.weight', which is predicted"
        )


def test_neighbours_in_one_memory_are_predicted(ghn: GHN) -> None:
    model, memory = network(), torch.zeros(280)
    model[0].weight = nn.Parameter(memory[:216].view(8, 3, 3, 3))
    model[2].weight = nn.Parameter(memory[216:].view(8, 8, 1, 1))
    check(ghn, model, set())


def test_columns_of_one_matrix_interleave_without_sharing(ghn: GHN) -> None:
    model, matrix = network(), torch.zeros(8, 20)
    model[2].weight = nn.Parameter(matrix[:, :8, None, None])
    model[2].bias = nn.Parameter(matrix[:, 9])
    model[1].bias = nn.Parameter(matrix[:, 10])
    check(ghn, model, set())
    model = network()
    model[2].weight = nn.Parameter(matrix[:, :8, None, None])
    model[2].bias = nn.Parameter(matrix[:, 7])
    check(ghn, model, {"2.bias"})


def test_layouts_that_are_dense_are_predicted(ghn: GHN) -> None:
    check(ghn, network().to(memory_format=torch.channels_last), set())


def test_a_predictor_notices_what_becomes_frozen(ghn: GHN) -> None:
    model = network()
    predictor = ghn.compile_plan(model, input_shape=SHAPE)
    assert not predictor().skipped
    model[2].weight.requires_grad_(False)
    nn.init.constant_(model[2].weight, 3.0)
    assert set(predictor().skipped) == {"2.weight"}
    assert (model[2].weight == 3.0).all()
    model.requires_grad_(False)
    assert not predictor().skipped
