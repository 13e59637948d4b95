from __future__ import annotations

from dataclasses import replace

import torch

from ghn_fast.deepnets import SampledNets, build_graph
from ghn_fast.deepnets.graphs.correct import by_rules, corrected
from ghn_fast.graph import ArchGraph
from ghn_fast.graph.node_types import NODE_TYPE_INDEX
from ghn_fast.graph.rules import GraphRules


def graph(types: list[str], hops: list[tuple[int, int]]) -> ArchGraph:
    edges = torch.tensor([(a, b, 1) for a, b in hops])
    made = ArchGraph(
        torch.tensor([NODE_TYPE_INDEX[name] for name in types]),
        edges,
        (None,) * len(types),
        tuple(types),
    )
    return made.with_virtual_edges(50)


def hops(made: ArchGraph) -> list[tuple[int, int]]:
    return [(a, b) for a, b, distance in made.edges.tolist() if distance == 1]


def config(**changes: object) -> object:
    plain = next(
        net.config
        for net in SampledNets("train", 50, 1)
        if net.config is not None and "msa" not in net.config.genotype.primitives()
    )
    return replace(plain, **{"stem_type": 0, "norm": "bnorm", **changes})  # type: ignore[arg-type]


def test_one_predecessor_stays_where_nothing_is_joined() -> None:
    made = graph(["input", "conv", "bn", "bias", "sum"], [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3),
                                                          (2, 4), (3, 4)])  # fmt: skip
    mended = corrected(made, config())  # type: ignore[arg-type]
    assert hops(mended) == [(0, 1), (0, 2), (1, 3), (2, 4), (3, 4)]
    assert torch.equal(mended.edges, mended.with_virtual_edges(50).edges)


def test_an_edge_moves_to_the_second_part_of_the_stem() -> None:
    types = ["input", "conv", "conv", "conv", "conv", "conv", "sum"]
    made = graph(types, [(0, 1), (1, 2), (2, 3), (2, 5), (3, 4), (4, 6), (5, 6)])
    mended = corrected(made, config(stem_type=1, norm=None))  # type: ignore[arg-type]
    assert hops(mended) == [(0, 1), (1, 2), (2, 3), (3, 4), (3, 5), (4, 6), (5, 6)]
    # Not with the stem for small images.
    assert corrected(made, config(norm=None)) is made  # type: ignore[arg-type]


def test_the_rules_choose() -> None:
    item, other = (
        SampledNets("train", 1, 1, rules=rules)[0] for rules in (GraphRules.GHN2, GraphRules.GHN3)
    )
    assert other.graph.rules == GraphRules.GHN3
    assert item.graph.rules == GraphRules.GHN2
    assert item.config is not None
    built = build_graph(item.config, rules=GraphRules.GHN3)
    assert built.rules == GraphRules.GHN3
    assert torch.equal(built.edges, other.graph.edges)
    assert by_rules(item.graph, item.config, GraphRules.GHN2) is item.graph
    expected = corrected(item.graph, item.config)  # type: ignore[arg-type]
    assert torch.equal(other.graph.edges, expected.edges)
