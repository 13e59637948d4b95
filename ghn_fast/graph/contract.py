"""From all recorded operations to the nodes of an architecture graph.

Operations that keep the features as they are (activations, reshapes, dropout) are contracted: an
edge runs from each of their predecessors to each of their successors. Sums, concatenations, means,
products and copies are contracted, too, unless they are what an architecture graph calls ``sum``,
``concat``, ``glob_avg``, ``cse`` and ``msa``.

The rules reproduce the graphs that the published models were trained on. Two of them look at what
stands a fixed number of places earlier in the order of the nodes, so that in networks with parallel
branches some attention and squeeze-and-excitation blocks keep a node for their product and others do
not. That is a property of DeepNets-1M as published: a hypernetwork trained on it expects it.
"""

from __future__ import annotations

from ghn_fast.graph.raw import NodeGraph, node_type_of_kind

# Places between the attention's softmax and the copy that merges its heads.
_SOFTMAX_TO_COPY = 11
# Places between the gate of a squeeze-and-excitation block and the product that applies it.
_GATE_TO_PRODUCT = 2


def contract(graph: NodeGraph) -> NodeGraph:
    """Contract all operations that are not nodes of an architecture graph.

    Args:
        graph: Operations in the order of :func:`ghn_fast.graph.raw.order_nodes`.

    Returns:
        The nodes that stay, in unchanged order.
    """
    for kind in ("Mul", "Clone"):
        graph = _contract_kind(graph, kind)
    graph = _contract_unsupported(graph)
    for kind in ("Mean", "Add", "Cat"):
        graph = _contract_kind(graph, kind)
    return graph


def _contract_kind(graph: NodeGraph, kind: str) -> NodeGraph:
    """Contract the operations of one kind that do not qualify as nodes.

    Contracted nodes stay in the graph until the end of the pass, with all their edges: the number
    of predecessors that decides whether a later sum stays counts them, as in the published graphs.
    """
    keep = []
    for index, node in enumerate(graph.nodes):
        if node.param is None and node.kind == kind and not _qualifies(graph, index):
            _bypass(graph, index)
        else:
            keep.append(index)
    return graph if len(keep) == len(graph.nodes) else graph.select(keep)


def _contract_unsupported(graph: NodeGraph) -> NodeGraph:
    keep = []
    for index, node in enumerate(graph.nodes):
        if node.param is None and node_type_of_kind(node.kind) is None:
            preds, succs = graph.preds[index], graph.succs[index]
            for pred in preds:
                graph.succs[pred].discard(index)
                graph.succs[pred] |= succs
            for succ in succs:
                graph.preds[succ].discard(index)
                graph.preds[succ] |= preds
        else:
            keep.append(index)
    return graph if len(keep) == len(graph.nodes) else graph.select(keep)


def _bypass(graph: NodeGraph, index: int) -> None:
    for pred in graph.preds[index]:
        for succ in graph.succs[index]:
            graph.connect(pred, succ)


def _qualifies(graph: NodeGraph, index: int) -> bool:
    nodes = graph.nodes
    kind = nodes[index].kind
    if kind == "Mean":
        op = nodes[index].op
        if op is not None and op.keepdim is not None:
            return op.keepdim
        following = nodes[index + 1 : index + 2]
        return bool(following) and not following[0].kind.startswith("cells.")
    if kind == "Mul":
        return _stands_before(graph, index, _GATE_TO_PRODUCT, "Hard")
    if kind == "Clone":
        return _stands_before(graph, index, _SOFTMAX_TO_COPY, "Softmax")
    return len(graph.preds[index]) > 1


def _stands_before(graph: NodeGraph, index: int, places: int, prefix: str) -> bool:
    return index >= places and graph.nodes[index - places].kind.startswith(prefix)
