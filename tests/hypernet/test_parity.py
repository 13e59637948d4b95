"""Predicted parameters against numbers of the published implementation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import ghn_fast
from networks import SmallCNN
from published import check_sums
from tolerances import assert_close


def check(path: Path) -> None:
    published = json.loads(path.read_text())
    ghn = ghn_fast.from_pretrained(path.parent / f"{published['config']}.pt")
    classes = ghn.config.num_classes
    if published["model"] == "SmallCNN":
        model: nn.Module = SmallCNN(classes)
    else:
        model = torchvision.models.get_model(published["model"], num_classes=classes)
    report = ghn.predict(model.eval())
    assert_close(ghn.embed(model).mean(0), torch.tensor(published["embedding_mean"]), context="ghn")
    expected = published["parameters"]
    params = dict(model.named_parameters())
    assert set(params) == set(expected)
    assert set(report.predicted) >= {n for n, p in expected.items() if p["predicted"]}
    for name, numbers in expected.items():
        if not numbers["predicted"]:
            continue
        value = params[name].detach()
        assert list(value.shape) == numbers["shape"], name
        check_sums(value, numbers["sum"], numbers["abs_sum"], name)
        assert_close(
            value.flatten()[numbers["at"]],
            torch.tensor(numbers["values"]),
            context="ghn",
            name=name,
        )


@pytest.mark.parametrize("model", ["SmallCNN", "resnet18"])
def test_committed_numbers(small_fixtures_dir: Path, model: str) -> None:
    check(small_fixtures_dir / "parity" / f"ghn2_cifar10-{model}.json")


def test_all_numbers(fixtures_dir: Path) -> None:
    paths = sorted((fixtures_dir / "parity").glob("*.json"))
    assert len(paths) >= 7
    for path in paths:
        check(path)
