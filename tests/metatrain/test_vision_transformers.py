"""Vision transformers as a source of architectures: their sizes, their graphs, training on them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.func import functional_call

import ghn_fast
from ghn_fast.graph.rules import GraphRules
from ghn_fast.metatrain import TrainConfig, train
from ghn_fast.metatrain.metrics import read_metrics
from ghn_fast.metatrain.vision_transformers import ViTItem, vit_batches

pytest.importorskip("torchvision")

SMALL: dict[str, Any] = {
    "dataset": "digits",
    "image_size": 8,
    "batch_size": 4,
    "deepnets": "vits",
    "meta_batch": 2,
    "min_channels": 32,
    "max_channels": 64,
    "hid": 8,
    "max_shape": (16, 16, 3, 3),
    "milestones": (),
}


def batches(**changed: Any) -> Any:
    settings: dict[str, Any] = {
        "seed": 1, "start_step": 0, "num_classes": 10, "image_size": 32,
        "widths": (32, 512), "virtual_edges": 50, "rules": GraphRules(),
    }  # fmt: skip
    return vit_batches(4, **(settings | changed))


def test_sizes_are_those_of_the_published_ranges() -> None:
    items = [item for batch in itertools.islice(batches(), 60) for item in batch]
    ranges = {3: (384, 512), 4: (256, 384), 5: (256, 384)}
    for item in items:
        least, most = ranges.get(item.layers, (128, 256))
        assert least <= item.width <= most
        assert item.width % 32 == 0
        assert item.width % item.heads == 0
        assert item.heads in ((3, 6, 12) if item.width % 3 == 0 else (4, 8))
    assert {item.layers for item in items} == set(range(3, 10))


def test_a_step_depends_on_seed_and_number_alone() -> None:
    first = list(itertools.islice(batches(), 3))
    assert next(batches(start_step=2)) == first[2]
    assert next(batches(seed=2)) != first[0]
    narrow = [i for b in itertools.islice(batches(widths=(32, 64)), 5) for i in b]
    assert {item.width for item in narrow} <= {32, 64}


def test_the_graph_names_what_the_network_has() -> None:
    item = ViTItem(0, 3, 32, 4, 10, 8, 50, GraphRules())
    network = item.build(10, 8)
    ghn = ghn_fast.GHN(ghn_fast.GHNConfig(hid=8, max_shape=(16, 16, 3, 3)))
    (tensors,) = ghn.predict_tensors([item.graph_for(10, 8)])
    own = dict(network.named_parameters())
    assert set(tensors) <= set(own)
    assert len(tensors) > 0.8 * len(own)
    for name, tensor in tensors.items():
        assert tensor.shape == own[name].shape, name
    logits = functional_call(network, tensors, (torch.randn(2, 3, 8, 8),))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()
    assert item.graph_for(10, 8) is item.graph_for(10, 8)


def test_training_and_going_on(tmp_path: Path) -> None:
    whole = train(TrainConfig.from_dict(SMALL | {"steps": 4}), tmp_path / "whole")
    assert whole.step == 4
    losses = [line["loss"] for line in read_metrics(tmp_path / "whole")]
    assert all(0 < loss < 20 for loss in losses)
    train(TrainConfig.from_dict(SMALL | {"steps": 2}), tmp_path / "parts")
    train(TrainConfig.from_dict(SMALL | {"steps": 4}), tmp_path / "parts")
    assert [line["loss"] for line in read_metrics(tmp_path / "parts")] == losses


@pytest.mark.parametrize(("changed", "message"), [
    ({"pool_size": 4}, "pool_size: got 4, needs 0 for vision transformers"),
    ({"graph_workers": 1}, "graph_workers: got 1, needs 0 for vision transformers"),
    ({"image_size": 9}, "image_size: got 9, needs a multiple of 2"),
])  # fmt: skip
def test_settings_that_do_not_fit(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        train(TrainConfig.from_dict(SMALL | {"steps": 1} | changed), tmp_path)
