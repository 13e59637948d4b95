"""GHN-3 against numbers of the published implementation, from our own captures."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

import ghn_fast
from ghn_fast.deepnets import DeepNets
from graphs import op_histogram
from published import check, check_sums, hypernetwork
from tolerances import assert_close


@pytest.mark.filterwarnings("ignore:.*parameters were not predicted:UserWarning")
@pytest.mark.parametrize("name", ["ghn3_hub-SmallCNN", "logah_vit-vit-4_3_4_96_32"])
def test_committed_numbers(small_fixtures_dir: Path, tmp_path: Path, name: str) -> None:
    check(small_fixtures_dir / "ghn3" / f"{name}.json", tmp_path)


def test_all_networks(fixtures_dir: Path, tmp_path: Path) -> None:
    names = ("ghn2_by_ghn3", "ghn3_cifar10", "ghn3_hub", "ghn3_imagenet", "ghn3_one_layer")
    paths = [
        path
        for name in (*names, "ghn3_t_imagenet")
        for path in sorted((fixtures_dir / "ghn3").glob(f"{name}-*.json"))
    ]
    assert len(paths) >= 20
    for path in paths:
        check(path, tmp_path)


def test_the_layout_of_the_hub(fixtures_dir: Path) -> None:
    folder = fixtures_dir / "ghn3"
    ours = ghn_fast.from_pretrained(folder / "ghn3_hub.hub.pt")
    run = ghn_fast.from_pretrained(folder / "ghn3_hub.pt")
    assert ours.config == run.config
    for name, value in run.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name]), name


@pytest.mark.filterwarnings("ignore:.*parameters were not predicted:UserWarning")
def test_architectures_of_deepnets(fixtures_dir: Path, tmp_path: Path) -> None:
    folder = fixtures_dir / "ghn3"
    ghn = hypernetwork(folder, "ghn3_cifar10", tmp_path)
    with gzip.open(folder / "ghn3_cifar10.deepnets.json.gz", "rt") as file:
        published = json.load(file)
    count = 0
    for split, numbers in published.items():
        items = DeepNets(fixtures_dir / "deepnets", split, rules=ghn.config.graph_rules)
        for item, expected in zip(items, numbers, strict=True):
            graph = item.graph
            assert graph.num_nodes == expected["num_nodes"]
            assert graph.num_edges == expected["num_edges"]
            assert int((graph.edges[:, 2] == 1).sum()) == expected["num_hops"]
            assert op_histogram(graph) == expected["op_histogram"]
            assert_close(
                ghn.embed(graph).mean(0),
                torch.tensor(expected["embedding_mean"]),
                context="ghn",
                name=item.name,
            )
            network = item.build()
            report = ghn.predict(network, graph)
            params = dict(network.named_parameters())
            # Later code of theirs has attention in a module of its own.
            listed = {name.replace("attn.", ""): p for name, *p in expected["parameters"]}
            assert set(report.predicted) == set(listed)
            for name, (shape, signed, absolute) in listed.items():
                value = params[name].detach()
                assert list(value.shape) == shape, name
                check_sums(value, signed, absolute, f"{item.name}: {name}")
            count += 1
    assert count == 30
