"""What all tests ask of architecture graphs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

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


def fingerprint(
    types: Sequence[int],
    names: Sequence[str],
    shapes: Sequence[Sequence[int] | None],
    hops: Sequence[Sequence[int]],
) -> str:
    """A hash of a labelled graph that does not depend on how its nodes are numbered.

    Args:
        types, names, shapes: Of each node; names of parameters, "" for other nodes.
        hops: Edges (from, to).
    """

    def digest(*parts: Any) -> str:
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]

    before: list[list[int]] = [[] for _ in types]
    after: list[list[int]] = [[] for _ in types]
    for source, target in hops:
        after[source].append(target)
        before[target].append(source)
    labels = [
        digest(int(kind), name, None if shape is None else [int(n) for n in shape])
        for kind, name, shape in zip(types, names, shapes, strict=True)
    ]
    # Each time a label takes in the labels one edge further away.
    for _ in range(6):
        labels = [
            digest(label, sorted(labels[j] for j in ins), sorted(labels[j] for j in outs))
            for label, ins, outs in zip(labels, before, after, strict=True)
        ]
    return digest(sorted(labels))


def fingerprint_of(graph: ArchGraph) -> str:
    """:func:`fingerprint` of a captured graph."""
    unnamed = ("max_pool", "avg_pool")
    names = [
        "" if shape is None or NODE_TYPES[kind] in unnamed else name
        for kind, shape, name in zip(graph.op_types, graph.shapes, graph.names, strict=True)
    ]
    hops = graph.edges[graph.edges[:, 2] == 1, :2].tolist()
    return fingerprint(graph.op_types.tolist(), names, graph.shapes, hops)
