from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import ghn_fast
from ghn_fast.deepnets import SampledNets
from ghn_fast.graph import ArchGraph
from ghn_fast.graph.batch import GraphBatch


@pytest.fixture(scope="module")
def graphs() -> list[ArchGraph]:
    nets = SampledNets("train", 3, seed=1)
    return [nets[index].graph for index in range(3)]


def test_nodes_are_numbered_through(graphs: list[ArchGraph]) -> None:
    batch = GraphBatch(graphs)
    assert len(batch) == 3
    assert batch.offsets == [0, *torch.tensor([g.num_nodes for g in graphs]).cumsum(0).tolist()]
    assert batch.num_nodes == batch.offsets[-1] == len(batch.shapes) == len(batch.op_types)
    first = 0
    for graph, offset in zip(graphs, batch.offsets, strict=False):
        rows = batch.edges[first : first + graph.num_edges]
        assert torch.equal(rows[:, :2] - offset, graph.edges[:, :2])
        assert torch.equal(rows[:, 2], graph.edges[:, 2])
        nodes = batch.op_types[offset : offset + graph.num_nodes]
        assert torch.equal(nodes, graph.op_types)
        first += graph.num_edges
    assert first == len(batch.edges)


def test_back_ends_agree(graphs: list[ArchGraph]) -> None:
    expected = GraphBatch(graphs)
    with ghn_fast.backend("reference"):
        batch = GraphBatch(graphs)
    assert torch.equal(batch.edges, expected.edges)
    assert batch.offsets == expected.offsets


def test_the_graphs_stay_as_they_are(graphs: list[ArchGraph]) -> None:
    before = [graph.edges.clone() for graph in graphs]
    GraphBatch([*graphs, graphs[0]]).edges.zero_()
    assert all(torch.equal(a, b.edges) for a, b in zip(before, graphs, strict=True))


def test_what_is_no_graph_is_named(graphs: list[ArchGraph]) -> None:
    with pytest.raises(ValueError, match="graphs: got none"):
        GraphBatch([])
    with pytest.raises(TypeError, match=r"graphs\[1\]: got Linear, needs an ArchGraph"):
        GraphBatch([graphs[0], torch.nn.Linear(1, 1)])  # type: ignore[list-item]


@pytest.mark.parametrize("name", ["auto", "reference"])
def test_wrong_edges_are_named_with_their_graph(graphs: list[ArchGraph], name: str) -> None:
    size = graphs[1].num_nodes
    for row, message in (
        # A node of the graph beside it, which a check of the whole batch alone would let pass.
        ((0, size, 1), rf"edges\[1\]: row 0 joins nodes 0 and {size}, needs nodes from 0 to"),
        ((4, 4, 1), r"edges\[1\]: row 0 leads from node 4 to node 4.*cycle"),
        ((0, 1, 0), r"edges\[1\]: row 0 has distance 0"),
    ):
        edges = graphs[1].edges.clone()
        edges[0] = torch.tensor(row)
        wrong = replace(graphs[1], edges=edges)
        with ghn_fast.backend(name), pytest.raises(ValueError, match=message):
            GraphBatch([graphs[0], wrong, graphs[2]])
