"""Running statistics collected from batches, and images with noise."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from ghn_fast.vision import (
    ImageSplits,
    collect_running_statistics,
    noisy_batches,
    use_batch_statistics,
)
from ghn_fast.vision.images import ImageSet
from tolerances import assert_close


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.rand(4, 3, 6, 6) + i, torch.zeros(4).long()) for i in range(count)]


def test_plain_averages_over_batches() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))
    use_batch_statistics(model)
    model.train()
    model[1].eval()
    data = batches(5)
    assert collect_running_statistics(model, iter(data), 3) == ["0", "3"]
    inputs = [images for images, _ in data[:3]]
    assert_close(model[0].running_mean, torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0))
    assert_close(
        model[0].running_var,
        torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in inputs]).mean(0),
    )
    # The second layer sees what the first one makes of each batch's own statistics.
    seen = [model[2](nn.functional.batch_norm(x, None, None, training=True)) for x in inputs]
    assert_close(model[3].running_mean, torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0))
    assert [module.training for module in model] == [True, False, True, True]
    assert model[0].momentum == 0.1
    # A second collection starts anew.
    first = model[0].running_mean.clone()
    collect_running_statistics(model, iter(data), 3)
    assert torch.equal(model[0].running_mean, first)


def test_what_cannot_be_collected() -> None:
    assert collect_running_statistics(nn.Conv2d(3, 3, 1), iter([])) == []
    with pytest.raises(ValueError, match="no images"):
        collect_running_statistics(nn.BatchNorm2d(3), [])
    with pytest.raises(ValueError, match="count: got 0"):
        collect_running_statistics(nn.BatchNorm2d(3), [], 0)


def failing(count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    yield from batches(count)
    raise OSError("no such image")


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_after_an_error_nothing_has_changed(batch_statistics: bool) -> None:
    model = nn.Sequential(
        nn.BatchNorm2d(3, momentum=0.3),
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.BatchNorm2d(3, momentum=None),
    )
    model(batches(1)[0][0])
    if batch_statistics:
        use_batch_statistics(model)
    model[2].eval()
    kept = copy.deepcopy(model)
    for bad, error in ((failing(2), OSError), (iter(()), ValueError)):
        with pytest.raises(error):
            collect_running_statistics(model, bad)
        assert [m.training for m in model] == [True, True, False]
        assert [m.momentum for m in model] == [0.3, 0.1, None]
        ours, theirs = model.state_dict(), kept.state_dict()
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        images = batches(1)[0][0]
        assert torch.equal(copy.deepcopy(model).eval()(images), copy.deepcopy(kept).eval()(images))


def test_layers_keep_their_momentum() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.01), nn.BatchNorm2d(3, momentum=0.02))
    use_batch_statistics(model)
    collect_running_statistics(model, batches(2))
    assert [m.momentum for m in model] == [0.01, 0.02]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_averages_in_half_precision_are_as_good_as_it(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    # Used twice in a pass, and averaged over both.
    model = nn.Sequential(norm, nn.ReLU(), norm).to(dtype)
    data = [((3 * torch.rand(8, 3, 6, 6)).to(dtype), torch.zeros(8).long()) for _ in range(200)]
    means, variances = [], []
    for images, _ in data:
        x = images.double()
        for _ in range(2):
            means.append(x.mean((0, 2, 3)))
            variances.append(x.transpose(0, 1).flatten(1).var(1))
            x = nn.functional.batch_norm(x, None, None, training=True).relu()
    collect_running_statistics(model, data)
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.running_mean.dtype == norm.running_var.dtype == dtype
    assert norm.num_batches_tracked == 400
    # One rounding of the average, and those of the layer in between, which have no bias.
    for kept, values in ((norm.running_mean, means), (norm.running_var, variances)):
        assert_close(kept, torch.stack(values).mean(0))
    assert not norm._forward_hooks


def test_noise_on_pixels() -> None:
    part = ImageSet(torch.zeros(2).long(), 8, images=torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    splits = ImageSplits("x", 1, ("a",), 8, mean, std, part, part, part, "none")
    pixels = torch.rand(64, 3, 8, 8)
    shape = (1, 3, 1, 1)
    images = (pixels - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    (noisy, _), = noisy_batches([(images, torch.zeros(64))], splits, 0.1, seed=3)  # fmt: skip
    back = noisy * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
    assert float(back.min().round(decimals=5)) >= 0 and float(back.max().round(decimals=5)) <= 1
    inner = (pixels > 0.4) & (pixels < 0.6)
    # compared by hand: the deviation of some thousand random draws.
    assert abs(float((back - pixels)[inner].std()) - 0.1) < 0.005
    (again, _), = noisy_batches([(images, torch.zeros(64))], splits, 0.1, seed=3)  # fmt: skip
    assert torch.equal(noisy, again)
    (clean, _), = noisy_batches([(images, torch.zeros(64))], splits, 0.0)  # fmt: skip
    assert_close(clean, images)
    with pytest.raises(ValueError, match="deviation: got -1"):
        noisy_batches([], splits, -1)
