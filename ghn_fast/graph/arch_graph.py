"""The architecture graph: what a hypernetwork reads of a network."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from ghn_fast.graph.node_types import LANGUAGE_NODE_TYPES, NODE_TYPE_INDEX
from ghn_fast.graph.rules import GraphRules
from ghn_fast.ops.gated_gnn_plan import GraphPlan
from ghn_fast.ops.shortest_distances import shortest_distances
from ghn_fast.utils.deferred import Deferred


@dataclass(frozen=True, slots=True)
class Target:
    """A parameter tensor that a node predicts.

    Attributes:
        node: Index of the node.
        name: Name of the parameter in the network.
        shape: Shape of the parameter.
        row: 0 for weights and scales, 1 for shifts, biases and differences from one; selects the
            row of 1-D predictions.
        head: Whether the classifier's own head predicts it (weight and bias at the graph's end).
        predicted_shape: Shape that is predicted, elements in the order of the parameter: (n,) for
            scales, shifts and biases, (out, in), (out, in, h) or (out, in, h, w) for weights.
        fan_in: Input elements per output element of a weight, ``None`` for the product of all
            extents of ``predicted_shape`` but the first.
        gain: Variance of a weight times its fan-in, ``None`` for what its shape says (1 for kernels
            with one input channel and for those wider than high, 2 otherwise).
    """

    node: int
    name: str
    shape: tuple[int, ...]
    row: int
    head: bool
    predicted_shape: tuple[int, ...]
    fan_in: int | None = None
    gain: float | None = None

    @property
    def seen(self) -> tuple[int, ...]:
        """Another name of ``predicted_shape``."""
        return self.predicted_shape


class _Edges:
    """The field ``edges``: a table, or a plan of message passing, which has the table."""

    def __get__(self, graph: ArchGraph | None, owner: type) -> Tensor:
        if graph is None:
            raise AttributeError("ArchGraph itself has no edges")
        edges = graph.__dict__["edges"]
        return edges.edges if isinstance(edges, GraphPlan) else edges

    def __set__(self, graph: ArchGraph, value: Tensor | GraphPlan) -> None:
        graph.__dict__["edges"] = value


NOT_NORMALISED = (
    "no layer of the network normalises features: predicted blocks repeat, so that sums over them "
    "are larger or smaller than those over independent weights, layer by layer, and outputs may be "
    "orders of magnitude outside of the range that training expects"
)


def notes_of_types(op_types: Tensor) -> tuple[str, ...]:
    """The notes on a network in which nothing but layers with nodes normalises features."""
    norms = (NODE_TYPE_INDEX["bn"], NODE_TYPE_INDEX["ln"])
    return () if any(bool((op_types == norm).any()) for norm in norms) else (NOT_NORMALISED,)


@dataclass(frozen=True, eq=False)
class ArchGraph:
    """Computational graph of a network: node types, shapes, names, and edges with distances.

    Nodes are numbered in topological order; node 0 is the input. ``edges`` may be given as a plan
    of message passing; ``shapes``, ``names``, ``shift_names`` and ``skipped`` as functions, which
    make them when they are first read.

    Attributes:
        op_types: Long tensor (N,), index into :data:`ghn_fast.graph.NODE_TYPES`, with those of
            language models behind them (:data:`ghn_fast.graph.node_types.LANGUAGE_NODE_TYPES`).
        edges: Long tensor (M, 3) of rows (from, to, distance): distance 1 for edges, above 1 for
            virtual edges (arXiv 2110.13100, Eq. 4); sorted by from, then to.
        shapes: Per node :attr:`Target.predicted_shape` of its parameter,
            (1, 1, h, w) for pooling, ``None`` otherwise.
        names: Per node the name of its parameter, or the name of its type.
        shift_names: For norm layers, node index to the name of the shift predicted with the scale.
        virtual_edges: Largest distance listed in ``edges``.
        skipped: Parameters of the network that no node stands for, with the reason.
        aliases: Further names of shared parameters, to the name that is predicted.
        full_shapes: Name to shape of the parameters whose shape is not the one in ``shapes``.
        fan_ins: Name to fan-in of the weights whose shape does not say it.
        gains: Name to :attr:`Target.gain` of the weights whose shape does not say it.
        offsets: Names of scales that are stored as their difference from one.
        notes: What users of predicted parameters should know about the network, as sentences.
        partial: What the graph leaves out or assumes of the forward pass, ``None`` for nothing.
        rules: The rules that it was made by.
        initial_deviation: Standard deviation of the weights' initial values, as the configuration
            of a language model says it (``initializer_range``).
    """

    op_types: Tensor
    edges: _Edges = _Edges()
    shapes: Deferred[tuple[tuple[int, ...] | None, ...]] = Deferred()
    names: Deferred[tuple[str, ...]] = Deferred()
    shift_names: Deferred[Mapping[int, str]] = Deferred(dict)
    virtual_edges: int = 50
    skipped: Deferred[Mapping[str, str]] = Deferred(dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    full_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    fan_ins: Mapping[str, int] = field(default_factory=dict)
    gains: Mapping[str, float] = field(default_factory=dict)
    offsets: frozenset[str] = frozenset()
    notes: Deferred[tuple[str, ...]] = Deferred(tuple)
    partial: str | None = None
    rules: GraphRules = GraphRules.GHN2
    initial_deviation: float = 0.02

    @property
    def plan(self) -> GraphPlan | None:
        """Plan of message passing over the graph, if its edges came with one."""
        edges = self.__dict__["edges"]
        return edges if isinstance(edges, GraphPlan) else None

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return len(self.op_types)

    @property
    def num_edges(self) -> int:
        """Number of edges, virtual edges included."""
        return len(self.edges) if self.plan is None else self.plan.num_edges

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """The parameters that the nodes predict, in the order of the nodes."""
        result = []
        op_types, shift_names = self.op_types.tolist(), self.shift_names
        last = self.num_nodes - 1
        ends_with_bias = last >= 0 and LANGUAGE_NODE_TYPES[op_types[last]] == "bias"
        before = last - 1 if ends_with_bias else -1
        pair = self.rules.classifier == "pair"
        for node, (name, shape) in enumerate(zip(self.names, self.shapes, strict=True)):
            kind = LANGUAGE_NODE_TYPES[op_types[node]]
            if shape is None or kind in _WITHOUT_PARAMETERS:
                continue
            is_bias = kind == "bias"
            is_matrix = len(shape) == 2
            if pair:
                is_weight = is_matrix and kind in _WEIGHTS
                head = is_bias if node == last else node == last - 1 and is_weight
            else:
                head = (node == last and (is_bias or is_matrix)) or (node == before and is_matrix)
            full = self.full_shapes.get(name, shape)
            row = int(is_bias or name in self.offsets)
            fan_in, gain = self.fan_ins.get(name), self.gains.get(name)
            result.append(Target(node, name, full, row, head, shape, fan_in, gain))
            if node in shift_names:
                result.append(Target(node, shift_names[node], full, 1, False, shape))
        return tuple(result)

    def with_virtual_edges(self, virtual_edges: int) -> ArchGraph:
        """The same graph with virtual edges up to another distance (1: none)."""
        hops = self.edges[self.edges[:, 2] == 1, :2]
        edges = shortest_distances(hops, self.num_nodes, virtual_edges)
        return replace(self, edges=edges, virtual_edges=virtual_edges)

    def with_rules(self, rules: GraphRules) -> ArchGraph:
        """The same nodes and edges as a graph that was made by other rules."""
        made = copy(self)
        made.__dict__["rules"] = rules
        made.__dict__.pop("targets", None)
        return made

    def to_networkx(self, *, virtual_edges: bool = False) -> Any:
        """As a ``networkx.DiGraph`` with node attributes ``op``, ``name``, ``shape``.

        Args:
            virtual_edges: Whether to include virtual edges; edges carry the attribute ``distance``.
        """
        import networkx as nx

        graph = nx.DiGraph()
        for node, (name, shape) in enumerate(zip(self.names, self.shapes, strict=True)):
            graph.add_node(
                node, op=LANGUAGE_NODE_TYPES[int(self.op_types[node])], name=name, shape=shape
            )
        for source, target, distance in self.edges.tolist():
            if virtual_edges or distance == 1:
                graph.add_edge(source, target, distance=distance)
        return graph

    def __repr__(self) -> str:
        hops = int((self.edges[:, 2] == 1).sum())
        return (
            f"ArchGraph({self.num_nodes} nodes, {hops} edges, {self.num_edges - hops} virtual "
            f"edges up to distance {self.virtual_edges}, {len(self.targets)} parameters)"
        )


_WEIGHTS = ("conv", "sep_conv", "dil_conv")
_WITHOUT_PARAMETERS = frozenset(("max_pool", "avg_pool", "msa", "cse", "sum", "concat", "input"))
