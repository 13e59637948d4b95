from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

from ghn_fast.hypernet.batch_statistics import track_running_statistics, use_batch_statistics
from tolerances import assert_close


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4, affine=False)),
        nn.GroupNorm(2, 4),
        nn.InstanceNorm2d(4, track_running_stats=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(4),
    )
    with torch.no_grad():
        model[1].weight.uniform_(0.5, 2)
        model[1].bias.uniform_(-1, 1)
    return model


def normalised(layer: nn.BatchNorm2d, images: torch.Tensor) -> torch.Tensor:
    """Batch normalisation as arXiv 1502.03167 writes it, in float64."""
    x = images.double()
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
    shape = (1, -1, 1, 1)
    y = (x - mean) / (variance + layer.eps).sqrt()
    return (y * layer.weight.double().view(shape) + layer.bias.double().view(shape)).detach()


@pytest.mark.parametrize("training", [True, False])
def test_batch_statistics_are_used_in_both_modes(training: bool) -> None:
    model = network()
    assert use_batch_statistics(model) == ["1", "2.1", "7"]
    model.train(training)
    images = 5 + 3 * torch.randn(8, 4, 6, 6)
    assert_close(model[1](images), normalised(model[1], images))


def test_running_statistics_would_give_something_else() -> None:
    model = network().eval()
    images = 5 + 3 * torch.randn(8, 4, 6, 6)
    before = model[1](images)
    use_batch_statistics(model)
    assert (model[1](images) - before).abs().max() > 0.5


def test_other_layers_and_flags_are_left_alone() -> None:
    model = network()
    model[1].eval()
    use_batch_statistics(model)
    assert model[4].running_mean is not None
    assert not model[1].training and model[7].training
    assert model[1].running_mean is None


def test_the_state_dict_keeps_its_keys_and_loads_strictly_both_ways() -> None:
    model, fresh, older = network(), network(), network().state_dict()
    use_batch_statistics(model)
    assert list(model.state_dict()) == list(older)
    fresh.load_state_dict(model.state_dict())
    model.load_state_dict(older)
    # Statistics of no images say nothing: batch statistics stay.
    assert model[1].running_mean is None
    assert use_batch_statistics(model) == []


def test_statistics_that_were_collected_are_taken_when_they_are_loaded() -> None:
    trained, model = network(), network()
    for _ in range(3):
        trained(5 + 3 * torch.randn(8, 3, 6, 6))
    use_batch_statistics(model)
    model.load_state_dict(trained.state_dict())
    images = torch.randn(4, 3, 6, 6)
    assert torch.equal(model.eval()(images), trained.eval()(images))
    assert list(model.state_dict()) == list(trained.state_dict())
    assert use_batch_statistics(model) == ["1", "2.1", "7"]


@pytest.mark.parametrize("copy", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_have_state_dicts_of_their_own(copy: Callable[[nn.Module], nn.Module]) -> None:
    model = network()
    use_batch_statistics(model)
    other = copy(model)
    trained = network()
    trained(torch.randn(8, 3, 6, 6))
    other.load_state_dict(trained.state_dict())
    assert other[1].running_mean is not None
    assert model[1].running_mean is None
    assert list(model.state_dict()) == list(other.state_dict())


def test_statistics_in_the_state_dict_follow_the_parameters() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4))
    use_batch_statistics(model)
    state = model.double().state_dict()
    assert state["0.running_var"].dtype == torch.float64


def test_a_layer_without_statistics_gets_no_keys() -> None:
    layer = nn.BatchNorm2d(4, track_running_stats=False)
    use_batch_statistics(layer)
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_changes_are_reported_once() -> None:
    model = network()
    use_batch_statistics(model)
    assert use_batch_statistics(model) == []
    assert use_batch_statistics(nn.BatchNorm1d(3)) == [""]


def test_a_layer_that_ignores_its_buffers_is_cleared_too() -> None:
    # Eval mode of such a layer would still use the buffers.
    layer = nn.BatchNorm2d(4)
    layer.track_running_stats = False
    assert use_batch_statistics(layer) == [""]
    assert layer.running_mean is None


def test_tracking_starts_afresh_and_works() -> None:
    model = network()
    use_batch_statistics(model)
    assert track_running_statistics(model, momentum=0.25) == ["1", "2.1", "7"]
    layer = model[1]
    assert torch.equal(layer.running_mean, torch.zeros(4))
    assert torch.equal(layer.running_var, torch.ones(4))
    images = 5 + 3 * torch.randn(8, 4, 6, 6)
    layer.train()(images)
    assert_close(layer.running_mean, 0.25 * images.mean(dim=(0, 2, 3)))
    assert_close(layer.running_var, 0.75 + 0.25 * images.transpose(0, 1).flatten(1).var(dim=1))
    assert layer.num_batches_tracked == 1
    layer.eval()
    alone, together = layer(images[:1]), layer(images)[:1]
    assert_close(alone, together)
    model.load_state_dict(network().state_dict())


def test_tracking_layers_keep_what_they_have() -> None:
    layer = nn.BatchNorm2d(4)
    layer.running_mean.fill_(3.0)
    assert track_running_statistics(layer, momentum=0.5) == []
    assert (layer.running_mean == 3).all() and layer.momentum == 0.1


def test_tracking_of_a_layer_built_without_statistics() -> None:
    layer = nn.BatchNorm2d(4, track_running_stats=False)
    assert use_batch_statistics(layer) == []
    assert track_running_statistics(layer, momentum=None) == [""]
    assert layer.momentum is None and layer.running_var is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_tracking_follows_dtype_and_device_of_the_parameters(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4))
    use_batch_statistics(model)
    model.to("meta", dtype)
    track_running_statistics(model)
    for layer in model:
        assert layer.running_mean.dtype == layer.running_var.dtype == dtype
        assert layer.running_mean.device.type == "meta"
        assert layer.num_batches_tracked.dtype == torch.int64


@pytest.mark.parametrize("momentum", [-0.1, 1.5, float("nan")])
def test_momentum_out_of_range(momentum: float) -> None:
    with pytest.raises(ValueError, match="momentum"):
        track_running_statistics(network(), momentum=momentum)
