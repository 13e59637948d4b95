"""Training on text: bytes, GPT-2s, and that a run of them continues to the same numbers."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from ghn_fast.graph.rules import GraphRules
from ghn_fast.metatrain.config import TrainConfig
from ghn_fast.metatrain.language import (
    GPTItem,
    generated_text,
    gpt_batches,
    load_text,
    text_batches,
)
from ghn_fast.metatrain.run import train

SMALL: dict[str, Any] = {
    "dataset": "text:generated",
    "image_size": 8,
    "batch_size": 2,
    "deepnets": "gpts",
    "meta_batch": 1,
    "min_channels": 16,
    "max_channels": 16,
    "hid": 8,
    "propagator": "graphormer",
    "layers": 1,
    "heads": 2,
    "rules": "language",
    "decoder": "low_rank",
    "rank": 4,
    "vectors": "low_rank",
    "weights": "standard_deviation",
    "language": True,
    "max_shape": (32, 32, 16, 16),
    "algorithm": "adamw",
    "norm_penalty": 3e-5,
    # A constant learning rate, whatever the number of steps.
    "milestones": (),
}


def test_generated_text_is_always_the_same() -> None:
    text = generated_text(2000)
    assert text == generated_text(2000)
    assert len(text) == 2000
    assert text.isascii()
    assert not any(letter in text for letter in "SNABV")


def test_batches_follow_from_seed_and_step(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(bytes(range(256)))
    splits = load_text("text:text.txt", str(tmp_path), 5)
    batches = list(islice(text_batches(splits, 3, seed=1), 4))
    again = list(islice(text_batches(splits, 3, seed=1, start_step=2), 2))
    for (a, b), (c, d) in zip(batches[2:], again, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)
    for symbols, following in batches:
        assert symbols.shape == (3, 5)
        assert torch.equal(symbols.flatten() + 1, following)


def test_texts_that_are_not_there_or_too_short(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("abc")
    with pytest.raises(FileNotFoundError, match=r"dataset: got 'text:none.txt', but .* is no file"):
        load_text("text:none.txt", str(tmp_path))
    with pytest.raises(ValueError, match="has 3 bytes, needs at least 9"):
        load_text("text:short.txt", str(tmp_path), 8)
    with pytest.raises(ValueError, match="image_size: got 0 bytes"):
        load_text("text:short.txt", str(tmp_path), 0)


def test_networks_are_those_of_the_published_ranges() -> None:
    settings = {"context": 8, "virtual_edges": 50, "rules": GraphRules.LANGUAGE}
    drawn = [
        item
        for items in islice(gpt_batches(4, seed=2, start_step=0, widths=(8, 256), **settings), 50)
        for item in items
    ]
    widths = {3: (176, 256), 4: (128, 176), 5: (128, 176)}
    for item in drawn:
        least, most = widths.get(item.layers, (72, 176))
        assert 3 <= item.layers <= 9
        assert least <= item.width <= most
        assert item.width % 8 == 0
    small = next(gpt_batches(3, seed=2, start_step=0, widths=(16, 32), **settings))
    assert all(16 <= item.width <= 32 for item in small)
    later = next(gpt_batches(4, seed=2, start_step=49, widths=(8, 256), **settings))
    assert later == drawn[-4:]


def test_a_graph_fits_its_network() -> None:
    pytest.importorskip("transformers")
    item = GPTItem(0, 3, 16, 8, 50, GraphRules.LANGUAGE)
    network = item.build()
    assert network(torch.zeros(2, 8, dtype=torch.int64)).shape == (16, 256)
    names = dict(network.named_parameters())
    predicted = {target.name for target in item.graph.targets}
    assert predicted == set(names)
    assert item.num_nodes == item.graph.num_nodes
    assert item.name == "gpt-0-3x16"


def test_a_run_continues_to_the_same_numbers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    for folder, parts in (("whole", (4,)), ("parts", (2, 4))):
        for steps in parts:
            config = TrainConfig(**SMALL, steps=steps, checkpoint_every=2)
            train(config, tmp_path / folder)
    rows = [
        [json.loads(line)["loss"] for line in (tmp_path / folder / "metrics.jsonl").open()]
        for folder in ("whole", "parts")
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 4


def test_text_needs_language_models(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="deepnets: got '3', needs 'gpts' for text"):
        train(TrainConfig(**{**SMALL, "deepnets": "3"}, steps=1), tmp_path / "run")
    with pytest.raises(ValueError, match="pool_size: got 4, needs 0 for text"):
        train(TrainConfig(**SMALL, steps=1, pool_size=4), tmp_path / "run")
    with pytest.raises(ValueError, match="eval_every: got 5, needs 0 for text"):
        train(TrainConfig(**SMALL, steps=1, eval_every=5), tmp_path / "other")
