"""Operations of a network as recorded (or derived), before they become an architecture graph.

A network is first described by the operations that compute its output, each pointing to the
operations and parameters that it reads: the shape of PyTorch's autograd graph. Two front ends
produce this form, :mod:`ghn_fast.capturing.capture` from an ``nn.Module`` and
:mod:`ghn_fast.deepnets.graphs.build` from a genotype; everything after it is shared, so that both
give the same graph, node by node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ghn_fast.graph.node_types import NODE_TYPE_INDEX
from ghn_fast.graph.rules import GraphRules


class RawInput:
    """What an operation reads of the network's inputs, or of what is computed of them alone."""

    __slots__ = ()


INPUT = RawInput()


class RawParam:
    """A parameter tensor that an operation reads.

    Args:
        name: Name of the parameter in the network.
        shape: Shape of the tensor.
        node_type: Type of the node that stands for the parameter, or ``None`` where the parameter
            has no node of its own (shift of a norm layer, unsupported parameter).
        is_linear_weight: Whether it is the weight of a linear layer. The recorded product puts the
            bias before the weight; :func:`order_nodes` turns that round.
        shift_name: For the scale of a norm layer, the name of the shift that its node yields, too.
        reason: Why a parameter without ``node_type`` gets none; shown to users.
        is_open: Whether its use is to decide what it is.
        is_settled: Whether its use changes nothing any more, as where the class of its layer
            declares what it is.

    :mod:`ghn_fast.capturing.roles` sets more where the use of a parameter says so:

    Attributes:
        predicted_shape: Shape that is predicted, elements in the order of the parameter:
            (n,) for a scale or shift, two to four dimensions (out, in, h, w) otherwise.
        fan_in: Number of input elements per output element, where the shape does not say it.
        gain: See :class:`ghn_fast.graph.Target`.
        is_offset: Whether it is the difference of a scale from one.
        is_free: Whether it is a scale, shift or token that belongs to no layer.
        is_table: Whether its rows are read by index, and it has a node for that.
        is_rows: Whether its class says that rows stand for symbols.
    """

    __slots__ = (
        "fan_in",
        "gain",
        "is_free",
        "is_linear_weight",
        "is_offset",
        "is_rows",
        "is_settled",
        "is_table",
        "name",
        "node_type",
        "open",
        "predicted_shape",
        "reason",
        "shape",
        "shift_name",
    )

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        node_type: str | None,
        *,
        is_linear_weight: bool = False,
        shift_name: str | None = None,
        reason: str | None = None,
        is_open: bool = False,
        is_settled: bool = False,
    ) -> None:
        self.name = name
        self.shape = shape
        self.node_type = node_type
        self.is_linear_weight = is_linear_weight
        self.shift_name = shift_name
        self.reason = reason
        self.open = is_open
        self.predicted_shape = shape
        self.fan_in: int | None = None
        self.gain: float | None = None
        self.is_settled = is_settled
        self.is_offset = False
        self.is_free = False
        self.is_table = False
        self.is_rows = False


class RawOp:
    """An operation: its kind, what it reads in the order of its arguments, and two attributes.

    Args:
        kind: Name of the operation in autograd without its suffix, for example ``Convolution``.
        inputs: Operations and parameters that it reads, in the order in which autograd keeps them;
            ``INPUT`` for features that no parameter has met, ``None`` for constants.
        kernel: Kernel size ``(h, w)`` of a pooling operation.
        keepdim: Whether a mean keeps the dimensions that it averages over; ``None`` if not a mean
            over dimensions.

    Attributes:
        input_factor: Number by which inputs of the network were multiplied before it reads them.
        detail: Of a convolution (groups, dilation, stride, transposed, shape of the kernel), of a
            product the number of terms in its sums, of arithmetic with a number that number, with
            a tensor the shapes of both; or autograd's record, which has them.
    """

    __slots__ = ("detail", "input_factor", "inputs", "keepdim", "kernel", "kind")

    def __init__(
        self,
        kind: str,
        inputs: Sequence[RawOp | RawParam | RawInput | None] = (),
        *,
        kernel: tuple[int, int] | None = None,
        keepdim: bool | None = None,
    ) -> None:
        self.kind = kind
        self.inputs = inputs
        self.kernel = kernel
        self.keepdim = keepdim
        self.detail: Any = None
        self.input_factor = 1.0


@dataclass(slots=True)
class RawNode:
    """A node of the graph under construction: an operation or one use of a parameter."""

    op: RawOp | None
    param: RawParam | None
    kind: str


class NodeGraph:
    """Nodes with their predecessors and successors, and the order of those that are left.

    Nodes are numbered by their position in ``nodes`` for good; ``order`` lists the numbers of the
    nodes of the graph, and only it changes when nodes are sorted, inserted or removed. ``joined``
    lists nodes in which the network's input meets other features.
    """

    __slots__ = ("joined", "nodes", "order", "preds", "succs")

    def __init__(self, nodes: list[RawNode]) -> None:
        self.nodes = nodes
        self.order = list(range(len(nodes)))
        self.joined: list[int] = []
        self.preds: list[set[int]] = [set() for _ in nodes]
        self.succs: list[set[int]] = [set() for _ in nodes]

    def add(self, node: RawNode) -> int:
        """Add a node without edges, outside the order; returns its number."""
        self.nodes.append(node)
        self.preds.append(set())
        self.succs.append(set())
        return len(self.nodes) - 1

    def connect(self, source: int, target: int) -> None:
        """Add the edge ``source -> target``; a loop is not an edge."""
        if source != target:
            self.succs[source].add(target)
            self.preds[target].add(source)

    def disconnect_inputs(self, target: int) -> None:
        """Remove all edges that end in ``target``."""
        for source in self.preds[target]:
            self.succs[source].discard(target)
        self.preds[target].clear()

    def remove(self, numbers: set[int]) -> None:
        """Remove nodes with all their edges."""
        for number in numbers:
            for pred in self.preds[number]:
                self.succs[pred].discard(number)
            for succ in self.succs[number]:
                self.preds[succ].discard(number)
        self.order = [number for number in self.order if number not in numbers]

    def kept(self) -> list[RawNode]:
        """The nodes of the graph, in order."""
        return [self.nodes[number] for number in self.order]


def linearise(*outputs: RawOp) -> NodeGraph:
    """List the operations behind ``outputs`` depth first, parameters standing for their readers.

    An operation that reads supported parameters is represented by one node per parameter (weight,
    then bias, chained); any other operation by itself. The order, inputs first to last from the
    output backwards, is that in which the published system meets them. It decides the numbering of
    the nodes and, through :func:`ghn_fast.capturing.contract.contract`, which ``msa`` and ``cse``
    operations are recognised.
    """
    nodes: list[RawNode] = []
    # Operation -> (node that its inputs link to, node that its readers link to, leaves by id).
    entry: dict[int, int] = {}
    leaving: dict[int, int] = {}
    leaves: dict[tuple[int, int], int] = {}
    visited: list[RawOp] = []
    stack: list[RawOp] = list(reversed(outputs))
    while stack:
        op = stack.pop()
        key = id(op)
        if key in entry:
            continue
        visited.append(op)
        entry[key] = len(nodes)
        for item in op.inputs:
            if type(item) is RawParam and item.node_type is not None:
                leaves[key, id(item)] = len(nodes)
                nodes.append(RawNode(None, item, item.name))
        if entry[key] == len(nodes):
            nodes.append(RawNode(op, None, op.kind))
        leaving[key] = len(nodes) - 1
        stack.extend(item for item in reversed(op.inputs) if type(item) is RawOp)

    graph = NodeGraph(nodes)
    for op in visited:
        start = entry[id(op)]
        if op.kind in _JOINS and INPUT in op.inputs:
            graph.joined.append(start)
        for item in op.inputs:
            if type(item) is RawOp:
                graph.connect(leaving[id(item)], start)
            elif type(item) is RawParam:
                link = leaves.get((id(op), id(item)))
                if link is None:
                    continue
                if item.node_type == "bias":
                    graph.connect(start, link)
                else:
                    graph.connect(link, start)
    return graph


def order_nodes(graph: NodeGraph, rules: GraphRules = GraphRules.GHN2) -> NodeGraph:
    """Put linear weights before their biases, add the input, and sort topologically.

    Nodes are sorted by generations (all nodes whose predecessors lie in earlier generations), ties
    broken by the order in which their last predecessor was met.

    Raises:
        ValueError: If the operations form a cycle.
    """
    entrance = graph.add(RawNode(None, None, "input"))
    for index in graph.joined:
        graph.connect(entrance, index)
    for index, node in enumerate(graph.nodes):
        if node.param is None or not node.param.is_linear_weight:
            continue
        for reader in sorted(graph.succs[index]):
            if rules.bias_free == "beside" and graph.nodes[reader].param is None:
                continue
            sources = sorted(graph.preds[reader])
            graph.disconnect_inputs(reader)
            for source in sources:
                graph.connect(source, index)
            graph.connect(index, reader)

    sources = [index for index, preds in enumerate(graph.preds) if not preds]
    for source in sources:
        graph.connect(entrance, source)

    missing = [len(preds) for preds in graph.preds]
    generation = [entrance]
    order: list[int] = []
    while generation:
        following: list[int] = []
        for index in generation:
            order.append(index)
            for succ in sorted(graph.succs[index]):
                missing[succ] -= 1
                if missing[succ] == 0:
                    following.append(succ)
        generation = following
    if len(order) < len(graph.nodes):
        raise ValueError(
            "the operations of the network form a cycle; an architecture graph is acyclic"
        )
    graph.order = order
    split_positional_encodings(graph)
    return graph


def split_positional_encodings(graph: NodeGraph) -> None:
    """Give every positional encoding its own node beside the sum that adds it to the features."""
    order: list[int] = []
    for number in graph.order:
        order.append(number)
        param = graph.nodes[number].param
        if param is None or param.node_type != "pos_enc" or param.is_table:
            continue
        total = graph.add(RawNode(None, None, "Add"))
        order.append(total)
        for pred in list(graph.preds[number]):
            graph.succs[pred].discard(number)
            graph.connect(pred, total)
        for succ in list(graph.succs[number]):
            graph.preds[succ].discard(number)
            graph.connect(total, succ)
        graph.preds[number] = set()
        graph.succs[number] = set()
        graph.connect(number, total)
    graph.order = order


def node_type_of_kind(kind: str) -> int | None:
    """Index of the node type of an operation without parameters, ``None`` if it has none."""
    name = _KIND_TO_TYPE.get(kind)
    return None if name is None else NODE_TYPE_INDEX[name]


# Operations that become nodes where several branches meet.
_JOINS = ("Add", "Cat", "Sub")
_KIND_TO_TYPE = {
    "input": "input",
    "Mean": "glob_avg",
    "AdaptiveAvgPool2D": "glob_avg",
    "MaxPool2DWithIndices": "max_pool",
    "AvgPool2D": "avg_pool",
    "Clone": "msa",
    "ScaledDotProduct": "msa",
    "Mul": "cse",
    "Attention": "msa",
    "Gated": "cse",
    "Gate": "gate",
    "Add": "sum",
    "Cat": "concat",
}
