from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ghn_fast.vision import (
    ArchitectureResult,
    EvaluationReport,
    ImageSet,
    ImageSplits,
    accuracy,
    eval_batches,
    evaluate_networks,
    summarise,
)
from ghn_fast.vision.precision import PRECISIONS, choose
from tolerances import assert_close


class Fixed(nn.Module):
    """Returns prepared logits, the next rows at each call, wrapped by `wrap`."""

    def __init__(self, logits: Tensor, wrap: Callable[[Tensor], Any] = lambda x: x) -> None:
        super().__init__()
        self.logits, self.wrap, self.position = logits, wrap, 0
        self.inner = nn.Dropout()
        self.modes: list[bool] = []

    def forward(self, images: Tensor) -> Any:
        rows = self.logits[self.position : self.position + len(images)]
        self.position += len(images)
        self.modes.append(self.training or self.inner.training)
        return self.wrap(rows)


def batches_of(targets: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.zeros(len(part), 3, 4, 4), part) for part in targets.split(size)]


def by_hand(logits: Tensor, targets: Tensor) -> tuple[float, float, float]:
    """top-1, top-5 and cross-entropy with NumPy."""
    scores, labels = logits.double().numpy(), targets.numpy()
    order = np.argsort(-scores, axis=1, kind="stable")
    top1 = np.mean([labels[i] in order[i, :1] for i in range(len(labels))])
    top5 = np.mean([labels[i] in order[i, :5] for i in range(len(labels))])
    logsumexp = np.log(np.exp(scores).sum(axis=1))
    loss = np.mean(logsumexp - scores[np.arange(len(labels)), labels])
    return 100 * top1, 100 * top5, loss


@pytest.mark.parametrize("classes", [3, 12])
def test_accuracy_by_hand(classes: int) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(50, classes, generator=generator)
    targets = torch.randint(0, classes, (50,), generator=generator)
    logits[torch.arange(0, 50, 3), targets[::3]] += 2
    result = accuracy(Fixed(logits), batches_of(targets, 7))
    top1, top5, loss = by_hand(logits, targets)
    assert_close(result.top1, top1)
    assert 0 < top1 < 100
    assert_close(result.top5, top5)
    assert_close(result.loss, loss, dtype=torch.float32)
    assert result.images == 50 and result.finite


def test_equal_logits_are_not_all_right() -> None:
    targets = torch.arange(10)
    result = accuracy(Fixed(torch.zeros(10, 10)), batches_of(targets, 4))
    assert (result.top1, result.top5) == (10, 50)
    assert_close(result.loss, math.log(10), dtype=torch.float32)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: (x, torch.full_like(x, 9.0)),
        lambda x: [x],
        lambda x: {"aux": -x, "out": x},
        lambda x: {"logits": x, "aux": -x},
        lambda x: x.to(torch.bfloat16),
    ],
)
def test_outputs_with_more_than_logits(wrap: Callable[[Tensor], Any]) -> None:
    logits = torch.eye(6) * 4
    targets = torch.tensor([0, 1, 2, 3, 4, 0])
    result = accuracy(Fixed(logits, wrap), batches_of(targets, 6))
    assert_close(result.top1, 100 * 5 / 6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_outputs_that_are_not_finite_are_wrong_and_reported(bad: float) -> None:
    targets = torch.tensor([0, 1, 2, 3])
    logits = torch.eye(4) * 3
    logits[1, 1] = bad
    logits[2, 0] = bad
    result = accuracy(Fixed(logits), batches_of(targets, 3))
    assert not result.finite
    assert (result.top1, result.top5) == (50, 50)
    assert_close(result.loss, math.log(math.exp(3) + 3) - 3, dtype=torch.float32)

    nothing = accuracy(Fixed(torch.full((4, 4), bad)), batches_of(targets, 3))
    assert nothing.top1 == nothing.top5 == 0
    assert math.isnan(nothing.loss) and not nothing.finite


@pytest.mark.parametrize("fails", [False, True])
def test_training_flags_are_restored(fails: bool) -> None:
    model = Fixed(torch.eye(4), (lambda x: x[:, 0]) if fails else (lambda x: x))
    model.train()
    model.inner.eval()
    if fails:
        with pytest.raises(ValueError, match="logits"):
            accuracy(model, batches_of(torch.arange(4), 2))
    else:
        accuracy(model, batches_of(torch.arange(4), 2))
    assert model.training and not model.inner.training
    assert not any(model.modes)


def test_no_gradients_and_no_change_of_parameters() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    recorded = []
    model.register_forward_hook(lambda _m, _i, out: recorded.append(out.requires_grad))
    accuracy(model, batches_of(torch.arange(4), 2))
    assert recorded == [False, False]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_network_can_be_trained_after_it_was_evaluated() -> None:
    class Keeps(nn.Module):
        scale: Tensor | None = None

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(48, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.layer(x.flatten(1))
            if self.scale is None:
                self.scale = torch.full_like(x[0], 2.0)
            return x * self.scale

    model = Keeps()
    images = torch.ones(1, 3, 4, 4)
    accuracy(model, [(images, torch.tensor([0]))])
    model(images).sum().backward()
    assert_close(model.layer.weight.grad, torch.full((4, 48), 2.0))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([0, -1]), "at least 0, got -1"),
        (torch.tensor([0.0, 1.0]), r"torch\.int64, got \(2,\) of torch\.float32"),
        (torch.eye(2).long(), r"\(B,\).*got \(2, 2\)"),
    ],
)
def test_targets_that_are_no_classes(targets: Tensor, message: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    with pytest.raises(ValueError, match=f"targets must be classes .*{message}"):
        accuracy(model, [(torch.zeros(2, 3, 4, 4), targets)])


def test_accuracy_errors() -> None:
    with pytest.raises(ValueError, match="no images"):
        accuracy(Fixed(torch.eye(4)), [])
    with pytest.raises(TypeError, match="str"):
        accuracy(Fixed(torch.eye(4), lambda x: "logits"), batches_of(torch.arange(4), 2))
    with pytest.raises(TypeError, match="NoneType"):
        accuracy(Fixed(torch.eye(4), lambda x: {}), batches_of(torch.arange(4), 2))
    with pytest.raises(ValueError, match=r"4 classes.*go up to 4"):
        accuracy(Fixed(torch.eye(4)), batches_of(torch.arange(1, 5), 4))


def test_summarise() -> None:
    values = [3.0, 5.0, 10.0]
    summary = summarise(values)
    assert summary.mean == 6 and summary.best == 10 and summary.worst == 3 and summary.count == 3
    assert_close(summary.standard_error, np.std(values, ddof=1) / math.sqrt(3))
    alone = summarise([7.0])
    assert alone.mean == alone.best == alone.worst == 7
    assert math.isnan(alone.standard_error)
    with pytest.raises(ValueError, match="at least one"):
        summarise([])
    with pytest.raises(ValueError, match="finite"):
        summarise([1.0, math.nan])


# --- evaluating architectures


def bright_splits() -> ImageSplits:
    """Two classes that differ in brightness, sorted by class as folders are."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(2).repeat_interleave(32)
    noise = torch.randint(0, 100, (64, 3, 8, 8), generator=generator)
    images = (noise + 100 * targets.view(-1, 1, 1, 1)).to(torch.uint8)
    part = ImageSet(targets, 8, images=images)
    return ImageSplits(
        name="bright",
        num_classes=2,
        class_names=("dark", "light"),
        image_size=8,
        mean=(0.4,) * 3,
        std=(0.2,) * 3,
        train=part,
        val=part.subset(torch.arange(19, 45)),
        test=part,
        augment="crop_flip",
    )


@dataclass
class Item:
    index: int
    kind: str = "good"

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.index}"

    @property
    def graph(self) -> str:
        return self.kind

    def build(self, *, num_classes: int, image_size: int) -> nn.Module:
        if self.kind == "unbuildable":
            raise MemoryError
        assert image_size == 8
        return nn.Sequential(
            nn.BatchNorm2d(3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(3, num_classes),
        )


def predict(model: nn.Module, graph: str) -> None:
    """Class 1 for images brighter than the average of their batch."""
    if graph == "unpredictable":
        raise RuntimeError("no such layer\n")
    weight = math.nan if graph == "nan" else 1.0
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.zero_()
        model[3].weight.copy_(torch.tensor([[0.0] * 3, [weight] * 3]))
        model[3].bias.zero_()


def test_networks_are_evaluated_with_batch_statistics() -> None:
    seen: list[ArchitectureResult] = []
    report = evaluate_networks(
        [Item(0), Item(7)], predict, bright_splits(), batch_size=16, on_result=seen.append
    )
    # With running statistics (0, 1) the mean brightness would not be subtracted from the images.
    assert [record.top1 for record in report.records] == [100, 100]
    assert seen == report.records
    assert [(r.index, r.name, r.num_params, r.error) for r in report.records] == [
        (0, "good-0", 14, None),
        (7, "good-7", 14, None),
    ]
    assert all(r.finite and r.top5 == 100 and r.loss < 0.6 for r in report.records)
    assert all(r.seconds_predict >= 0 and r.seconds_evaluate > 0 for r in report.records)
    assert report.predicted.mean == 100 and report.predicted.count == 2
    assert (report.dataset, report.images, report.num_images) == ("bright", "test", 64)
    assert report.batch_norm == "batch statistics"


def test_baseline_uses_batch_statistics_too() -> None:
    means: list[float] = []

    @dataclass
    class Watched(Item):
        def build(self, *, num_classes: int, image_size: int) -> nn.Module:
            model = super().build(num_classes=num_classes, image_size=image_size)
            assert isinstance(model, nn.Sequential)
            model[0].register_forward_hook(
                lambda _m, _i, out: means.append(out.mean(dim=(0, 2, 3)).abs().max().item())
            )
            return model

    evaluate_networks([Watched(0)], predict, bright_splits(), batch_size=16)
    # Four batches of images whose mean is not zero, with random and with predicted parameters.
    assert_close(means, [0.0] * 8, dtype=torch.float32, scale=1.0)


def test_predicted_numbers_equal_a_separate_evaluation() -> None:
    splits = bright_splits()
    report = evaluate_networks([Item(3)], predict, splits, batch_size=16, seed=5, images="val")
    model = Item(3).build(num_classes=2, image_size=8)
    predict(model, "good")
    model.train()
    right, loss = 0, 0.0
    for images, targets in eval_batches(splits.val, splits, 16, shuffle_seed=5):
        logits = model(images)
        right += int((logits.argmax(dim=1) == targets).sum())
        loss += nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    assert report.num_images == 26
    assert_close(report.records[0].top1, 100 * right / 26)
    assert_close(report.records[0].loss, loss / 26, dtype=torch.float32)


@pytest.mark.parametrize("precision", ["float32", "bf16", "auto"])
def test_networks_run_in_the_precision_that_is_asked_for(precision: str) -> None:
    types: list[torch.dtype] = []

    @dataclass
    class Watched(Item):
        def build(self, *, num_classes: int, image_size: int) -> nn.Module:
            model = super().build(num_classes=num_classes, image_size=image_size)
            assert isinstance(model, nn.Sequential)
            model[3].register_forward_hook(lambda _m, _i, out: types.append(out.dtype))
            return model

    splits = bright_splits()
    report = evaluate_networks(
        [Watched(0)], predict, splits, batch_size=16, statistics_batches=2, precision=precision
    )
    chosen = choose(torch.device("cpu"))[0] if precision == "auto" else precision
    assert report.precision == chosen
    wanted = PRECISIONS[chosen] or torch.float32
    # Random, predicted, and with training statistics, for which two batches go before.
    assert types == [wanted] * (4 + 4 + 2 + 4)
    exact = evaluate_networks([Item(0)], predict, splits, batch_size=16).records[0]
    assert report.records[0].top1 == 100
    # compared by hand: logits in bfloat16 have 8 bits.
    assert report.records[0].loss == pytest.approx(exact.loss, rel=2**-7)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="precision: got 'bf8', needs one of auto, float32"):
        evaluate_networks([Item(0)], predict, bright_splits(), precision="bf8")


def test_baseline_is_reproducible_and_optional() -> None:
    splits = bright_splits()
    items = [Item(i) for i in range(6)]
    state = torch.get_rng_state()
    first = evaluate_networks(items, predict, splits)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    again = evaluate_networks(items[3:], predict, splits)
    for one, two in zip(first.records[3:], again.records, strict=True):
        assert (one.random_top1, one.random_loss) == (two.random_top1, two.random_loss)
    assert len({record.random_loss for record in first.records}) == 6
    other = evaluate_networks(items, predict, splits, seed=1)
    assert other.records[0].random_loss != first.records[0].random_loss

    without = evaluate_networks(items, predict, splits, baseline=False)
    assert without.random is None and without.records[0].random_top1 is None
    assert without.predicted == first.predicted


def test_one_failure_does_not_stop_the_others() -> None:
    kinds = ["unbuildable", "good", "unpredictable", "nan"]
    items = [Item(i, kind) for i, kind in enumerate(kinds)]
    report = evaluate_networks(items, predict, bright_splits())
    unbuildable, good, unpredictable, nan = report.records
    assert unbuildable.error == "MemoryError" and unbuildable.num_params is None
    assert unpredictable.error == "RuntimeError: no such layer"
    assert unpredictable.random_top1 is not None and unpredictable.top1 is None
    assert good.error is None and good.top1 == 100
    assert nan.error is None and nan.finite is False and nan.top1 == 0
    assert report.predicted.count == 2 and report.random.count == 3
    assert report.failed == [unbuildable, unpredictable]


def test_interruption_is_not_swallowed() -> None:
    def interrupted(model: nn.Module, graph: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_networks([Item(0)], interrupted, bright_splits())


def test_limit() -> None:
    items = [Item(i) for i in range(5)]
    report = evaluate_networks(items, predict, bright_splits(), limit=2)
    assert [record.index for record in report.records] == [0, 1]
    with pytest.raises(ValueError, match="limit"):
        evaluate_networks(items, predict, bright_splits(), limit=0)
    with pytest.raises(ValueError, match="'test' or 'val'"):
        evaluate_networks(items, predict, bright_splits(), images="train")
    with pytest.raises(ValueError, match="batch_size"):
        evaluate_networks(items, predict, bright_splits(), batch_size=0)


# --- the report


def report_of(*pairs: tuple[float | None, float | None], dataset: str = "x") -> EvaluationReport:
    records = [
        ArchitectureResult(i, f"net-{i}", top1=top1, random_top1=random, loss=math.nan)
        for i, (top1, random) in enumerate(pairs)
    ]
    return EvaluationReport(
        dataset=dataset,
        images="test",
        num_images=100,
        num_classes=10,
        image_size=32,
        batch_size=64,
        seed=0,
        records=records,
    )


def test_json_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    report_of((50.0, 10.0), (70.0, None)).to_json(path)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert [record["top1"] for record in content["records"]] == [50, 70]
    assert content["records"][0]["loss"] is None
    assert content["predicted"]["mean"] == 60
    assert_close(content["predicted"]["standard_error"], 10.0)
    assert content["random"] == {
        "mean": 10.0,
        "standard_error": None,
        "best": 10.0,
        "worst": 10.0,
        "count": 1,
    }
    assert content["batch_norm"] == "batch statistics"
    assert os.listdir(tmp_path) == ["report.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_json_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "report.json"
    path.write_text("before")

    def fail(*_: object) -> None:
        assert path.read_text() == "before"
        raise OSError("disk full")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        report_of((50.0, 10.0)).to_json(path)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["report.json"]


@pytest.mark.parametrize(
    "pairs",
    [
        [(50.0, 10.0), (70.0, 12.0), (None, 9.0)],
        [(0.0, None)],
        [(100.0, 100.0)],
    ],
)
def test_histogram(tmp_path: Path, pairs: list[tuple[float | None, float | None]]) -> None:
    report = report_of(*pairs, dataset="folder:/some/where/pets")
    report.histogram(tmp_path / "h.png")
    report.histogram(tmp_path / "h.svg")
    assert (tmp_path / "h.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "h.svg").read_text()


def test_histogram_counts_every_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    from ghn_fast.vision import results as module

    report = report_of((50.0, 10.0), (70.0, 12.0), (None, 9.0), (100.0, 0.0), dataset="digits")
    axes = module._draw(report).axes[0]
    heights = []
    for patch in axes.patches:
        # A step outline: its area over the bin width is the number of values in it.
        xy = patch.get_xy()
        area = 0.5 * abs(
            np.dot(xy[:, 0], np.roll(xy[:, 1], 1)) - np.dot(xy[:, 1], np.roll(xy[:, 0], 1))
        )
        heights.append(area / 4)
    assert_close(heights, [3.0, 4.0])
    assert "digits" in axes.get_xlabel() and axes.get_ylabel() == "architectures"


def test_histogram_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.png, \.svg"):
        report_of((50.0, 10.0)).histogram(tmp_path / "h.jpeg")
    with pytest.raises(ValueError, match="nothing to draw"):
        report_of((None, 10.0)).histogram(tmp_path / "h.png")
