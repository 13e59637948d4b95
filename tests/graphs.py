"""What all tests ask of architecture graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import torch

from ghn_fast.graph import NODE_TYPES, ArchGraph


def assert_same_graph(actual: ArchGraph, expected: ArchGraph) -> None:
    """Compare every field of two graphs, mappings with their order, and what follows from them.

    Raises:
        AssertionError: If they differ; the message names the field.
    """
    __tracebackhide__ = True
    names = [field.name for field in fields(ArchGraph) if not field.name.startswith("_")]
    for name in (*names, "num_nodes", "num_edges", "targets"):
        got, want = getattr(actual, name), getattr(expected, name)
        if isinstance(want, torch.Tensor):
            same = torch.equal(got, want)
        elif isinstance(want, Mapping):
            same = list(got.items()) == list(want.items())
        else:
            same = got == want
        assert same, f"{name}: got {got}, expected {want}"


def op_histogram(graph: ArchGraph) -> list[int]:
    """Number of nodes of each type, in the order of ``NODE_TYPES``."""
    return torch.bincount(graph.op_types, minlength=len(NODE_TYPES)).tolist()
