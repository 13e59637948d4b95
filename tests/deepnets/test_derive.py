"""The compiled builder against the reference, element by element."""

from __future__ import annotations

import copy
import pickle
import random
from dataclasses import replace

import pytest
import torch

import ghn_fast
from ghn_fast.deepnets import (
    Genotype,
    NetworkConfig,
    SampledNets,
    build_graph,
    count_parameters,
    is_connected,
    parameter_shapes,
    sample_config,
)
from ghn_fast.deepnets.architectures.genotype import PDARTS, VIT_CONFIG
from ghn_fast.deepnets.architectures.record import encode
from ghn_fast.deepnets.files.node_table import with_shapes
from ghn_fast.deepnets.graphs.derive import derive_graph, record_of
from ghn_fast.deepnets.graphs.sizes import network_sizes, sizes_of_records
from ghn_fast.deepnets.sampling.splits import SPACES
from ghn_fast.graph import ArchGraph
from ghn_fast.graph.batch import GraphBatch
from ghn_fast.ops.gated_gnn_plan import GraphPlan
from graphs import assert_same_graph, op_histogram
from random_configs import random_config

pytestmark = pytest.mark.extension

CLASSES = (2, 10, 1000)
SIZES = (4, 5, 9, 16, 28, 32, 63, 64, 100, 224)
DISTANCES = (1, 2, 3, 50, 250)


def reference(
    config: NetworkConfig, classes: int, size: int, distance: int, structure: int | None
) -> ArchGraph:
    with ghn_fast.backend("reference"):
        graph = build_graph(
            config, num_classes=classes, image_size=structure or size, virtual_edges=distance
        )
        assert graph.plan is None
        if structure is not None:
            graph = with_shapes(graph, parameter_shapes(config, classes, size))
        return graph


def assert_equal(derived: ArchGraph, expected: ArchGraph) -> None:
    assert derived.plan is not None
    assert_same_graph(derived, expected)
    plan = GraphPlan(expected.edges, [0, expected.num_nodes])
    assert plan.packed is not None
    assert derived.plan.packed is not None
    assert torch.equal(derived.plan.packed, plan.packed)


def compare(config: NetworkConfig, rng: random.Random) -> None:
    classes, size, distance = rng.choice(CLASSES), rng.choice(SIZES), rng.choice(DISTANCES)
    structure = rng.choice((None, 32))
    expected = reference(config, classes, size, distance, structure)
    assert_equal(derive_graph(encode(config), classes, size, distance, structure), expected)
    with ghn_fast.backend("reference"):
        counts = [count_parameters(config, classes, s) for s in (size, 32)]
        nodes = reference(config, classes, size, 1, None).num_nodes
    assert network_sizes([config], classes, (size, 32)) == [[0, *counts]]
    assert network_sizes([config], classes, (size, 32), nodes=True) == [[nodes, *counts]]


@pytest.mark.parametrize("seed", range(4))
def test_random_configurations(seed: int) -> None:
    rng = random.Random(seed)
    compared = 0
    while compared < 60:
        config = random_config(rng, max_steps=rng.choice((2, 4, 9)), max_cells=rng.choice((4, 12)))
        if is_connected(config):
            compare(config, rng)
            compared += 1


@pytest.mark.parametrize("split", SPACES)
def test_splits(split: str) -> None:
    rng = random.Random(split)
    for index in range(12):
        compare(sample_config(split, index, 5), rng)


@pytest.mark.parametrize("channels", [8, 15, 16, 129])
def test_narrow_attention(channels: int) -> None:
    """With 8 to 15 channels, heads of one channel are multiplied in another way."""
    rng = random.Random(channels)
    for _ in range(4):
        compare(replace(VIT_CONFIG, C=channels), rng)


def test_the_largest_graphs_and_layers() -> None:
    rng = random.Random(0)
    compare(NetworkConfig(genotype=PDARTS, n_cells=40, C=36, stem_type=1, fc_layers=5), rng)
    one = Genotype((("conv_1x1", 0), ("none", 1)), (2,), (("none", 0), ("max_pool_3x3", 1)), (2,))
    compare(NetworkConfig(genotype=one, n_cells=300, C=2, C_mult=1, preproc=False), rng)
    compare(NetworkConfig(genotype=one, n_cells=1, C=1, C_mult=1, preproc=False), rng)


def test_many_records_at_once(nan_empty: None) -> None:
    configs = [sample_config("train", index, 0) for index in range(30)]
    sizes = sizes_of_records([encode(config) for config in configs], 10, (32, 224), nodes=True)
    assert sizes.tolist() == [network_sizes([c], 10, (32, 224), nodes=True)[0] for c in configs]
    assert sizes_of_records([], 10, (32,)).shape == (0, 2)


def test_every_number_is_written(nan_empty: None) -> None:
    for index in range(5):
        compare(sample_config("deep", index, 1), random.Random(index))


def test_what_does_not_fit_a_record_goes_to_the_reference() -> None:
    genes = (("conv_1x1", 0), ("skip_connect", 1))
    wide = NetworkConfig(
        genotype=Genotype(genes, (2,), genes, (2,)), n_cells=3, C=(1 << 24) + 2, C_mult=1
    )
    assert record_of(wide, 32) is None
    graph = build_graph(wide)
    assert graph.plan is None
    assert {shape[0] for shape in graph.shapes if shape and len(shape) == 4} > {wide.C}
    with ghn_fast.backend("reference"):
        assert record_of(VIT_CONFIG, 32) is None


def test_more_parameters_than_can_be_counted_are_refused() -> None:
    steps = tuple(("conv_7x7", 0) for _ in range(20))
    vast = NetworkConfig(
        genotype=Genotype(steps, tuple(range(2, 12)), steps, tuple(range(2, 12))),
        n_cells=3,
        C=1 << 22,
        fc_dim=(1 << 32) - 1,
        fc_layers=60000,
    )
    with pytest.raises(ValueError, match=r"records: 0: has (too many|2\^63) parameters"):
        network_sizes([vast], 10, (1 << 16,))


def test_bad_records_are_refused(seeded: int) -> None:
    def sizes(data: bytes) -> torch.Tensor:
        return sizes_of_records([data], 10, (32,), nodes=True)

    good = bytearray(encode(sample_config("train", 0, 0)))
    for position, value, message in (
        (0, 0, "bytes, needs"),
        (0, 255, "bytes, needs"),
        (5, 0, None),
        (16, 0, "got a zero"),
        (24, 15, "got primitive 15"),
        (25, 2, "of state 2, needs a primitive below 15 and a state below 2"),
        (len(good) - 1, 1, "reduce_concat: got state 1"),
        (11, 255, "needs C \\* C_mult"),
    ):
        bad = bytearray(good)
        bad[position] = value
        if message is None:
            sizes(bytes(bad))
        else:
            with pytest.raises(ValueError, match=message):
                sizes(bytes(bad))
    for cut in range(len(good)):
        with pytest.raises(ValueError, match=r"records: 0: got \d+ bytes"):
            sizes(bytes(good[:cut]))
    op = torch.ops.ghn_fast.deepnets_sizes
    data = torch.frombuffer(good, dtype=torch.uint8)
    for ends in ([len(good) + 1], [-1], [len(good), 3]):
        with pytest.raises(ValueError, match="ends: got"):
            op(data, torch.tensor(ends), 10, [32], False)
    with pytest.raises(ValueError, match="records: got Int"):
        op(data.int(), torch.tensor([len(good)]), 10, [32], False)
    with pytest.raises(ValueError, match="virtual_edges: got 0"):
        torch.ops.ghn_fast.deepnets_graph(data, 10, 32, 32, 0)


def test_random_bytes_never_crash(seeded: int) -> None:
    """Each is refused, or is a network like any other."""
    rng = random.Random(seeded)
    good = [encode(sample_config("train", index, 0)) for index in range(10)]
    outcomes = {True: 0, False: 0}
    for _ in range(500):
        data = bytearray(rng.choice(good))
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        data[4:6] = bytes((rng.randrange(40), 0))
        try:
            torch.ops.ghn_fast.deepnets_graph(
                torch.frombuffer(data, dtype=torch.uint8), 10, 32, 32, 50
            )
            outcomes[True] += 1
        except ValueError:
            outcomes[False] += 1
    assert min(outcomes.values()) > 20


def test_a_batch_of_derived_graphs_is_that_of_plain_ones(nan_empty: None) -> None:
    graphs = [build_graph(sample_config("train", index, 3)) for index in range(5)]
    with ghn_fast.backend("reference"):
        plain = [build_graph(sample_config("train", index, 3)) for index in range(5)]
    one, other = GraphBatch(graphs), GraphBatch(plain)
    assert one.plan.packed is not None
    assert other.plan.packed is not None
    assert torch.equal(one.plan.packed, other.plan.packed)
    assert torch.equal(one.edges, other.edges)
    assert torch.equal(one.op_types, other.op_types)
    assert (one.shapes, one.offsets) == (other.shapes, other.offsets)
    assert one.plan.num_edges == other.plan.num_edges == len(one.edges)
    # A plain graph among them.
    mixed = GraphBatch([*graphs[:4], plain[4]])
    assert mixed.plan.packed is not None
    assert torch.equal(mixed.plan.packed, other.plan.packed)


def test_derived_graphs_do_what_graphs_do() -> None:
    item = SampledNets("train", 3, 0)[2]
    graph = item.graph
    assert item.graph_for(10, 32) is graph
    with ghn_fast.backend("reference"):
        expected = SampledNets("train", 3, 0)[2].graph
    assert_equal(graph, expected)
    for copied in (pickle.loads(pickle.dumps(graph)), copy.deepcopy(graph)):
        assert_equal(copied, expected)
    untouched = SampledNets("train", 3, 0)[2].graph
    assert_equal(pickle.loads(pickle.dumps(untouched)), expected)
    assert repr(graph) == repr(expected)
    assert op_histogram(graph) == op_histogram(expected)
    replaced = replace(graph, edges=expected.edges[:5])
    assert replaced.plan is None
    assert (replaced.num_edges, replaced.names) == (5, expected.names)
    assert GraphBatch([replaced]).plan.num_edges == 5
    near = graph.with_virtual_edges(3)
    assert_same_graph(near, expected.with_virtual_edges(3))
    with pytest.raises(AttributeError):
        graph.virtual_edges = 3  # type: ignore[misc]
