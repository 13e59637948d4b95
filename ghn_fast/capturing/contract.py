"""From all recorded operations to the nodes of an architecture graph.

Operations that keep the features as they are (activations, reshapes, dropout) are contracted: an
edge runs from each of their predecessors to each of their successors. Sums, concatenations, means,
products and copies are contracted, too, unless they are what an architecture graph calls ``sum``,
``concat``, ``glob_avg``, ``cse`` and ``msa``.

The rules reproduce the graphs that the published models were trained on. Two of them look at what
stands a fixed number of places earlier in the order of the nodes, so that in networks with parallel
branches some attention and squeeze-and-excitation blocks keep a node for their product and others
do not. That is a property of DeepNets-1M as published: a hypernetwork trained on it expects it.
"""

from __future__ import annotations

from itertools import pairwise

from ghn_fast.capturing.raw import NodeGraph, RawNode, node_type_of_kind
from ghn_fast.graph.rules import GraphRules

# Places between the attention's softmax and the copy that merges its heads.
_SOFTMAX_TO_COPY = 11
# Places between the gate of a squeeze-and-excitation block and the product that applies it.
_GATE_TO_PRODUCT = 2


def contract(graph: NodeGraph, rules: GraphRules = GraphRules.GHN2) -> NodeGraph:
    """Contract all operations that are not nodes of an architecture graph, in place.

    Args:
        graph: Operations in the order of :func:`ghn_fast.capturing.raw.order_nodes`.
        rules: What is a node; the rules above are those of DeepNets-1M.

    Returns:
        The same graph; the nodes that stay keep their order.
    """
    if rules.blocks == "structure":
        # What is attention or squeeze-and-excitation has a kind of its own (capturing/blocks.py).
        _contract_unsupported(graph)
        _contract_joins(graph)
    else:
        for kind in ("Mul", "Clone"):
            _contract_kind(graph, kind)
        _contract_unsupported(graph)
        for kind in ("Mean", "Add", "Cat"):
            _contract_kind(graph, kind)
    if rules.classifier == "pair":
        _put_mean_first(graph)
    return graph


def _contract_joins(graph: NodeGraph) -> None:
    """Contract sums and concatenations that a single path comes to."""
    removed = set()
    for number in graph.order:
        node = graph.nodes[number]
        if node.param is None and node.kind in ("Add", "Cat") and len(graph.preds[number]) < 2:
            for pred in graph.preds[number]:
                graph.succs[pred].discard(number)
                for succ in graph.succs[number]:
                    graph.connect(pred, succ)
            for succ in graph.succs[number]:
                graph.preds[succ].discard(number)
            removed.add(number)
    graph.order = [number for number in graph.order if number not in removed]


def _put_mean_first(graph: NodeGraph) -> None:
    """Let a final mean stand before the layer that it follows: the layer is the classifier.

    The three are a chain, so that their edges stay.
    """
    nodes, order = graph.nodes, graph.order
    last = nodes[order[-1]] if order else None
    if last is None or last.kind != "Mean" or last.param is not None:
        return
    layer = order[-3:-1] if _type_of(nodes[order[-2]]) == "bias" else order[-2:-1]
    chain = [*layer, order[-1]]
    if _type_of(nodes[layer[0]]) != "conv" or any(
        graph.succs[a] != {b} or graph.preds[b] != {a} for a, b in pairwise(chain)
    ):
        return
    moved = [last, *(nodes[number] for number in layer)]
    for number, node in zip(chain, moved, strict=True):
        nodes[number] = node


def _type_of(node: RawNode) -> str | None:
    return None if node.param is None else node.param.node_type


def _contract_kind(graph: NodeGraph, kind: str) -> None:
    """Contract the operations of one kind that do not qualify as nodes.

    Contracted nodes stay in the graph until the end of the pass, with all their edges: the number
    of predecessors that decides whether a later sum stays counts them, as in the published graphs.
    """
    nodes = graph.nodes
    contracted = set()
    for place, number in enumerate(graph.order):
        node = nodes[number]
        if node.kind == kind and node.param is None and not _qualifies(graph, place):
            for pred in graph.preds[number]:
                for succ in graph.succs[number]:
                    graph.connect(pred, succ)
            contracted.add(number)
    if contracted:
        graph.remove(contracted)


def _contract_unsupported(graph: NodeGraph) -> None:
    nodes, preds, succs = graph.nodes, graph.preds, graph.succs
    keep = []
    for number in graph.order:
        node = nodes[number]
        if node.param is not None or node_type_of_kind(node.kind) is not None:
            keep.append(number)
            continue
        before, after = preds[number], succs[number]
        for pred in before:
            succs[pred].discard(number)
            succs[pred] |= after
        for succ in after:
            preds[succ].discard(number)
            preds[succ] |= before
    graph.order = keep


def _qualifies(graph: NodeGraph, place: int) -> bool:
    number = graph.order[place]
    node = graph.nodes[number]
    if node.kind == "Mean":
        if node.op is not None and node.op.keepdim is not None:
            return node.op.keepdim
        following = graph.order[place + 1 : place + 2]
        return bool(following) and not graph.nodes[following[0]].kind.startswith("cells.")
    if node.kind == "Mul":
        return _stands_before(graph, place, _GATE_TO_PRODUCT, "Hard")
    if node.kind == "Clone":
        return _stands_before(graph, place, _SOFTMAX_TO_COPY, "Softmax")
    return len(graph.preds[number]) > 1


def _stands_before(graph: NodeGraph, place: int, places: int, prefix: str) -> bool:
    return place >= places and graph.nodes[graph.order[place - places]].kind.startswith(prefix)
