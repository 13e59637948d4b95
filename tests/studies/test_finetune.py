"""Fine-tuning on a few images of each class, and the command."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ghn_fast
from command_line import Run
from ghn_fast.studies.finetune import DIVERSE, FinetuneReport, finetune_networks
from ghn_fast.studies.networks import Network
from ghn_fast.studies.subsets import few_shot
from ghn_fast.studies.training import TrainingSettings
from ghn_fast.vision import ImageSplits

QUICK = TrainingSettings(steps=6, batch_size=8, lr=0.05, evaluations=3)


def test_subsets(splits: ImageSplits) -> None:
    small, large = few_shot(splits, 3, seed=1), few_shot(splits, 9, seed=1)
    assert torch.bincount(small.train.targets).tolist() == [3] * 4
    assert torch.bincount(small.val.targets).tolist() == [3] * 4
    assert torch.bincount(large.val.targets).tolist() == [8] * 4  # all that there are
    assert small.test is splits.test
    known = {image.numpy().tobytes() for image in large.train.images}  # type: ignore[union-attr]
    assert all(image.numpy().tobytes() in known for image in small.train.images)  # type: ignore[union-attr]
    other = few_shot(splits, 3, seed=2)
    assert not torch.equal(other.train.images, small.train.images)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="class a of squares has 24 training images"):
        few_shot(splits, 25)
    with pytest.raises(ValueError, match="shots: got 0"):
        few_shot(splits, 0)


def test_starts_shots_and_seeds(splits: ImageSplits, network: Network, tmp_path: Path) -> None:
    torch.manual_seed(0)
    ghn = ghn_fast.GHN(ghn_fast.GHNConfig(hid=8, max_shape=(16, 16, 5, 5)))

    def run(stop: threading.Event | None = None, **options: object) -> FinetuneReport:
        return finetune_networks(
            [network], ["random", "predicted", DIVERSE], splits, [2, 4], QUICK,
            lrs=(1e-6, 0.05), ghn=ghn, seeds=(0, 1), out=tmp_path, stop=stop, **options,
        )  # fmt: skip

    stop = threading.Event()

    def end(done: int, total: int, training: object) -> None:
        if done == 3:
            stop.set()

    part = run(stop, on_result=end)
    assert not part.finished
    assert len(part.trainings) == 3
    report = run()
    assert report.finished
    assert len(report.trainings) == 12
    assert [t.to_dict() for t in report.trainings[:3]] == [t.to_dict() for t in part.trainings]
    assert report.trainings[0].lr == 0.05
    assert len(report.top1("small", "random", 4)) == 2
    starts = {t.init: t.curve.points[0].loss for t in report.trainings if t.seed == 0}
    assert len(set(starts.values())) == 3
    with pytest.raises(ValueError, match=r"weight_decay: got 0\.5, but .* holds a training with"):
        finetune_networks(
            [network], ["random"], splits, [2], replace(QUICK, weight_decay=0.5),
            lrs=(1e-6, 0.05), seeds=(0,), out=tmp_path,
        )  # fmt: skip


def test_the_learning_rate_is_chosen_once_for_all_calls(
    splits: ImageSplits, network: Network, tmp_path: Path
) -> None:
    """A call that goes on takes the choice from what is done, and trains the new seed alone."""

    def steps(seeds: tuple[int, ...], most: int = 100) -> int:
        taken: list[int] = []
        stop = threading.Event()

        def on_step(*_: object) -> None:
            taken.append(1)
            if len(taken) == most:
                stop.set()

        finetune_networks(
            [network], ["random"], splits, [2], QUICK, lrs=(1e-6, 0.05), seeds=seeds, out=tmp_path,
            stop=stop, on_step=on_step,
        )  # fmt: skip
        return len(taken)

    assert steps((0,), most=8) == 8  # in the second of two trials
    assert steps((0,), most=9) == 9  # that again, and half of the training
    assert steps((0,)) == 6
    assert steps((0, 1)) == 6
    with pytest.raises(ValueError, match="lr_seed: got 1, but"):
        steps((1,))


def test_mistakes(splits: ImageSplits, network: Network) -> None:
    with pytest.raises(ValueError, match="has 24 training images"):
        finetune_networks([network], ["random"], splits, [500], QUICK)
    with pytest.raises(ValueError, match="needs a hypernetwork"):
        finetune_networks([network], [DIVERSE], splits, [2], QUICK)
    with pytest.raises(ValueError, match="needs at least one of each"):
        finetune_networks([network], [], splits, [2], QUICK)
    with pytest.raises(ValueError, match=r"lr: got -1\.0"):
        finetune_networks([network], ["random"], splits, [2], QUICK, lrs=(-1.0,))
    for wanted in (
        {"inits": ["random", "random"]},
        {"shots": [2, 2]},
        {"seeds": (0, 1, 0)},
        {"lrs": (0.1, 0.1)},
    ):
        arguments: dict[str, Any] = {"inits": ["random"], "shots": [2], **wanted}
        with pytest.raises(ValueError, match=f"{next(iter(wanted))}: .* comes twice"):
            finetune_networks([network], splits=splits, settings=QUICK, **arguments)
    wrong = Network("wrong", factory=lambda classes, size: network.build(7, size))
    report = finetune_networks([wrong, network], ["random"], splits, [2], QUICK, seeds=(0,))
    assert "needs logits (2, 4)" in (report.trainings[0].error or "")
    assert report.trainings[1].error is None  # one that fails does not end the others


def test_the_command(tmp_path: Path, run: Run) -> None:
    common = ("deepnets:val:1", "--image-size", 8, "--channels", 8, "--cells", 3, "--steps", 2,
              "--batch-size", 8, "--seeds", 2)  # fmt: skip
    out = tmp_path / "out"
    status, printed, error = run("finetune", *common, "--shots", 2, "--out", out)
    assert status == 0, error
    assert "before training" in printed
    data = json.loads((out / "finetune.json").read_text())
    assert [t["init"] for t in data["trainings"]] == ["random"] * 2 + ["predicted"] * 2
    assert (out / "finetune.png").stat().st_size > 1000
    for arguments, message in (
        ((*common, "--shots", 5000), "training images"),
        ((*common, "--head", "lost"), "needs one of auto, predict, keep"),
        ((*common, "--init", "nowhere.safetensors"), "no such file"),
    ):
        status, _, error = run("finetune", *arguments, "--out", tmp_path / "no")
        assert status == 2
        assert message in error
        assert not (tmp_path / "no").exists()
