"""The hypernetwork that ships."""

from __future__ import annotations

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


def test_bundled_names() -> None:
    assert bundled() == ["ghn2-digits"]


@pytest.mark.parametrize("name", ["ghn2-digits"])
def test_is_small_and_comes_with_its_log(name: str) -> None:
    folder = FOLDER / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8_000_000
    for stage in json.loads((folder / "training.json").read_text()):
        config = TrainConfig.from_dict(stage["settings"])
        assert config.data.dataset == "digits"
        lines = (folder / stage["metrics"]).read_text().splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        assert steps == list(range(1, stage["steps"] + 1))


@pytest.mark.parametrize("index", [0, 2])
def test_predicts_networks_that_recognise_digits(index: int) -> None:
    ghn = ghn_fast.from_pretrained("ghn2-digits")
    splits = load_images("digits")
    item = SampledNets("test", 500, 0)[index]
    torch.manual_seed(0)
    network = item.build(num_classes=10, image_size=32)
    before = accuracy(network, eval_batches(splits.test, splits, 64)).top1
    ghn.predict(network, item.graph)
    after = accuracy(network, eval_batches(splits.test, splits, 64)).top1
    # Chance is 10 %; a hypernetwork that has learnt something is far above it.
    assert after > max(30.0, before + 15.0)
