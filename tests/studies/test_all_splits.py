"""The table over all splits, diversity of weights, and both BatchNorm protocols."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

import ghn_fast
from command_line import Run
from ghn_fast.studies.diversity import WeightDiversity
from ghn_fast.studies.networks import Network
from ghn_fast.vision import (
    ArchitectureResult,
    ImageSplits,
    accuracy,
    collect_running_statistics,
    eval_batches,
    evaluate_networks,
    train_batches,
)
from tolerances import assert_close


def test_diversity_is_the_mean_over_pairs() -> None:
    measure = WeightDiversity()
    models = []
    for seed in range(4):
        torch.manual_seed(seed)
        layers = [nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 4, 3, bias=False)]
        models.append(nn.Sequential(*layers[: 1 + seed % 2], nn.Linear(4, 2)))
        measure.add(models[-1])
    assert measure.distance is not None
    distances = []
    for layer in (0, 1):
        weights = [
            m[layer].weight.detach().flatten() for m in models if isinstance(m[layer], nn.Conv2d)
        ]
        for i in range(len(weights)):
            for other in weights[:i]:
                distances.append(1 - float(torch.cosine_similarity(weights[i], other, dim=0)))
    assert_close(measure.distance, math.fsum(distances) / 7, dtype=torch.float32)
    assert WeightDiversity().distance is None


def test_both_protocols_and_noise(splits: ImageSplits) -> None:
    class Item:
        index, name, graph = 0, "small", None

    item = Item()
    made: list[nn.Module] = []

    def build(*, num_classes: int, image_size: int) -> nn.Module:
        torch.manual_seed(3)
        made.append(
            nn.Sequential(
                nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 14 * 14, 4)
            )
        )
        return made[-1]

    item.build = build  # type: ignore[attr-defined]
    seen: list[str] = []
    report = evaluate_networks(
        [item], lambda model, graph: None, splits, batch_size=32, baseline=False,
        statistics_batches=2, noise=0.2, on_network=lambda model, record: seen.append(record.name),
    )  # fmt: skip
    record = report.records[0]
    assert record.error is None
    assert seen == ["small"]
    assert report.running is not None and report.noisy is not None
    model = made[0]
    collect_running_statistics(model, train_batches(replace(splits, augment="none"), 32, seed=0), 2)
    found = accuracy(model, eval_batches(splits.test, splits, 32))
    assert (record.running_top1, record.running_top5) == (found.top1, found.top5)
    for values in ({"statistics_batches": -1}, {"noise": -0.5}):
        with pytest.raises(ValueError, match=f"{next(iter(values))}: got -"):
            evaluate_networks([item], lambda m, g: None, splits, **values)  # type: ignore[arg-type]


@dataclass
class Item:
    """A network as an architecture of a split."""

    network: Network
    index: int = 0
    name: str = "item"
    graph: None = None

    def build(self, *, num_classes: int, image_size: int) -> nn.Module:
        return self.network.build(num_classes, image_size)


def test_what_there_are_no_images_for(splits: ImageSplits, network: Network) -> None:
    """Without training images there is one protocol; without images to classify, an error."""
    item = Item(network)
    nothing = torch.arange(0)
    bare = replace(splits, train=splits.train.subset(nothing))
    report = evaluate_networks([item], lambda m, g: None, bare, statistics_batches=200)
    assert (report.failed, report.running, report.statistics_batches) == ([], None, 0)
    assert report.predicted is not None
    bare = replace(bare, val=splits.val.subset(nothing))
    with pytest.raises(ValueError, match="squares has no val images to classify"):
        evaluate_networks([item], lambda m, g: None, bare, images="val")


def test_training_images_are_drawn_once_for_all_networks(
    splits: ImageSplits, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ghn_fast.vision import evaluate, running_statistics

    plain = Network("plain", factory=lambda classes, size: _without_norms(network, classes, size))
    begun: list[int] = []
    passes: list[int] = []
    draw, measure = running_statistics.train_batches, evaluate.accuracy
    monkeypatch.setattr(
        running_statistics, "train_batches", lambda *a, **k: begun.append(1) or draw(*a, **k)
    )
    monkeypatch.setattr(evaluate, "accuracy", lambda *a, **k: passes.append(1) or measure(*a, **k))
    items = [Item(network), Item(network), Item(plain)]
    report = evaluate_networks(
        items, lambda m, g: None, splits, statistics_batches=2, baseline=False
    )
    assert report.failed == []
    assert len(begun) == 1
    # Without BatchNorm both protocols are the same measurement.
    assert len(passes) == 2 * 2 + 1
    last = report.records[-1]
    assert (last.running_top1, last.running_top5) == (last.top1, last.top5)


def test_known_records_are_taken_for_their_architecture_alone(
    splits: ImageSplits, network: Network
) -> None:
    items = [Item(network, index, f"net-{index}") for index in range(3)]
    known = {
        0: ArchitectureResult(0, "net-0", top1=1.0),
        1: ArchitectureResult(1, "else", top1=2.0),
    }
    predicted, shown = [], []
    report = evaluate_networks(
        items, lambda model, graph: predicted.append(model), splits, baseline=False, known=known,
        on_network=lambda model, record: shown.append((record.name, model)),
    )  # fmt: skip
    assert report.records[0] == known[0]
    assert [record.name for record in report.records] == ["net-0", "net-1", "net-2"]
    assert report.records[1].top1 not in (None, 2.0)
    assert shown == list(zip(["net-0", "net-1", "net-2"], predicted, strict=True))
    predicted.clear()
    evaluate_networks(items[:1], lambda m, g: predicted.append(m), splits, known=known)
    assert predicted == []

    def fail(model: nn.Module, graph: None) -> None:
        raise RuntimeError("no memory")

    report = evaluate_networks(
        items[:1], fail, splits, known=known, on_network=lambda model, record: None
    )
    assert report.records[0].top1 == 1.0
    assert report.records[0].error == "RuntimeError: no memory"
    assert known[0].error is None


def _without_norms(network: Network, classes: int, size: int) -> nn.Module:
    model = network.build(classes, size)
    assert isinstance(model, nn.Sequential)
    return nn.Sequential(*(m for m in model if not isinstance(m, nn.BatchNorm2d)))


def test_the_command(tmp_path: Path, run: Run) -> None:

    torch.manual_seed(0)
    ghn = ghn_fast.GHN(ghn_fast.GHNConfig(hid=8, max_shape=(8, 8, 3, 3)))
    ghn_fast.save_pretrained(ghn, tmp_path / "ghn")
    sources = tmp_path / "images"
    from PIL import Image

    for part in ("train", "test"):
        for label in range(10):
            folder = sources / part / f"c{label}"
            folder.mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (8, 8), (25 * label, 80 * i, 0)).save(folder / f"{i}.png")

    common = ("--ckpt", tmp_path / "ghn", "--dataset", f"folder:{sources}", "--image-size", 16)
    out = tmp_path / "out"
    status, printed, error = run(
        "evaluate-splits",
        *common,
        "--split",
        "val",
        "--split",
        "bnfree",
        "--limit",
        2,
        "--out",
        out,
    )
    assert status == 0, error
    assert "training statistics" in printed and "66.7" in printed
    data = json.loads((out / "splits.json").read_text())
    rows = data["rows"]
    assert data["image_size"] == 16
    assert [(row["name"], row["networks"]) for row in rows] == [("val", 2), ("bnfree", 2)]
    assert (out / "splits.png").stat().st_size > 1000
    status, printed, error = run(
        "evaluate", *common, "--limit", 1, "--out", out, "--json", "--noise", 0.1
    )
    assert status == 0, error
    report = json.loads(printed)
    assert report["image_size"] == 16
    assert report["running"]["count"] == report["noisy"]["count"] == 1
    status, _, error = run("evaluate-splits", *common, "--split", "huge", "--out", tmp_path / "no")
    assert status == 2
    assert "needs one of" in error
    status, _, error = run(
        "evaluate", *("--ckpt", tmp_path / "ghn"), "--dataset", "cifar10-sample", "--split", "val",
        "--out", tmp_path / "no",
    )  # fmt: skip
    assert status == 2
    assert "cifar10-sample has no val images" in error
