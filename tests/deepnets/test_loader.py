"""Meta-batches: order, node limit, widths, and exact continuation."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

import ghn_fast
from ghn_fast.deepnets import (
    ArchItem,
    DeepNets,
    NetworkConfig,
    SampledNets,
    generate,
    meta_batches,
    sample_config,
    sample_width,
)
from ghn_fast.deepnets.files.generate import make_record
from ghn_fast.deepnets.files.hdf5 import SplitWriter

NETS = SampledNets("train", 20, 0, virtual_edges=1)


def indices(batches: Any, count: int) -> list[list[int]]:
    return [[item.index for item in batch] for batch in islice(batches, count)]


def content(batch: list[ArchItem]) -> list[tuple[int, NetworkConfig | None]]:
    return [(item.index, item.config) for item in batch]


def test_every_epoch_has_every_architecture_once_in_random_order() -> None:
    steps = indices(meta_batches(NETS, 6, seed=1, max_nodes=10**6), 8)
    assert [len(step) for step in steps] == [6, 6, 6, 2] * 2
    epochs = [[i for step in half for i in step] for half in (steps[:4], steps[4:])]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != sorted(epochs[1])
    assert indices(meta_batches(NETS, 6, seed=2, max_nodes=10**6), 8) != steps


@pytest.mark.parametrize("max_nodes", [10**6, 700])
def test_continues_exactly(max_nodes: int) -> None:
    run = list(islice(meta_batches(NETS, 4, seed=1, max_nodes=max_nodes), 13))
    for start in (0, 3, 5, 12):
        resumed = meta_batches(NETS, 4, seed=1, start_step=start, max_nodes=max_nodes)
        found = [content(batch) for batch in islice(resumed, 13 - start)]
        assert found == [content(batch) for batch in run[start:]]


def test_files_and_samples_give_the_same_batches(tmp_path: Any) -> None:
    with SplitWriter(tmp_path, "train") as writer:
        for index in range(20):
            writer.add(make_record("train", index, 0))
    files = meta_batches(DeepNets(tmp_path, "train", 1), 4, seed=1, max_nodes=700)
    samples = meta_batches(NETS, 4, seed=1, max_nodes=700)
    for one, other in zip(islice(files, 12), samples, strict=False):
        assert content(one) == content(other)
        assert torch.equal(one[0].graph.edges, other[0].graph.edges)
        assert one[0].graph.shapes == other[0].graph.shapes


def test_node_limit() -> None:
    free = indices(meta_batches(NETS, 4, seed=1, max_nodes=10**6), 25)
    nodes = [item.num_nodes for item in NETS]
    limit = 700
    over = [sum(nodes[i] for i in step) > limit for step in free]
    assert 3 <= sum(over) <= 22
    kept = indices(meta_batches(NETS, 4, seed=1, max_nodes=limit), 25)
    for left_out, before, after in zip(over, free, kept, strict=True):
        assert sum(nodes[i] for i in after) <= limit
        assert len(after) == len(set(after)) == len(before)
        assert (after != before) == left_out


def test_a_limit_that_nothing_meets_is_refused(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ghn_fast.deepnets.loading.meta_batches._ATTEMPTS", 20)
    with pytest.raises(ValueError, match=r"max_nodes: got 50, but none of 20 random"):
        next(meta_batches(SampledNets("train", 3, 0), 3, seed=0, max_nodes=50))
    with SplitWriter(tmp_path, "train") as writer:
        for index in range(3):
            writer.add(make_record("train", index, 0))
    nets = DeepNets(tmp_path, "train")
    total = sum(item.num_nodes for item in nets)
    message = rf"got {total - 1}, but the 3 smallest architectures together have {total} nodes"
    with pytest.raises(ValueError, match=message):
        meta_batches(nets, 3, seed=0, max_nodes=total - 1)
    assert len(next(meta_batches(nets, 8, seed=0, max_nodes=total))) == 3


def test_items_are_for_the_widths_classes_and_image_size() -> None:
    batches = meta_batches(NETS, 4, seed=3, image_size=64, num_classes=7)
    items = [item for batch in islice(batches, 3) for item in batch]
    for item in items:
        config = item.config
        assert config is not None
        original = sample_config("train", item.index, 0)
        assert replace(config, C=32, fc_dim=256) == original
        network = item.build()
        expected = {name: tuple(p.shape) for name, p in network.named_parameters()}
        targets = {target.name: target.shape for target in item.graph.targets}
        assert targets == {n: s for n, s in expected.items() if n not in item.graph.skipped}
        assert item.graph.shapes[-1] == (7,)
        assert (item.num_classes, item.image_size) == (7, 64)
    assert len({item.config.C for item in items if item.config}) > 1
    assert len({item.config.fc_dim for item in items if item.config}) > 1


CONV = sample_config("test", 0, 0).genotype


def config(*, cells: int = 8, glob_avg: bool = True, normal: str = "conv_3x3") -> NetworkConfig:
    genes = ((normal, 0), ("skip_connect", 1))
    pools = (("max_pool_3x3", 0), ("avg_pool_3x3", 1))
    genotype = replace(CONV, normal=genes, normal_concat=(2,), reduce=pools, reduce_concat=(2,))
    return NetworkConfig(genotype=genotype, n_cells=cells, glob_avg=glob_avg)


ALL_C = {32, 48, 64, 80, 96, 112, 128}
SMALL_FC = {64, 128, 192, 256}
ALL_FC = {64, 128, 192, 256, 320, 384, 448, 512}


@pytest.mark.parametrize(
    ("net", "params", "channels", "widths"),
    [
        (config(), 200_000, ALL_C, ALL_FC),
        (config(), 200_001, {32, 48, 64}, SMALL_FC),
        (config(cells=9), 1, {32, 48, 64}, SMALL_FC),
        (config(cells=10), 400_000, {32, 48, 64}, SMALL_FC),
        (config(), 400_001, {32, 48}, SMALL_FC),
        (config(cells=11), 1, {32, 48}, SMALL_FC),
        (config(cells=12), 800_000, {32, 48}, SMALL_FC),
        (config(), 800_001, {32}, SMALL_FC),
        (config(cells=13), 1, {32}, SMALL_FC),
        (config(glob_avg=False), 1, {32}, SMALL_FC),
        (config(normal="conv_5x5"), 1, {32}, SMALL_FC),
        (config(normal="conv_7x7"), 1, {32}, SMALL_FC),
        (config(normal="sep_conv_5x5"), 1, ALL_C, ALL_FC),
    ],
)
def test_published_widths(
    net: NetworkConfig, params: int, channels: set[int], widths: set[int]
) -> None:
    rng = np.random.default_rng(0)
    drawn = [sample_width(net, params, rng) for _ in range(600)]
    counts = Counter(sampled.C for sampled in drawn)
    assert set(counts) == channels
    mean = 600 / len(channels)
    # compared by hand: 600 uniform draws from n values, within five standard deviations.
    assert all(abs(count - mean) <= 5 * mean**0.5 for count in counts.values())
    assert {sampled.fc_dim for sampled in drawn} == widths
    assert all(replace(sampled, C=net.C, fc_dim=net.fc_dim) == net for sampled in drawn)
    # Where all widths are drawn, networks with many channels still have a narrow classifier.
    assert {sampled.fc_dim for sampled in drawn if sampled.C > 64} <= SMALL_FC


def test_other_ranges_of_widths() -> None:
    rng = np.random.default_rng(0)
    drawn = [sample_width(config(), 1, rng, (16, 40), (32, 100)) for _ in range(100)]
    assert {sampled.C for sampled in drawn} == {16, 32}
    assert {sampled.fc_dim for sampled in drawn} == {32, 96}
    for bad in ((0, 32), (64, 32)):
        with pytest.raises(ValueError, match="num_ch: got"):
            sample_width(config(), 1, rng, bad)
        with pytest.raises(ValueError, match="fc_dim: got"):
            sample_width(config(), 1, rng, (32, 128), bad)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("meta_batch", 0),
        ("seed", -1),
        ("start_step", -1),
        ("max_nodes", 0),
        ("image_size", 0),
        ("num_classes", 0),
        ("workers", -1),
    ],
)
def test_bad_arguments(name: str, value: int) -> None:
    arguments = {"nets": NETS, "meta_batch": 4, "seed": 0, name: value}
    with pytest.raises(ValueError, match=f"{name}: got {value}, needs an integer of at least"):
        meta_batches(**arguments)


def test_networks_without_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="resnet50 is not made of cells"):
        next(meta_batches(DeepNets(None, "predefined"), 2, seed=0))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> DeepNets:
    """The architectures of ``NETS`` with virtual edges, in a packed file."""
    path = tmp_path_factory.mktemp("packed")
    return DeepNets(generate("train", 20, path, format="packed"), "train", 50)


def assert_same_batches(ones: list[list[ArchItem]], others: list[list[ArchItem]]) -> None:
    assert len(ones) == len(others)
    for one, other in zip(ones, others, strict=True):
        assert content(one) == content(other)
        for item, twin in zip(one, other, strict=True):
            assert torch.equal(item.graph.op_types, twin.graph.op_types)
            assert torch.equal(item.graph.edges, twin.graph.edges)
            assert item.graph.shapes == twin.graph.shapes
            assert item.graph.targets == twin.graph.targets


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("max_nodes", [10**6, 700])
def test_workers_change_nothing(packed: DeepNets, workers: int, max_nodes: int) -> None:
    settings: dict[str, Any] = {"seed": 1, "max_nodes": max_nodes, "num_classes": 7}
    alone = list(islice(meta_batches(packed, 4, **settings), 13))
    assert_same_batches(
        list(islice(meta_batches(packed, 4, workers=workers, **settings), 13)), alone
    )
    for start in (5, 12):
        resumed = meta_batches(packed, 4, start_step=start, workers=workers, **settings)
        assert_same_batches(list(islice(resumed, 13 - start)), alone[start:])


def test_packed_files_and_samples_give_the_same_batches(packed: DeepNets) -> None:
    sampled = SampledNets("train", 20, 0)
    ones, others = (
        list(islice(meta_batches(nets, 6, seed=2, image_size=64), 8)) for nets in (packed, sampled)
    )
    assert_same_batches(ones, others)


def test_workers_make_the_graphs(packed: DeepNets) -> None:
    for workers in (0, 1):
        batch = next(meta_batches(packed, 5, seed=0, workers=workers, num_classes=3))
        for item in batch:
            assert ("graph" in item.__dict__) == (workers > 0)
            assert item.graph is item.graph_for(3, 32)
            assert item.graph.shapes[-1] == (3,)


def test_workers_use_the_chosen_back_end(packed: DeepNets) -> None:
    with ghn_fast.backend("reference"):
        batch = next(meta_batches(packed, 2, seed=0, workers=1))
    assert all(type(item.graph) is ghn_fast.ArchGraph for item in batch)


def test_closing_ends_the_workers(packed: DeepNets) -> None:
    def running() -> int:
        return sum(thread.name.startswith("meta-batches") for thread in threading.enumerate())

    before = running()
    batches = meta_batches(packed, 2, seed=0, workers=2)
    next(batches)
    assert running() > before
    batches.close()  # type: ignore[attr-defined]
    assert running() == before


def test_errors_come_at_their_step(packed: DeepNets, monkeypatch: pytest.MonkeyPatch) -> None:
    good = list(islice(meta_batches(packed, 4, seed=1), 3))
    broken = good[2][0].index
    item = DeepNets._item

    def fail(self: DeepNets, index: int) -> ArchItem:
        if index == broken:
            raise ValueError("unreadable")
        return item(self, index)

    monkeypatch.setattr(DeepNets, "_item", fail)
    batches = meta_batches(packed, 4, seed=1, workers=3)
    assert [content(next(batches)) for _ in range(2)] == [content(batch) for batch in good[:2]]
    with pytest.raises(ValueError, match="unreadable"):
        next(batches)


@pytest.mark.parametrize(
    ("params", "cells", "largest"),
    [
        (2_100_000, 4, 32), (100, 15, 32), (2_000_000, 4, 80), (100, 11, 80), (300_000, 4, 96),
        (100, 9, 96), (100, 8, 128),
    ],
)  # fmt: skip
def test_wider_networks_for_imagenet(params: int, cells: int, largest: int) -> None:
    rng = np.random.default_rng(0)
    drawn = {sample_width(config(cells=cells), params, rng, wider=True).C for _ in range(300)}
    assert drawn == set(range(32, largest + 1, 16))
