"""Splits as sequences: from files, sampled, and predefined."""

from __future__ import annotations

import multiprocessing
import pickle
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from ghn_fast.capturing import capture
from ghn_fast.deepnets import (
    SPLITS,
    ArchItem,
    DeepNets,
    SampledNets,
    architecture_key,
    build_graph,
    describe,
    held_out_keys,
    sample_config,
    statistics_table,
)
from ghn_fast.deepnets.files.generate import make_record
from ghn_fast.deepnets.files.hdf5 import SplitWriter
from ghn_fast.graph import NODE_TYPES, ArchGraph
from graphs import assert_same_graph, op_histogram
from tolerances import assert_close


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nets")
    for split in ("train", "wide"):
        with SplitWriter(path, split) as writer:
            for index in range(8):
                writer.add(make_record(split, index, 0))
    return path


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in network.named_parameters()}


def assert_fits(graph: ArchGraph, network: nn.Module) -> None:
    """Every parameter of the network is predicted once, or listed as skipped."""
    found = [(target.name, target.shape) for target in graph.targets]
    expected = {name: s for name, s in shapes(network).items() if name not in graph.skipped}
    assert len(found) == len(expected)
    assert dict(found) == expected
    assert set(graph.skipped) <= set(shapes(network))


def test_sequence(folder: Path) -> None:
    nets = DeepNets(folder, "train")
    assert isinstance(nets, Sequence)
    assert len(nets) == 8
    assert [item.index for item in nets] == list(range(8))
    assert (nets[-1].index, nets[-1].name) == (7, "train-7")
    assert [item.index for item in nets[2:7:2]] == [2, 4, 6]
    for index in (8, -9):
        with pytest.raises(IndexError, match=rf"got {index}, needs one from -8 to 7: there are 8"):
            nets[index]
    with pytest.raises(TypeError):
        nets["0"]  # type: ignore[call-overload]


def test_sampled_architectures_are_those_of_the_files(folder: Path) -> None:
    for split in ("train", "wide"):
        sampled = SampledNets(split, 8, 0)
        for one, other in zip(DeepNets(folder, split), sampled, strict=True):
            assert one.config == other.config == sample_config(split, one.index, 0)
            assert_same_graph(one.graph, other.graph)
            assert one.num_nodes == other.num_nodes == one.graph.num_nodes
            assert one.num_params == other.num_params
            assert one.base_params == other.base_params
            assert one.name == other.name


@pytest.mark.parametrize("virtual_edges", [1, 3, 250, 300])
def test_virtual_edges(folder: Path, virtual_edges: int) -> None:
    item = DeepNets(folder, "train", virtual_edges)[2]
    assert item.config is not None
    assert_same_graph(item.graph, build_graph(item.config, virtual_edges=virtual_edges))


def test_graphs_fit_the_networks(folder: Path) -> None:
    for nets in (DeepNets(folder, "train"), SampledNets("train", 3, 0)):
        for item in nets[:3]:
            assert_fits(item.graph, item.build())
            assert_fits(item.graph_for(7, 224), item.build(7, 224))
            assert item.num_params == sum(p.numel() for p in item.build().parameters())
            assert item.graph_for(7, 224).shapes[-1] == (7,)
            small = capture(item.build(), (3, 32, 32))
            assert_same_graph(item.graph, small)
            assert_same_graph(item.graph_for(7, 224), capture(item.build(7, 224), (3, 224, 224)))


def test_wide_networks_have_more_channels(folder: Path) -> None:
    item = DeepNets(folder, "wide")[0]
    config = item.config
    assert config is not None
    assert config.C == 32
    assert item.config_for(32) == replace(config, C=128)
    assert item.config_for(224) == replace(config, C=64)
    assert_fits(item.graph, item.build())
    assert_fits(item.graph_for(10, 224), item.build(10, 224))
    narrow = sum(p.numel() for p in SampledNets("test", 1, 0)[0].build().parameters())
    assert item.num_params == sum(p.numel() for p in item.build().parameters()) > 4 * narrow
    assert item.base_params["cifar10"] == narrow


def test_other_widths(folder: Path) -> None:
    item = DeepNets(folder, "train")[1]
    assert item.config is not None
    _ = item.graph
    wider = item.with_config(replace(item.config, C=48, fc_dim=64), num_classes=5)
    assert_fits(wider.graph, wider.build())
    assert wider.graph.shapes[-1] == (5,)
    assert torch.equal(wider.graph.edges, item.graph.edges)
    assert wider.base_params == item.base_params
    assert wider.num_params != item.num_params


def test_items_and_splits_can_be_pickled(folder: Path) -> None:
    nets = DeepNets(folder, "train")
    graph = nets[4].graph
    assert_same_graph(pickle.loads(pickle.dumps(nets))[4].graph, graph)
    copy = pickle.loads(pickle.dumps(nets[4]))
    assert copy.file is None
    assert_same_graph(copy.graph, graph)
    assert (copy.num_nodes, copy.num_params) == (nets[4].num_nodes, nets[4].num_params)
    assert copy.base_params == nets[4].base_params
    sampled = pickle.loads(pickle.dumps(SampledNets("test", 3, 0)))
    assert sampled[1].config == SampledNets("test", 3, 0)[1].config


def edges_of(nets: DeepNets, index: int) -> list[list[int]]:
    return nets[index].graph.edges.tolist()


@pytest.mark.skipif(sys.platform == "win32", reason="needs processes that are copies")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_processes_open_the_file_anew(folder: Path) -> None:
    nets = DeepNets(folder, "train")
    expected = [edges_of(nets, index) for index in range(8)]
    # The parent's file is open now, and the children inherit it.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(2, context) as pool:
        assert list(pool.map(edges_of, [nets] * 8, range(8))) == expected
    queue = context.Queue()
    children = [
        context.Process(target=lambda i=i: queue.put((i, edges_of(nets, i)))) for i in range(3)
    ]
    for child in children:
        child.start()
    assert sorted(queue.get(timeout=30) for _ in children) == list(enumerate(expected[:3]))
    for child in children:
        child.join()
    assert edges_of(nets, 5) == expected[5]


def test_resnet50() -> None:
    nets = DeepNets(None, "predefined")
    assert len(nets) == 2
    item = nets[0]
    assert (item.name, item.config) == ("resnet50", None)
    expected = {
        name: tuple(p.shape)
        for name, p in torchvision.models.resnet50(num_classes=10).named_parameters()
    }
    assert shapes(item.build(10, 224)) == expected
    network = item.build()
    assert shapes(network) == {**expected, "conv1.weight": (64, 3, 3, 3)}
    with torch.no_grad():
        assert network.eval().get_submodule("layer1")(torch.zeros(1, 64, 32, 32)).shape[-1] == 32
        features = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
        assert features(torch.zeros(1, 3, 32, 32)).shape == (1, 64, 32, 32)
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert_fits(item.graph, network)
    assert item.num_nodes == item.graph.num_nodes == 126
    assert item.num_params == item.base_params["cifar10"] == 23_520_842
    assert op_histogram(item.graph_for(10, 224))[0] == op_histogram(item.graph)[0] + 1 == 1
    with pytest.raises(ValueError, match="resnet50 has no configuration"):
        item.config_for(32)


def test_vit() -> None:
    item = DeepNets(None, "predefined")[1]
    assert item.name == "ViT"
    assert_fits(item.graph, item.build())
    assert_same_graph(item.graph, capture(item.build(), (3, 32, 32)))
    assert item.num_nodes == 119
    assert item.num_params == item.base_params["cifar10"] == 1_012_234
    kinds = [NODE_TYPES[kind] for kind in item.graph.op_types.tolist()]
    assert kinds.count("pos_enc") == 1
    assert_fits(item.graph_for(1000, 224), item.build(1000, 224))
    assert item.build(1000, 224)(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)


def test_bad_arguments(folder: Path) -> None:
    valid = "train, val, test, search, wide, deep, dense, bnfree, predefined"
    assert ", ".join(SPLITS) == valid
    with pytest.raises(ValueError, match=f"split: got 'tset', needs one of {valid}"):
        DeepNets(folder, "tset")
    with pytest.raises(ValueError, match="split: got 'predefined', needs one of train"):
        SampledNets("predefined", 1, 0)
    with pytest.raises(ValueError, match="path: got None, needs the folder with the split 'train'"):
        DeepNets(None, "train")
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=f"virtual_edges: got {wrong}"):
            DeepNets(folder, "train", wrong)
        with pytest.raises(ValueError, match=f"count: got {wrong}"):
            SampledNets("train", wrong, 0)
    with pytest.raises(ValueError, match="seed: got -1"):
        SampledNets("train", 1, -1)


def test_statistics(folder: Path) -> None:
    nets = DeepNets(folder, "train")
    summary = describe(nets)
    nodes = [item.graph.num_nodes for item in nets]
    assert summary["count"] == 8
    assert summary["nodes"] == {"min": min(nodes), "mean": sum(nodes) / 8, "max": max(nodes)}
    assert summary["params"]["max"] == max(item.num_params for item in nets)
    assert_close(sum(summary["primitives"].values()), 1.0)
    configs = [item.config for item in nets if item.config is not None]
    vit = sum(config.is_vit for config in configs) / 8
    assert summary["fractions"]["self-attention (msa)"] == vit
    used = [name for config in configs for name, _ in config.genotype.normal]
    used += [name for config in configs for name, _ in config.genotype.reduce]
    assert summary["primitives"]["max_pool_3x3"] == used.count("max_pool_3x3") / len(used)
    assert describe(SampledNets("train", 8, 0)) == summary
    predefined = describe(DeepNets(None, "predefined"))
    assert predefined["params"]["max"] == 23_520_842
    assert predefined["cells"] == {"min": 12, "mean": 12, "max": 12}
    with pytest.raises(ValueError, match="got no architectures"):
        describe([])
    only_resnet: list[ArchItem] = [DeepNets(None, "predefined")[0]]
    table = statistics_table({"train": summary, "resnet": describe(only_resnet)})
    assert [column.header for column in table.columns] == ["", "train", "resnet"]
    cells = [list(column.cells) for column in table.columns]
    row = cells[0].index("nodes")
    assert cells[1][row] == f"{min(nodes)} / {sum(nodes) / 8:.1f} / {max(nodes)}"
    assert cells[2][cells[0].index("cells")] == "–"


def test_training_does_not_sample_held_out_architectures() -> None:
    held_out = held_out_keys()
    assert architecture_key(SampledNets("test", 500, 0)[499].config) in held_out
    assert len(held_out) <= 800
    # A stream that would give test architectures gives others when these are excluded.
    (key,) = {architecture_key(SampledNets("train", 1, 0)[0].config)}
    assert architecture_key(SampledNets("train", 1, 0, exclude={key})[0].config) != key
