"""Architecture graph of a network straight from its configuration, without building the network.

The operations that autograd would record are written down from the specification of the network
(:mod:`ghn_fast.deepnets.architectures.spec`) and go through the same steps as captured ones. The
graph equals ``capture(Network(config), ...)``, node by node. This module has the reference; the
compiled back end (:mod:`ghn_fast.deepnets.graphs.derive`) takes its place where it is there.
"""

from __future__ import annotations

from ghn_fast.capturing.assemble import graph_from_nodes
from ghn_fast.capturing.contract import contract
from ghn_fast.capturing.raw import RawOp, RawParam, linearise, order_nodes
from ghn_fast.deepnets.architectures.genotype import NetworkConfig
from ghn_fast.deepnets.architectures.parameters import (
    cell_parameters,
    classifier_parameters,
    stem_parameters,
)
from ghn_fast.deepnets.architectures.primitives import TABLE, Param
from ghn_fast.deepnets.architectures.spec import (
    CellSpec,
    NetworkSpec,
    OpSpec,
    PreprocessSpec,
    check_sizes,
    network_spec,
)
from ghn_fast.deepnets.graphs.correct import by_rules
from ghn_fast.deepnets.graphs.derive import UNREACHED, derive_graph, record_of
from ghn_fast.deepnets.graphs.operations import (
    record_chain,
    record_cse,
    record_factorized,
    record_linear,
    record_msa,
    record_slice,
)
from ghn_fast.graph.arch_graph import ArchGraph
from ghn_fast.graph.rules import GraphRules


def build_graph(
    config: NetworkConfig,
    *,
    num_classes: int = 10,
    image_size: int = 32,
    virtual_edges: int = 50,
    rules: GraphRules = GraphRules.GHN2,
) -> ArchGraph:
    """Architecture graph of a network.

    Args:
        config: The network.
        num_classes: Number of classes.
        image_size: Height and width of the images.
        virtual_edges: Largest shortest-path distance that gets a virtual edge (arXiv 2110.13100,
            Eq. 4); 1 means none. GHN-2 uses 50.
        rules: The rules that it is made by; a hypernetwork's are ``ghn.config.graph_rules``.

    Returns:
        The graph; its ``skipped`` names the parameters of operations that no path from the input to
        the output uses.

    Raises:
        ValueError: If no path leads from the input to the output, or an argument is not positive.
    """
    check_sizes(num_classes, image_size)
    record = record_of(config, image_size)
    if record is not None:
        graph = derive_graph(record, num_classes, image_size, virtual_edges)
    else:
        graph = reference(config, num_classes, image_size, virtual_edges)
    return by_rules(graph, config, rules)


def reference(
    config: NetworkConfig, num_classes: int, image_size: int, virtual_edges: int
) -> ArchGraph:
    """:func:`build_graph` in Python."""
    spec = network_spec(config, num_classes, image_size)
    if not spec.connected:
        raise ValueError(
            f"config: no path leads from the input to the output, got {config.genotype}; needs "
            "fewer 'none' operations"
        )
    blocks = _parameters(spec)
    nodes = contract(order_nodes(linearise(_record_network(spec, blocks))))
    reached: set[str] = set()
    for node in nodes.nodes:
        if node.param is not None:
            reached.add(node.param.name)
            if node.param.shift_name is not None:
                reached.add(node.param.shift_name)
    names = (param.name for part in blocks for block in part for param in block)
    skipped = {name: UNREACHED for name in names if name not in reached}
    return graph_from_nodes(nodes, virtual_edges=virtual_edges, skipped=skipped)


def _parameters(spec: NetworkSpec) -> list[list[list[RawParam]]]:
    """Parameters per part of the network (stem, cells, classifier), in blocks."""
    parts = [
        [stem_parameters(spec)],
        *(cell_parameters(index, cell, spec.norm) for index, cell in enumerate(spec.cells)),
        [classifier_parameters(spec)],
    ]
    return [[[_raw(param) for param in block] for block in part] for part in parts]


def _raw(param: Param) -> RawParam:
    scale = param.node_type in ("bn", "ln")
    return RawParam(
        param.name,
        param.shape,
        param.node_type,
        is_linear_weight=len(param.shape) == 2,
        shift_name=f"{param.name.removesuffix('weight')}bias" if scale else None,
    )


def _record_network(spec: NetworkSpec, blocks: list[list[list[RawParam]]]) -> RawOp:
    outputs: list[RawOp | None] = [*_record_stem(spec, blocks[0][0])]
    for cell, params in zip(spec.cells, blocks[1:-1], strict=True):
        outputs.append(_record_cell(cell, params, spec.norm, outputs[-2:]) if cell.alive else None)
    x = outputs[-1]
    if spec.glob_avg:
        x = RawOp("Mean", (x,), keepdim=True)
    x = RawOp("View", (x,))
    weights = blocks[-1][0]
    for layer in range(0, len(weights), 2):
        if layer:
            x = RawOp("Relu", (x,))
        x = record_linear(x, weights[layer], weights[layer + 1])
    return x


def _record_stem(spec: NetworkSpec, params: list[RawParam]) -> tuple[RawOp, RawOp]:
    stem = spec.stem
    if stem.kind == "vit":
        x = RawOp("Add", (RawOp("Convolution", (None, params[0])), params[1]))
        return x, x
    if stem.kind == "simple":
        x = record_chain(None, ("conv", "norm"), params, spec.norm)
        if stem.pool:
            x = RawOp("MaxPool2DWithIndices", (x,), kernel=(3, 3))
        return x, x
    first = 6 if spec.norm else 2
    x = record_chain(None, ("conv", "norm", "relu") * 2, params[:first], spec.norm)
    return x, record_chain(x, ("conv", "norm"), params[first:], spec.norm)


def _record_cell(
    spec: CellSpec, blocks: list[list[RawParam]], norm: bool, inputs: list[RawOp | None]
) -> RawOp:
    states: list[RawOp | None] = []
    # States that are slices with gaps in memory.
    sliced: set[int] = set()
    for state, (part, x) in enumerate(zip(spec.preprocess, inputs, strict=True)):
        if not part.alive or x is None:
            states.append(None)
            continue
        if part.kind == "stride" and spec.size > 1:
            sliced.add(state)
        states.append(_record_preprocess(part, x, blocks[state], norm))
    for step in range(0, len(spec.ops), 2):
        terms = []
        gaps = False
        for position in (step, step + 1):
            op = spec.ops[position]
            x = states[op.source]
            if op.alive and x is not None:
                read = op.source in sliced
                terms.append(_record_op(op, x, blocks[2 + position], norm, read))
                gaps = _has_gaps(op, read)
        if len(terms) == 1 and gaps:
            sliced.add(len(states))
        states.append(RawOp("Add", terms) if len(terms) == 2 else terms[0] if terms else None)
    return _record_concat(spec.concat, states)


def _record_preprocess(spec: PreprocessSpec, x: RawOp, params: list[RawParam], norm: bool) -> RawOp:
    if spec.kind == "conv":
        return record_chain(x, ("relu", "conv", "norm"), params, norm)
    if spec.kind == "factorized":
        return record_factorized(x, params, norm, spec.in_size % 2 == 1)
    return record_slice(x) if spec.kind == "stride" else x


def _record_op(op: OpSpec, x: RawOp, params: list[RawParam], norm: bool, sliced: bool) -> RawOp:
    row = TABLE[op.primitive]
    if row.kind == "chain":
        return record_chain(x, [layer.kind for layer in row.layers], params, norm)
    if row.kind == "skip":
        return x if op.stride == 1 else record_factorized(x, params, norm, op.size % 2 == 1)
    if row.kind == "cse":
        return record_cse(x, params, op.stride, sliced)
    if row.kind == "msa":
        return record_msa(x, params)
    kind = {"max_pool": "MaxPool2DWithIndices", "avg_pool": "AvgPool2D"}[row.kind]
    return RawOp(kind, (x,), kernel=(row.kernel, row.kernel))


def _has_gaps(op: OpSpec, sliced: bool) -> bool:
    """Whether the result of an operation has gaps in memory: a slice, or what it read."""
    if op.primitive == "skip_connect" and op.stride == 1:
        return sliced
    # One pixel has no gaps.
    return op.primitive == "cse" and op.stride == 2 and op.size > 2


def _record_concat(concat: tuple[int | None, ...], states: list[RawOp | None]) -> RawOp:
    parts = [None if state is None else states[state] for state in concat]
    if None in parts:
        zeros = RawOp("Mul", (next(part for part in parts if part is not None),))
        parts = [zeros if part is None else part for part in parts]
    return RawOp("Cat", parts)
