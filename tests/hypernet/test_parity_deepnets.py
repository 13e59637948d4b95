"""Parameters predicted for DeepNets-1M architectures against published numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ghn_fast
from ghn_fast.deepnets import ArchItem, DeepNets
from graphs import op_histogram
from published import check_sums


def check(ghn: ghn_fast.GHN, item: ArchItem, published: dict[str, Any]) -> None:
    graph = item.graph
    assert graph.num_nodes == published["num_nodes"]
    assert graph.num_edges == published["num_edges"]
    assert op_histogram(graph) == published["op_histogram"]
    network = item.build(num_classes=10, image_size=32)
    report = ghn.predict(network, graph)
    expected = published["parameters"]
    assert report.predicted == [name for name, *_ in expected]
    params = dict(network.named_parameters())
    assert set(report.skipped) == set(params) - set(report.predicted)
    assert all("not on a path" in reason for reason in report.skipped.values())
    for name, shape, signed, absolute in expected:
        value = params[name].detach()
        assert list(value.shape) == shape, name
        check_sums(value, signed, absolute, f"{item.name}: {name}")


def check_all(deepnets: Path, parity: Path) -> int:
    ghn = ghn_fast.from_pretrained(parity / "ghn2_cifar10.pt")
    count = 0
    for split, numbers in json.loads((deepnets / "predictions.json").read_text()).items():
        items = DeepNets(deepnets, split, virtual_edges=50)
        assert len(items) == len(numbers)
        for item, published in zip(items, numbers, strict=True):
            check(ghn, item, published)
            count += 1
    return count


@pytest.mark.filterwarnings("ignore:.*parameters were not predicted:UserWarning")
def test_committed_architectures(small_fixtures_dir: Path) -> None:
    assert check_all(small_fixtures_dir / "deepnets", small_fixtures_dir / "parity") >= 3


@pytest.mark.filterwarnings("ignore:.*parameters were not predicted:UserWarning")
def test_all_architectures(fixtures_dir: Path) -> None:
    assert check_all(fixtures_dir / "deepnets", fixtures_dir / "parity") == 30
