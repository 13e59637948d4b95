"""Graphs built from configurations: against captured ones, and against published files."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ghn_fast.capturing import capture
from ghn_fast.deepnets.architectures.genotype import (
    DARTS,
    PDARTS,
    VIT_CONFIG,
    Genotype,
    NetworkConfig,
)
from ghn_fast.deepnets.architectures.network import Network
from ghn_fast.deepnets.architectures.spec import is_connected
from ghn_fast.deepnets.files.node_table import node_rows, stored_node_order
from ghn_fast.deepnets.graphs.build import build_graph
from ghn_fast.deepnets.graphs.sizes import count_parameters, parameter_shapes
from ghn_fast.graph import NODE_TYPES
from graphs import assert_same_graph, op_histogram
from random_configs import random_config


def meta_network(config: NetworkConfig, num_classes: int, image_size: int) -> Network:
    with torch.device("meta"):
        return Network(config, num_classes, image_size)


def check(config: NetworkConfig, num_classes: int, image_size: int, virtual_edges: int) -> None:
    network = meta_network(config, num_classes, image_size)
    params = [(name, tuple(p.shape)) for name, p in network.named_parameters()]
    assert list(parameter_shapes(config, num_classes, image_size).items()) == params
    count = sum(p.numel() for p in network.parameters())
    assert count_parameters(config, num_classes, image_size) == count
    built = build_graph(
        config, num_classes=num_classes, image_size=image_size, virtual_edges=virtual_edges
    )
    captured = capture(network, (3, image_size, image_size), virtual_edges)
    assert_same_graph(built, captured)
    assert built.aliases == {}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("image_size", [32, 224])
def test_built_equals_captured(seed: int, image_size: int) -> None:
    rng = random.Random(100 * image_size + seed)
    compared = 0
    while compared < 8:
        config = random_config(rng)
        if is_connected(config):
            check(config, rng.choice((2, 10, 1000)), image_size, rng.choice((1, 5, 50)))
            compared += 1


@pytest.mark.parametrize(
    "config",
    [
        VIT_CONFIG,
        NetworkConfig(genotype=DARTS, n_cells=14, C=36, stem_type=1),
        NetworkConfig(genotype=PDARTS, n_cells=20, C=36),
    ],
    ids=["vit", "darts", "pdarts"],
)
@pytest.mark.parametrize("image_size", [32, 224])
def test_known_cells(config: NetworkConfig, image_size: int) -> None:
    check(config, 10, image_size, 50)


def test_dense_and_deep_cells(seeded: int) -> None:
    rng = random.Random(seeded)
    for steps, cells in ((10, 4), (2, 36)):
        config = random_config(rng, max_steps=steps, max_cells=cells)
        while not is_connected(config) or config.n_cells < cells:
            config = random_config(rng, max_steps=steps, max_cells=cells)
        check(config, 10, 32, 50)


@pytest.mark.parametrize("image_size", [4, 9, 28, 63, 64, 100])
@pytest.mark.parametrize("first", ["none", "skip_connect"])
def test_other_image_sizes(image_size: int, first: str) -> None:
    """Odd sizes are padded; neither one pixel nor a sum of slices has gaps in memory."""
    genotype = Genotype(
        (("cse", 0), ("none", 1), ("cse", 2), ("conv_1x1", 1)),
        (3,),
        ((first, 1), ("cse", 0), ("cse", 2), ("skip_connect", 0)),
        (3,),
    )
    for preproc in (True, False):
        config = NetworkConfig(
            genotype=genotype,
            n_cells=6,
            C=16,
            stem_type=1,
            norm=None,
            preproc=preproc,
            C_mult=1,
            glob_avg=False,
        )
        check(config, 10, image_size, 50)


def test_skipped_are_the_parameters_without_a_gradient(seeded: int) -> None:
    rng = random.Random(seeded)
    found = 0
    while found < 4:
        config = random_config(rng, max_cells=4)
        if not is_connected(config):
            continue
        skipped = set(build_graph(config).skipped)
        found += bool(skipped)
        network = Network(config)
        names, params = zip(*network.named_parameters(), strict=True)
        logits = network(torch.randn(2, 3, 32, 32))
        grads = torch.autograd.grad(logits.sum(), params, allow_unused=True)
        assert skipped == {n for n, g in zip(names, grads, strict=True) if g is None}


def test_every_parameter_is_a_target_or_skipped(seeded: int) -> None:
    rng = random.Random(seeded)
    for _ in range(20):
        config = random_config(rng)
        if not is_connected(config):
            continue
        graph = build_graph(config)
        targets = {target.name: target.shape for target in graph.targets}
        shapes = parameter_shapes(config)
        assert targets == {n: s for n, s in shapes.items() if n not in graph.skipped}
        assert len(graph.targets) == len(targets)
        heads = [target.name for target in graph.targets if target.head]
        last = 3 * (config.fc_layers - 1)
        assert heads == [f"classifier.{last}.weight", f"classifier.{last}.bias"]


def test_refuses_what_cannot_be_built() -> None:
    genotype = Genotype((("none", 0), ("none", 1)), (2,), (("none", 0),) * 2, (2,))
    config = NetworkConfig(genotype=genotype, n_cells=3)
    assert not is_connected(config)
    with pytest.raises(ValueError, match="config: no path leads from the input to the output"):
        build_graph(config)
    assert count_parameters(config) == sum(
        int(np.prod(shape)) for shape in parameter_shapes(config).values()
    )
    with pytest.raises(ValueError, match="virtual_edges: got 0"):
        build_graph(VIT_CONFIG, virtual_edges=0)
    with pytest.raises(ValueError, match="num_classes: got -1"):
        build_graph(VIT_CONFIG, num_classes=-1)
    with pytest.raises(ValueError, match="image_size: got 0"):
        count_parameters(VIT_CONFIG, 10, 0)


def test_nodes_are_stored_cell_by_cell() -> None:
    graph = build_graph(VIT_CONFIG)
    cells = [row.cell for row in node_rows(graph, VIT_CONFIG.n_cells)]
    order = stored_node_order(graph, VIT_CONFIG.n_cells)
    assert sorted(order) == list(range(graph.num_nodes))
    assert [cells[i] for i in order] == sorted(cells)
    assert {cell for cell, name in zip(cells, graph.names, strict=True) if "stem" in name} == {0}
    assert cells[-1] == VIT_CONFIG.n_cells - 1
    for cell, name in zip(cells, graph.names, strict=True):
        if name.startswith("cells."):
            assert name.startswith(f"cells.{cell}.")


# --- published files


def published(folder: Path) -> list[tuple[str, NetworkConfig, dict[str, Any], Any, Any]]:
    """All stored architectures: split, configuration, meta data, distances, nodes as names."""
    h5py = pytest.importorskip("h5py")
    if not (folder / "deepnets1m_eval.hdf5").is_file():
        pytest.skip(f"there are no published architectures in {folder}")
    meta = json.loads((folder / "deepnets1m_eval_meta.json").read_text())
    result = []
    with h5py.File(folder / "deepnets1m_eval.hdf5") as file:
        for split, content in meta.items():
            types = content["meta"]["primitives_ext"]
            names = content["meta"]["unique_op_names"]
            for index, net in enumerate(content["nets"]):
                group = file[f"{split}/{index}"]
                nodes = [
                    (types[str(kind)].removesuffix("_1x1"), int(cell), names[str(name)])
                    for kind, cell, name in group["nodes"][()]
                ]
                config = NetworkConfig.from_dict(net)
                result.append((split, config, net, group["adj"][()], nodes))
    return result


def compare_with_published(folder: Path) -> None:
    for split, config, net, distances, nodes in published(folder):
        # The files list distances up to 250 between nodes in the order of the graph ...
        graph = build_graph(config, virtual_edges=250)
        matrix = np.zeros_like(distances)
        source, target, distance = graph.edges.numpy().T
        matrix[source, target] = distance
        assert graph.num_nodes == net["num_nodes"]
        assert np.array_equal(matrix, distances), split
        near = build_graph(config).edges
        assert torch.equal(near, graph.edges[graph.edges[:, 2] <= 50])
        # ... and the nodes cell by cell.
        cells = [row.cell for row in node_rows(graph, config.n_cells)]
        found = []
        for node in stored_node_order(graph, config.n_cells):
            kind, name = NODE_TYPES[int(graph.op_types[node])], graph.names[node]
            name = name.split(".", 2)[2] if name.startswith("cells.") else name
            found.append((kind, cells[node], name))
        assert found == nodes
        # They were counted with 32 channels and 256 between the layers of the classifier.
        counted = replace(config, C=32, fc_dim=256)
        for dataset, size in (("cifar10", 32), ("imagenet", 224)):
            assert count_parameters(counted, 10, size) == net["num_params"][dataset]


def test_published_architectures(fixtures_dir: Path) -> None:
    compare_with_published(fixtures_dir / "deepnets")


def test_committed_architectures(small_fixtures_dir: Path) -> None:
    compare_with_published(small_fixtures_dir / "deepnets")


def test_published_parameters_of_predictions(fixtures_dir: Path) -> None:
    """Parameters listed with the published predictions are those that are not skipped, in order."""
    path = fixtures_dir / "deepnets" / "predictions.json"
    if not path.is_file():
        pytest.skip(f"there are no published predictions in {path.parent}")
    predictions = json.loads(path.read_text())
    meta = json.loads((path.parent / "deepnets1m_eval_meta.json").read_text())
    for split, nets in predictions.items():
        for net, expected in zip(meta[split]["nets"], nets, strict=True):
            config = NetworkConfig.from_dict(net)
            if split == "wide":
                config = replace(config, C=4 * config.C)
            graph = build_graph(config)
            shapes = parameter_shapes(config)
            kept = [[n, list(s)] for n, s in shapes.items() if n not in graph.skipped]
            assert kept == [entry[:2] for entry in expected["parameters"]]
            assert (graph.num_nodes, graph.num_edges) == (
                expected["num_nodes"],
                expected["num_edges"],
            )
            assert op_histogram(graph) == expected["op_histogram"]
            assert count_parameters(config) == expected["num_params"]
