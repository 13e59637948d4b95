"""Trainings of several networks, and the command."""

from __future__ import annotations

import csv
import json
import threading
from pathlib import Path

import pytest

from command_line import Run
from ghn_fast.studies.networks import Network, find_networks
from ghn_fast.studies.sgd import SgdReport, Training, train_networks
from ghn_fast.studies.training import TrainingSettings
from ghn_fast.vision import ImageSplits

QUICK = TrainingSettings(steps=12, batch_size=32, lr=0.05, evaluations=4)


def test_networks_starts_and_seeds(splits: ImageSplits, network: Network, tmp_path: Path) -> None:
    broken = Network("broken", factory=lambda classes, size: network.build(classes + 1, size))
    seen: list[str] = []

    def run(**options: object) -> SgdReport:
        return train_networks(
            [network, broken], ["random", "he"], splits, QUICK, seeds=(0, 1), out=tmp_path,
            on_result=lambda done, total, t: seen.append(f"{done}/{total} {t.network}"),
            **options,
        )  # fmt: skip

    stop = threading.Event()
    part = run(stop=stop, on_step=lambda name, done, total, curve: stop.set())
    assert not part.finished
    assert part.trainings[0].curve.steps == 1
    report = run()
    assert report.finished
    assert [(t.network, t.init, t.seed) for t in report.trainings[:3]] == [
        *(("small", "random", 0), ("small", "random", 1), ("small", "he", 0)),
    ]
    assert seen[-1] == "8/8 broken"
    for training in report.trainings[:4]:
        assert training.error is None
        assert training.top1 is not None
        assert training.noisy_top1 is not None
        assert training.seconds is not None
        assert training.parameters == 216 + 16 + 5760 + 160 + 1284
    assert "needs logits (2, 4)" in (report.trainings[4].error or "")
    rows = list(csv.DictReader(report.labels().splitlines()))
    assert [row["network"] for row in rows] == ["small"] * 4
    assert float(rows[0]["top1"]) > 0
    # What is done is read, with the same numbers.
    assert run().to_dict() == report.to_dict()
    with pytest.raises(ValueError, match=r"lr: got 0\.1, but .* holds a training with 0\.05"):
        train_networks([network], ["random"], splits, TrainingSettings(steps=12, batch_size=32,
                       lr=0.1, evaluations=4), out=tmp_path)  # fmt: skip
    with pytest.raises(ValueError, match="needs at least one of each"):
        train_networks([], ["random"], splits, QUICK)


def test_processes_share_the_trainings(
    splits: ImageSplits, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes one after the other: each trains its half, and both return everything."""
    from ghn_fast.utils import distributed

    def run(rank: int, size: int, gather: object) -> SgdReport:
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: size)
        monkeypatch.setattr(distributed, "gather_objects", gather)
        settings = TrainingSettings(steps=2, batch_size=32, evaluations=2)
        return train_networks([network], ["random"], splits, settings, seeds=(0, 1, 2))

    alone = run(0, 1, lambda value: [value])
    parts: list[object] = []
    for rank in (0, 1):
        run(rank, 2, lambda value: parts.append(value) or [value, ([], True)])
    assert [len(part[0]) for part in parts] == [2, 1]  # type: ignore[index]
    together = run(0, 2, lambda value: parts)
    assert [t.seed for t in together.trainings] == [0, 1, 2]
    for one, other in zip(alone.trainings, together.trainings, strict=True):
        assert one.curve.train_loss == other.curve.train_loss


def test_worth_of_a_prediction() -> None:
    def training(init: str, tops: list[float], seed: int = 0) -> Training:
        from ghn_fast.studies.curves import Point, TrainingCurve

        points = [Point(10 * i, top, 100.0, 1.0) for i, top in enumerate(tops)]
        return Training("net", init, seed, curve=TrainingCurve(points))

    report = SgdReport(
        "squares",
        {},
        [
            training("random", [10.0, 30.0, 70.0]),
            training("predicted", [50.0, 60.0, 70.0]),
            training("random", [10.0, 20.0, 30.0], seed=1),
            training("predicted", [50.0, 60.0, 70.0], seed=1),
        ],
    )
    assert report.worth("net") == [15.0]
    assert report.worth("other") == []


def test_the_command(tmp_path: Path, run: Run) -> None:

    out = tmp_path / "out"
    common = ("--image-size", 8, "--channels", 8, "--cells", 3, "--steps", 2, "--batch-size", 8,
              "--evaluations", 2, "--out", out)  # fmt: skip
    status, printed, error = run("sgd", "deepnets:val:1", *common)
    assert status == 0, error
    assert "predicted" in printed
    assert "written" in printed
    data = json.loads((out / "sgd.json").read_text())
    assert [t["init"] for t in data["trainings"]] == ["random", "predicted"]
    assert (out / "curves.png").stat().st_size > 1000
    assert (out / "labels.csv").read_text().count("\n") == 3
    status, printed, error = run("sgd", "deepnets:val:1", *common, "--json")
    assert json.loads(printed) == data
    for arguments, message in (
        (("sgd", "resnet5000"), "the nearest are resnet50"),
        (("sgd", "vit", "--init", "zeros", "--out", tmp_path / "z"), "needs one of"),
        (("sgd", "vit", "--lr", "0"), "lr: got 0.0"),
        (("sgd", "vit", "--images", "all", "--out", tmp_path / "y"), "test or val"),
        (("sgd", "vit", "--device", "tpu"), "needs cpu, cuda"),
    ):
        status, _, error = run(*arguments)
        assert status == 2, arguments
        assert message in error
        assert not (tmp_path / "z").exists()
        assert error.splitlines()[-1].startswith("ghn-fast: error: ")


def test_file_names_are_safe() -> None:
    assert Network("a/b:c d").file_name == "a-b-c-d"
    assert find_networks(["vit"])[0].file_name == "vit"
