"""Properties of architecture graphs against networkx, which computes them in another way."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
import torchvision
from torch import nn

from ghn_fast.capturing import capture
from ghn_fast.deepnets import SampledNets
from ghn_fast.graph import ArchGraph
from ghn_fast.graph.properties import graph_properties, longest_path_ranks, summarise_properties
from networks import Branches, SmallCNN


def graph_of(edges: list[tuple[int, int]], nodes: int) -> ArchGraph:
    """A graph of sums with these edges, without virtual edges."""
    rows = torch.tensor([(*edge, 1) for edge in edges], dtype=torch.int64).reshape(-1, 3)
    types = torch.full((nodes,), 7)
    return ArchGraph(types, rows, (None,) * nodes, ("sum",) * nodes, virtual_edges=1)


def _meta_model(name: str) -> nn.Module:
    with torch.device("meta"):
        return torchvision.models.get_model(name)


def check_against_networkx(graph: ArchGraph) -> None:
    properties = graph_properties(graph)
    directed = graph.to_networkx()
    undirected = directed.to_undirected()
    assert properties.nodes == directed.number_of_nodes()
    assert properties.edges == directed.number_of_edges()
    degrees = [degree for _, degree in undirected.degree()]
    assert properties.average_degree == sum(degrees) / len(degrees)
    path = nx.average_shortest_path_length(undirected)
    assert properties.average_path == path
    assert properties.depth == nx.dag_longest_path_length(directed, weight="none")


@pytest.mark.parametrize("name", ["resnet50", "densenet121"])
def test_torchvision(name: str) -> None:
    check_against_networkx(capture(_meta_model(name), virtual_edges=1))


def test_deepnets() -> None:
    for split in ("train", "dense", "bnfree"):
        check_against_networkx(SampledNets(split, 3, 0)[2].graph)


def test_small_networks() -> None:
    for network in (SmallCNN(), Branches()):
        check_against_networkx(capture(network, (3, 32, 32)))


@pytest.mark.parametrize(
    ("name", "degree", "path"),
    [
        ("resnet18", 2.2641509433962264, 7.577648766328012),
        ("densenet121", 5.478827361563518, 7.434353111494326),
        ("mobilenet_v2", 2.152542372881356, 18.014921048819353),
    ],
)
def test_numbers_of_the_published_system(name: str, degree: float, path: float) -> None:
    # What its `Graph.properties` says of these networks.
    properties = graph_properties(capture(_meta_model(name), virtual_edges=1))
    assert properties.average_degree == degree
    assert properties.average_path == path


def test_virtual_edges_change_nothing() -> None:
    graph = capture(Branches(), (3, 16, 16), virtual_edges=1)
    assert graph_properties(graph) == graph_properties(graph.with_virtual_edges(50))


def test_small_cases() -> None:
    chain = graph_properties(graph_of([(0, 1), (1, 2)], 3))
    assert (chain.average_degree, chain.average_path, chain.depth) == (4 / 3, 4 / 3, 2)
    single = graph_properties(graph_of([], 1))
    assert (single.average_degree, single.average_path, single.depth) == (0.0, 0.0, 0)
    # Pairs without a path do not count: two chains of two nodes.
    apart = graph_properties(graph_of([(0, 1), (2, 3)], 4))
    assert (apart.average_degree, apart.average_path, apart.depth) == (1.0, 1.0, 1)


def test_ranks_do_not_depend_on_the_order_of_edges() -> None:
    edges = [(2, 3), (0, 1), (1, 2), (0, 3), (0, 4)]
    assert longest_path_ranks(5, edges) == longest_path_ranks(5, edges[::-1]) == [0, 1, 2, 3, 1]


def test_text() -> None:
    text = str(graph_properties(graph_of([(0, 1), (1, 2)], 3)))
    assert text == (
        "3 nodes, 2 edges, average degree 1.33, average shortest path 1.33, longest path 2"
    )


def test_summary_of_many() -> None:
    graphs = [graph_of([(0, 1), (1, 2)], 3), graph_of([(0, 1)], 2)]
    assert summarise_properties(graphs) == (
        "average degree 1.17 ± 0.17, average shortest path 1.17 ± 0.17, "
        "longest path 1.50 ± 0.50 (2 graphs)"
    )
    with pytest.raises(ValueError, match="graphs: got none"):
        summarise_properties([])
