"""Architecture graph of a network straight from its configuration, without building the network.

The operations that autograd would record are written down from the plan of the network
(:mod:`ghn_fast.deepnets.architectures.spec`) and go through the same steps as captured ones. The
graph equals ``capture(Network(config), ...)``, node by node. This module has the reference; the
compiled back end (:mod:`ghn_fast.deepnets.graphs.derive`) takes its place where it is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ghn_fast.capturing.assemble import graph_from_nodes
from ghn_fast.capturing.contract import contract
from ghn_fast.capturing.raw import RawOp, RawParam, linearise, order_nodes
from ghn_fast.deepnets.architectures.genotype import NetworkConfig
from ghn_fast.deepnets.architectures.spec import (
    CellPlan,
    NetworkPlan,
    OpPlan,
    PreprocessPlan,
    check_sizes,
    is_connected,
    plan_network,
)
from ghn_fast.deepnets.graphs.derive import UNREACHED, derive_graph, derive_sizes
from ghn_fast.deepnets.graphs.operations import (
    record_chain,
    record_cse,
    record_factorized,
    record_linear,
    record_msa,
    record_slice,
)
from ghn_fast.deepnets.graphs.parameters import (
    cell_parameters,
    classifier_parameters,
    stem_parameters,
)
from ghn_fast.graph.arch_graph import ArchGraph

__all__ = [
    "build_graph",
    "count_parameters",
    "is_connected",
    "node_cells",
    "parameter_shapes",
    "stored_node_order",
]

# Letters of record_chain for the primitives that are chains.
_CHAINS = {
    "sep_conv": "rccnrccn",
    "dil_conv": "rccn",
    "conv": "rcn",
    "conv_7x1": "rccn",
}


def build_graph(
    config: NetworkConfig,
    *,
    num_classes: int = 10,
    image_size: int = 32,
    virtual_edges: int = 50,
) -> ArchGraph:
    """Architecture graph of a network.

    Args:
        config: The network.
        num_classes: Number of classes.
        image_size: Height and width of the images.
        virtual_edges: Largest shortest-path distance that gets a virtual edge (arXiv 2110.13100,
            Eq. 4); 1 means none. GHN-2 uses 50.

    Returns:
        The graph; its ``skipped`` names the parameters of operations that no path from the input to
        the output uses.

    Raises:
        ValueError: If no path leads from the input to the output, or an argument is not positive.
    """
    check_sizes(num_classes, image_size)
    derived = derive_graph(config, num_classes, image_size, virtual_edges)
    if derived is not None:
        return derived
    plan = plan_network(config, num_classes, image_size)
    if not plan.connected:
        raise ValueError(
            f"config: no path leads from the input to the output, got {config.genotype}; needs "
            "fewer 'none' operations"
        )
    blocks = _parameters(plan)
    nodes = contract(order_nodes(linearise(_record_network(plan, blocks))))
    reached: set[str] = set()
    for node in nodes.nodes:
        if node.param is not None:
            reached.add(node.param.name)
            if node.param.shift_name is not None:
                reached.add(node.param.shift_name)
    skipped = {param.name: UNREACHED for param in _flat(blocks) if param.name not in reached}
    return graph_from_nodes(nodes, virtual_edges=virtual_edges, skipped=skipped)


def parameter_shapes(
    config: NetworkConfig, num_classes: int = 10, image_size: int = 32
) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters of a network, in the order of ``named_parameters()``.

    Parameters of operations that are not executed are included, and networks without a path from
    the input to the output are allowed.

    Raises:
        ValueError: If ``num_classes`` or ``image_size`` is not positive.
    """
    blocks = _parameters(plan_network(config, num_classes, image_size))
    return {param.name: param.shape for param in _flat(blocks)}


def count_parameters(config: NetworkConfig, num_classes: int = 10, image_size: int = 32) -> int:
    """Number of elements of all parameters of a network; see :func:`parameter_shapes`."""
    return count_for_sizes(config, num_classes, (image_size,))[0]


def count_for_sizes(
    config: NetworkConfig, num_classes: int, image_sizes: Sequence[int]
) -> list[int]:
    """:func:`count_parameters` for several image sizes."""
    for image_size in image_sizes:
        check_sizes(num_classes, image_size)
    sizes = derive_sizes(config, num_classes, image_sizes)
    if sizes is not None:
        return sizes[1:]
    result = []
    for image_size in image_sizes:
        blocks = _parameters(plan_network(config, num_classes, image_size))
        result.append(sum(prod(param.shape) for param in _flat(blocks)))
    return result


def node_cells(graph: ArchGraph, n_cells: int) -> list[int]:
    """Cell that every node belongs to, as published files count.

    The stem belongs to the first cell, the classifier to the last; a node without parameters to the
    cell of the node before it.
    """
    cells = []
    cell = 0
    for name in graph.names:
        if name.startswith("cells."):
            cell = int(name.split(".", 2)[1])
        elif name.startswith("classifier."):
            cell = n_cells - 1
        elif name.startswith(("stem", "pos_enc.")):
            cell = 0
        cells.append(cell)
    return cells


def stored_node_order(graph: ArchGraph, n_cells: int) -> list[int]:
    """Nodes of a graph in the order in which published files list them.

    Files list the nodes cell by cell, but the rows and columns of the distances beside them in the
    order of the graph. The published loader pairs the two lists position by position, so that a
    hypernetwork trained on such files saw the type and shape of node ``stored_node_order(...)[i]``
    in the place of node ``i``.
    """
    cells = node_cells(graph, n_cells)
    return sorted(range(len(cells)), key=cells.__getitem__)


def _parameters(plan: NetworkPlan) -> list[list[list[RawParam]]]:
    """Parameters per part of the network (stem, cells, classifier), in blocks."""
    return [
        [stem_parameters(plan)],
        *(cell_parameters(index, cell, plan.norm) for index, cell in enumerate(plan.cells)),
        [classifier_parameters(plan)],
    ]


def _flat(blocks: list[list[list[RawParam]]]) -> list[RawParam]:
    return [param for part in blocks for block in part for param in block]


def _record_network(plan: NetworkPlan, blocks: list[list[list[RawParam]]]) -> RawOp:
    outputs: list[RawOp | None] = [*_record_stem(plan, blocks[0][0])]
    for cell, params in zip(plan.cells, blocks[1:-1], strict=True):
        outputs.append(_record_cell(cell, params, plan.norm, outputs[-2:]) if cell.alive else None)
    x = outputs[-1]
    if plan.glob_avg:
        x = RawOp("Mean", (x,), keepdim=True)
    x = RawOp("View", (x,))
    weights = blocks[-1][0]
    for layer in range(0, len(weights), 2):
        if layer:
            x = RawOp("Relu", (x,))
        x = record_linear(x, weights[layer], weights[layer + 1])
    return x


def _record_stem(plan: NetworkPlan, params: list[RawParam]) -> tuple[RawOp, RawOp]:
    stem = plan.stem
    if stem.kind == "vit":
        x = RawOp("Add", (RawOp("Convolution", (None, params[0])), params[1]))
        return x, x
    if stem.kind == "simple":
        x = record_chain(None, "cn", params, plan.norm)
        if stem.pool:
            x = RawOp("MaxPool2DWithIndices", (x,), kernel=(3, 3))
        return x, x
    first = 6 if plan.norm else 2
    x = record_chain(None, "cnrcnr", params[:first], plan.norm)
    return x, record_chain(x, "cn", params[first:], plan.norm)


def _record_cell(
    plan: CellPlan, blocks: list[list[RawParam]], norm: bool, inputs: list[RawOp | None]
) -> RawOp:
    states: list[RawOp | None] = []
    # States that are slices with gaps in memory.
    sliced: set[int] = set()
    for state, (part, x) in enumerate(zip(plan.preprocess, inputs, strict=True)):
        if not part.alive or x is None:
            states.append(None)
            continue
        if part.kind == "stride" and plan.size > 1:
            sliced.add(state)
        states.append(_record_preprocess(part, x, blocks[state], norm))
    for step in range(0, len(plan.ops), 2):
        terms = []
        gaps = False
        for position in (step, step + 1):
            op = plan.ops[position]
            x = states[op.source]
            if op.alive and x is not None:
                odd = plan.size % 2 == 1
                read = op.source in sliced
                terms.append(_record_op(op, x, blocks[2 + position], norm, odd, read))
                gaps = _has_gaps(op, plan.size, read)
        if len(terms) == 1 and gaps:
            sliced.add(len(states))
        states.append(RawOp("Add", terms) if len(terms) == 2 else terms[0] if terms else None)
    return _record_concat(plan.concat, states)


def _record_preprocess(plan: PreprocessPlan, x: RawOp, params: list[RawParam], norm: bool) -> RawOp:
    if plan.kind == "conv":
        return record_chain(x, "rcn", params, norm)
    if plan.kind == "factorized":
        return record_factorized(x, params, norm, plan.in_size % 2 == 1)
    return record_slice(x) if plan.kind == "stride" else x


def _record_op(
    op: OpPlan, x: RawOp, params: list[RawParam], norm: bool, odd: bool, sliced: bool
) -> RawOp:
    primitive = op.primitive
    if primitive == "skip_connect":
        return x if op.stride == 1 else record_factorized(x, params, norm, odd)
    if primitive == "max_pool_3x3":
        return RawOp("MaxPool2DWithIndices", (x,), kernel=(3, 3))
    if primitive == "avg_pool_3x3":
        return RawOp("AvgPool2D", (x,), kernel=(3, 3))
    if primitive == "cse":
        return record_cse(x, params, op.stride, sliced)
    if primitive == "msa":
        return record_msa(x, params)
    return record_chain(x, _CHAINS[primitive.rpartition("_")[0]], params, norm)


def _has_gaps(op: OpPlan, size: int, sliced: bool) -> bool:
    """Whether the result of an operation has gaps in memory: a slice, or what it read."""
    if op.primitive == "skip_connect" and op.stride == 1:
        return sliced
    # One pixel has no gaps.
    return op.primitive == "cse" and op.stride == 2 and size > 2


def _record_concat(concat: tuple[int | None, ...], states: list[RawOp | None]) -> RawOp:
    parts = [None if state is None else states[state] for state in concat]
    if None in parts:
        zeros = RawOp("Mul", (next(part for part in parts if part is not None),))
        parts = [zeros if part is None else part for part in parts]
    return RawOp("Cat", parts)
