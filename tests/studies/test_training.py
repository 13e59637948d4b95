"""Training of one network: it learns, continues exactly, and refuses what it cannot train."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ghn_fast.studies.curves import Point, TrainingCurve, draw_curves
from ghn_fast.studies.networks import Network
from ghn_fast.studies.training import TrainingSettings, train_network
from ghn_fast.vision import ImageSplits, train_batches

QUICK = TrainingSettings(steps=24, batch_size=32, lr=0.05, evaluations=4)


def test_a_network_learns(splits: ImageSplits, network: Network) -> None:
    model = network.build(4, 16)
    result = train_network(model, splits, QUICK)
    curve = result.curve
    assert result.finished
    assert [point.step for point in curve.points] == [0, 8, 16, 24]
    assert len(curve.train_loss) == curve.steps == 24
    assert curve.points[-1].top1 > 80 > curve.points[0].top1 + 20
    assert not model.training


def test_the_steps_are_those_of_a_plain_loop(splits: ImageSplits) -> None:
    """Against torch's own optimiser and schedule, without dropout and BatchNorm."""

    def linear() -> nn.Module:
        torch.manual_seed(5)
        return nn.Sequential(nn.Flatten(), nn.Linear(768, 4))

    settings = TrainingSettings(epochs=2, batch_size=24, clip=0.5, evaluations=2)
    ours, theirs = linear(), linear()
    result = train_network(ours, splits, settings, seed=3)
    optimizer = torch.optim.SGD(theirs.parameters(), 0.025, momentum=0.9, weight_decay=3e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
    losses = []
    batches = train_batches(splits, 24, seed=3)
    for _ in range(8):
        images, targets = next(batches)
        loss = F.cross_entropy(theirs(images), targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    from tolerances import assert_close

    assert_close(torch.tensor(result.curve.train_loss), torch.tensor(losses))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_close(one, other)


def test_an_interrupted_training_continues_exactly(
    splits: ImageSplits, network: Network, tmp_path: Path
) -> None:
    whole = network.build(4, 16)
    expected = train_network(whole, splits, QUICK, seed=1).curve
    stop = threading.Event()

    def after_ten(done: int, total: int, curve: TrainingCurve) -> None:
        if done == 10:
            stop.set()

    first = train_network(
        network.build(4, 16), splits, QUICK, seed=1, folder=tmp_path, stop=stop, on_step=after_ten
    )
    assert not first.finished
    assert first.curve.steps == 10
    model = network.build(4, 16, seed=99)  # its values come from the state
    second = train_network(model, splits, QUICK, seed=1, folder=tmp_path)
    assert second.finished
    assert second.curve.train_loss == expected.train_loss
    assert second.curve.points == expected.points
    for one, other in zip(model.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match=r"lr: got 0\.1, but .* holds a training with 0\.05"):
        other = TrainingSettings(steps=24, batch_size=32, lr=0.1, evaluations=4)
        train_network(model, splits, other, seed=1, folder=tmp_path)
    (tmp_path / "training.pt").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="no state of a training"):
        train_network(model, splits, QUICK, seed=1, folder=tmp_path)


def test_a_loss_without_bounds_ends_the_training(splits: ImageSplits, network: Network) -> None:
    settings = TrainingSettings(steps=30, batch_size=32, lr=1e30, clip=0, schedule="constant")
    result = train_network(network.build(4, 16), splits, settings)
    assert result.diverged
    assert all(math.isfinite(loss) for loss in result.curve.train_loss)


def test_no_parameters_to_train_are_not_all_of_them(splits: ImageSplits, network: Network) -> None:
    with pytest.raises(ValueError, match="none of its parameters"):
        train_network(network.build(4, 16), splits, parameters=[])


def test_what_is_no_classifier_is_refused(splits: ImageSplits, network: Network) -> None:
    with pytest.raises(ValueError, match=r"returns \(2, 5\) for 2 images, needs logits \(2, 4\)"):
        train_network(network.build(5, 16), splits, QUICK)
    with pytest.raises(ValueError, match="a classifier of the 4 classes of squares"):
        train_network(nn.Conv2d(3, 4, 3), splits, QUICK)
    with pytest.raises(ValueError, match="cannot take images of 16×16"):
        train_network(nn.Sequential(nn.Flatten(), nn.Linear(7, 4)), splits, QUICK)
    with pytest.raises(ValueError, match="images: got 'all'"):
        train_network(network.build(4, 16), splits, QUICK, images="all")
    frozen = network.build(4, 16).requires_grad_(False)
    with pytest.raises(ValueError, match="requires gradients"):
        train_network(frozen, splits, QUICK)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 0.0}, "lr: got 0.0"),
        ({"epochs": math.inf}, "epochs"),
        ({"optimizer": "lion"}, "sgd, adam, adamw"),
        ({"schedule": "step"}, "cosine, constant"),
        ({"batch_size": 1}, "batch_size: got 1"),
        ({"evaluations": 1}, "evaluations"),
    ],
)
def test_settings_are_checked(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**values)  # type: ignore[arg-type]


def test_adam_without_augmentation_and_with_warm_up(splits: ImageSplits, network: Network) -> None:
    settings = TrainingSettings(
        steps=8, optimizer="adamw", lr=1e-2, warmup=3, augment=False, batch_size=32, evaluations=2
    )
    assert [round(settings.lr_at(step, 8), 5) for step in (0, 3)] == [0.0025, 0.00691]
    curve = train_network(network.build(4, 16), splits, settings).curve
    assert curve.train_loss[-1] < curve.train_loss[0]


def curve_of(tops: list[float], every: int = 10) -> TrainingCurve:
    points = [Point(every * i, top, 100.0, 1.0) for i, top in enumerate(tops)]
    return TrainingCurve(points, [1.0] * every * (len(tops) - 1), images=100)


def test_what_a_curve_says(tmp_path: Path) -> None:
    curve = curve_of([10.0, 30.0, 30.0, 50.0])
    assert curve.steps_to_accuracy(5) == 0
    assert curve.steps_to_accuracy(20) == 5
    assert curve.steps_to_accuracy(40) == 25
    assert curve.steps_to_accuracy(51) is None
    curve.train_top1 = [0.0] * 4 + [100.0] * 6 + [90.0] * 20
    # Five batches hold 500 images.
    assert curve.steps_to_training_accuracy(95) == 9
    assert curve.steps_to_training_accuracy(60, window=5) == 7
    assert curve.steps_to_training_accuracy(95, window=25) is None
    assert TrainingCurve.from_dict(curve.to_dict()) == curve
    draw_curves({"random": [curve, curve_of([9.0, 20.0, 35.0, 55.0])]}, tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="must end in"):
        draw_curves({"random": [curve]}, tmp_path / "c.gif")
    with pytest.raises(ValueError, match="curves: got none"):
        draw_curves({}, tmp_path / "c.png")
