"""The hypernetwork that ships."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

import ghn_fast
from ghn_fast.deepnets import SampledNets
from ghn_fast.hypernet.checkpoint import bundled
from ghn_fast.metatrain import TrainConfig
from ghn_fast.vision import accuracy, eval_batches, load_images

FOLDER = Path(ghn_fast.__file__).parent / "pretrained"


# What each was trained on, and images that come with the package for a test of it.
DATASETS = {
    "ghn2-digits": ("digits", "digits"),
    "ghn2-cifar10": ("folder:cifar10-jpeg", "cifar10-sample"),
}


def test_bundled_names() -> None:
    assert bundled() == sorted(DATASETS)


@pytest.mark.parametrize("name", DATASETS)
def test_is_small_and_comes_with_its_log(name: str) -> None:
    folder = FOLDER / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8_000_000
    for stage in json.loads((folder / "training.json").read_text()):
        config = TrainConfig.from_dict(stage["settings"])
        assert config.data.dataset == DATASETS[name][0]
        # Nothing of the machine that it was trained on.
        assert config.data.data_root is None
        assert not str(config.init or "").startswith("/")
        with open(folder / stage["metrics"], newline="") as file:
            rows = list(csv.DictReader(file))
        assert [int(row["step"]) for row in rows] == list(range(1, stage["steps"] + 1))
        assert all(float(row["loss"]) > 0 and 0 <= float(row["top1"]) <= 100 for row in rows)


# Chance is 10 %; a hypernetwork that has learnt something is far above it.
@pytest.mark.parametrize(
    ("name", "index", "least"),
    [("ghn2-digits", 0, 30.0), ("ghn2-digits", 2, 30.0), ("ghn2-cifar10", 0, 35.0)],
)
def test_predicts_networks_that_recognise_images(name: str, index: int, least: float) -> None:
    ghn = ghn_fast.from_pretrained(name)
    splits = load_images(DATASETS[name][1])
    item = SampledNets("test", 500, 0)[index]
    torch.manual_seed(0)
    network = item.build(num_classes=10, image_size=32)
    before = accuracy(network, eval_batches(splits.test, splits, 64)).top1
    ghn.predict(network, item.graph)
    after = accuracy(network, eval_batches(splits.test, splits, 64)).top1
    assert after > max(least, before + 5.0)
