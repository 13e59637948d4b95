"""What tests ask of architecture graphs."""

from __future__ import annotations

import torch

from ghn_fast.graph import NODE_TYPES, ArchGraph


def assert_same_graph(one: ArchGraph, other: ArchGraph) -> None:
    """Every field of two graphs is the same, in the same order."""
    assert torch.equal(one.op_types, other.op_types)
    assert torch.equal(one.edges, other.edges)
    assert (one.names, one.shapes) == (other.names, other.shapes)
    assert one.shift_names == other.shift_names
    assert list(one.skipped.items()) == list(other.skipped.items())
    assert (one.aliases, one.virtual_edges) == (other.aliases, other.virtual_edges)
    assert (one.full_shapes, one.fan_ins) == (other.full_shapes, other.fan_ins)
    assert (one.num_nodes, one.num_edges) == (other.num_nodes, other.num_edges)
    assert one.targets == other.targets


def op_histogram(graph: ArchGraph) -> list[int]:
    """Number of nodes of each type, in the order of ``NODE_TYPES``."""
    return torch.bincount(graph.op_types, minlength=len(NODE_TYPES)).tolist()
