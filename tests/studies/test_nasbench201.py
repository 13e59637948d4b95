"""Cells of NAS-Bench-201: notation, networks, and graphs against captured ones."""

from __future__ import annotations

import random

import pytest
import torch

from ghn_fast import ArchGraph, capture
from ghn_fast.graph.rules import GraphRules
from ghn_fast.studies.nasbench201 import (
    EDGES,
    OUTSIDE,
    Cell,
    CellNetwork,
    alive_edges,
    cell_counts,
    cell_graph,
    parse_cell,
)

# The best cell of CIFAR-10, one with sums that repeat a state, one with dead ends.
CELLS = ((2, 2, 0, 2, 3, 2), (0, 0, 0, 0, 0, 0), (2, 1, 1, 4, 1, 0), (4, 0, 3, 1, 4, 3))


def described(graph: ArchGraph) -> list[tuple[str, list[str], list[str]]]:
    """Each node with what leads to it and from it, and how far: what no numbering changes."""
    nodes = [
        f"{int(kind)} {shape} {name} {graph.shift_names.get(index)}"
        for index, (kind, shape, name) in enumerate(
            zip(graph.op_types, graph.shapes, graph.names, strict=True)
        )
    ]
    before: list[list[str]] = [[] for _ in nodes]
    after: list[list[str]] = [[] for _ in nodes]
    for source, target, distance in graph.edges.tolist():
        after[source].append(f"{distance} {nodes[target]}")
        before[target].append(f"{distance} {nodes[source]}")
    return sorted(zip(nodes, map(sorted, before), map(sorted, after), strict=True))


@pytest.mark.parametrize("rules", ["ghn2", "ghn3"])
def test_graphs_equal_captured_ones(rules: str) -> None:
    named = GraphRules.named(rules)
    drawn = random.Random(1)
    cells = [*CELLS, *(tuple(drawn.randrange(5) for _ in EDGES) for _ in range(8))]
    compared = 0
    for cell in cells:
        try:
            alive_edges(cell)
        except ValueError:
            continue
        for count in (1, 2):
            made = cell_graph(cell, cells=count, num_classes=7, channels=8, rules=named)
            model = CellNetwork(cell, 7, 8, count)
            captured = capture(model, (3, 32, 32), rules=named)
            assert described(made.graph) == described(captured)
            assert made.graph.rules == captured.rules
            names = {t.name for t in made.graph.targets}
            assert names == {name for name, _ in model.named_parameters()}
            compared += 1
    assert compared > 10


def test_places_are_those_of_the_cell() -> None:
    made = cell_graph((2, 1, 1, 4, 1, 0), cells=1)
    inside = made.places < OUTSIDE
    # A convolution and its norm on edge 0, a pooling on edge 3; the skip has no node.
    assert made.places[inside].tolist() == [0, 0, 3] * 3
    assert made.stages[inside].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    sums = cell_graph((2, 2, 2, 2, 2, 2), cells=1).places
    assert int((sums >= len(EDGES)).logical_and(sums < OUTSIDE).sum()) == 3 * 3


def test_networks_run() -> None:
    for cell in CELLS:
        assert CellNetwork(cell, 10, 4, 1)(torch.rand(2, 3, 16, 16)).shape == (2, 10)
    full = CellNetwork((2, 2, 2, 2, 2, 2))
    # As the benchmark says of this cell.
    assert sum(p.numel() for p in full.parameters()) == 1_531_546


def test_both_notations() -> None:
    text = "|avg_pool_3x3~0|+|skip_connect~0|none~1|+|nor_conv_1x1~0|avg_pool_3x3~1|nor_conv_1x1~2|"
    assert parse_cell(text) == parse_cell("(4, 0, 3, 1, 4, 3)") == (4, 0, 3, 1, 4, 3)
    for wrong in ("", "(1, 2)", "(9, 0, 0, 0, 0, 0)", "|conv~0|+|conv~0|conv~1|", "(-1,0,0,0,0,0)"):
        with pytest.raises(ValueError, match="needs six numbers"):
            parse_cell(wrong)
    dead: Cell = (1, 2, 1, 2, 1, 1)
    for use in (alive_edges, cell_graph, CellNetwork):
        with pytest.raises(ValueError, match="does not reach its output"):
            use(dead)  # type: ignore[operator]


def test_counts_and_paths() -> None:
    operations, paths = cell_counts([(4, 0, 3, 1, 4, 3), (2, 2, 2, 2, 2, 2)])
    assert operations.tolist() == [[1, 1, 0, 2, 2], [0, 0, 6, 0, 0]]
    assert paths.shape == (2, 12 * 31)
    # Sets of one come first: skip, none, 3x3, 1x1, pooling. How many; shortest, longest and number
    # of paths of them alone; most on a path, on one without none; edges of the ends and states.
    skip, none, three, one, pool = (paths[0, 12 * i : 12 * i + 12].tolist() for i in range(5))
    assert skip == [1, 9, 0, 0, 1, 1, 1, 0, 0, 1, 0, 0]
    assert none == [1, 9, 0, 0, 1, 0, 0, 0, 0, 1, 1, 0]
    assert three == [0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    assert one == [2, 1, 1, 1, 1, 1, 1, 2, 0, 0, 0, 1]
    assert pool == [2, 2, 2, 1, 2, 2, 1, 1, 1, 0, 1, 0]
    assert paths[1, 24:36].tolist() == [6, 1, 3, 4, 3, 3, 3, 3, 1, 2, 2, 1]
    assert paths[0, -12:].tolist() == [6, 1, 3, 4, 3, 2, 3, 3, 1, 2, 2, 1]
