"""From the nodes that remain after contraction to an architecture graph."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ghn_fast.capturing.raw import NodeGraph, RawNode, node_type_of_kind
from ghn_fast.graph.arch_graph import ArchGraph, notes_of_types
from ghn_fast.graph.node_types import LANGUAGE_NODE_TYPES, NODE_TYPE_INDEX
from ghn_fast.graph.rules import GraphRules
from ghn_fast.ops.shortest_distances import shortest_distances


def graph_from_nodes(
    nodes: NodeGraph,
    *,
    virtual_edges: int,
    skipped: Mapping[str, str] | None = None,
    aliases: Mapping[str, str] | None = None,
    notes: tuple[str, ...] | None = None,
    partial: str | None = None,
    rules: GraphRules = GraphRules.GHN2,
    initial_deviation: float = 0.02,
) -> ArchGraph:
    """Finish an architecture graph: node types, shapes, names and distances.

    A parameter that several operations read is predicted at the first of its nodes. Without
    ``notes``, the node types say what there is to note.

    Raises:
        ValueError: If ``virtual_edges`` is below 1.
    """
    if virtual_edges < 1:
        raise ValueError(f"virtual_edges: got {virtual_edges}, needs at least 1 (1 means none)")
    types, shapes, names = [], [], []
    shift_names: dict[int, str] = {}
    full_shapes: dict[str, tuple[int, ...]] = {}
    fan_ins: dict[str, int] = {}
    gains: dict[str, float] = {}
    offsets: set[str] = set()
    owned: set[str] = set()
    kept = nodes.kept()
    for index, node in enumerate(kept):
        kind, shape, name = _describe(node)
        if rules.classifier == "pair" and index == len(kept) - 2 and _is_pointwise(node):
            # A convolution of single pixels at the end is a linear classifier.
            shape = (shape or ())[:2]
        if node.param is not None:
            if name in owned:
                shape = None
            elif node.param.shift_name is not None:
                shift_names[index] = node.param.shift_name
            owned.add(name)
            if node.param.shape != shape:
                full_shapes[name] = node.param.shape
            if node.param.fan_in is not None:
                fan_ins[name] = node.param.fan_in
            if node.param.gain is not None:
                gains[name] = node.param.gain
            if node.param.is_offset:
                offsets.add(name)
        types.append(kind)
        shapes.append(shape)
        names.append(name)
    place = {number: index for index, number in enumerate(nodes.order)}
    pairs = [
        (index, target)
        for index, number in enumerate(nodes.order)
        for target in sorted(place[succ] for succ in nodes.succs[number])
    ]
    edges = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    op_types = torch.tensor(types, dtype=torch.int64)
    return ArchGraph(
        op_types,
        shortest_distances(edges, len(types), virtual_edges),
        tuple(shapes),
        tuple(names),
        shift_names,
        virtual_edges,
        dict(skipped or {}),
        dict(aliases or {}),
        full_shapes,
        fan_ins,
        gains,
        frozenset(offsets),
        notes_of_types(op_types) if notes is None else notes,
        partial,
        rules,
        initial_deviation,
    )


def _is_pointwise(node: RawNode) -> bool:
    param = node.param
    return (
        param is not None
        and param.node_type == "conv"
        and len(param.predicted_shape) == 4
        and max(param.predicted_shape[2:]) == 1
    )


def _describe(node: RawNode) -> tuple[int, tuple[int, ...] | None, str]:
    if node.param is not None and node.param.node_type is not None:
        return NODE_TYPE_INDEX[node.param.node_type], node.param.predicted_shape, node.param.name
    kind = node_type_of_kind(node.kind)
    if kind is None:
        raise ValueError(f"operation {node.kind} has no node type; it must be contracted first")
    name = LANGUAGE_NODE_TYPES[kind]
    kernel = node.op.kernel if node.op is not None else None
    return kind, None if kernel is None else (1, 1, *kernel), name
