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

from ghn_fast.capturing.raw import NodeGraph, node_type_of_kind

# Places between the attention's softmax and the copy that merges its heads.
_SOFTMAX_TO_COPY = 11
# Places between the gate of a squeeze-and-excitation block and the product that applies it.
_GATE_TO_PRODUCT = 2


def contract(graph: NodeGraph) -> NodeGraph:
    """Contract all operations that are not nodes of an architecture graph, in place.

    Args:
        graph: Operations in the order of :func:`ghn_fast.capturing.raw.order_nodes`.

    Returns:
        The same graph; the nodes that stay keep their order.
    """
    for kind in ("Mul", "Clone"):
        _contract_kind(graph, kind)
    _contract_unsupported(graph)
    for kind in ("Mean", "Add", "Cat"):
        _contract_kind(graph, kind)
    return graph


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
