"""How the files of DeepNets-1M describe a graph: a table of nodes beside the matrix of distances.

A row of the table is the name of a primitive (a node type; ``conv_1x1`` for convolutions of one
pixel and linear layers), the index of a cell, and the name of a parameter without the prefix of its
cell (for operations without parameters the name of the primitive). Nodes outside the cells, and
operations without parameters, have the cell of the node before them.

The matrix is in topological order. In the files written here the rows are, too. The published
generator lists them cell by cell, and in nearly all architectures cells overlap in topological
order, so that row 17 is not node 17. The published loader takes row 17 as node 17 nevertheless: its
graphs have the right nodes and the right edges, but between partly exchanged nodes, and what the
published code predicts for architectures from files, it predicts for such graphs. Reading keeps to
that, and puts the rows in order on request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ghn_fast.deepnets.architectures.genotype import NetworkConfig
from ghn_fast.deepnets.graphs.build import build_graph
from ghn_fast.deepnets.graphs.derive import UNREACHED
from ghn_fast.graph.arch_graph import ArchGraph, notes_of_types
from ghn_fast.graph.node_types import NODE_TYPE_INDEX, NODE_TYPES
from ghn_fast.ops.shortest_distances import shortest_distances

MAX_DISTANCE: Final = 250
"""Largest distance that files hold; nodes further apart count as not connected."""

_WITH_PARAMETERS = frozenset(("sep_conv", "dil_conv", "conv", "bias", "bn", "ln", "pos_enc"))
_POOLING = frozenset(("max_pool", "avg_pool"))
_POOL_SHAPE = (1, 1, 3, 3)
_KERNEL_SUFFIX = re.compile(r"^(conv|sep_conv|dil_conv|max_pool|avg_pool)(_\d+x\d+)+$")


class NodeRow(NamedTuple):
    """A row of the table of nodes."""

    primitive: str
    cell: int
    name: str


def node_rows(graph: ArchGraph, n_cells: int) -> list[NodeRow]:
    """The table of nodes of a graph, in its order.

    Args:
        graph: Graph of a network of DeepNets-1M.
        n_cells: Number of cells of the network; the classifier counts as part of the last.
    """
    rows, cell = [], 0
    for kind, shape, name in zip(graph.op_types.tolist(), graph.shapes, graph.names, strict=True):
        primitive = NODE_TYPES[kind]
        if primitive == "conv" and shape is not None and set(shape[2:]) <= {1}:
            primitive = "conv_1x1"
        if name.startswith("cells."):
            _, number, name = name.split(".", 2)
            cell = int(number)
        elif name.startswith("classifier."):
            cell = n_cells - 1
        elif primitive in _WITH_PARAMETERS or primitive == "conv_1x1":
            cell = 0
        rows.append(NodeRow(primitive, cell, name))
    return rows


def stored_node_order(graph: ArchGraph, n_cells: int) -> list[int]:
    """Nodes of a graph in the order in which published files list them, cell by cell.

    The published loader pairs such a list position by position with distances in the order of the
    graph, so that a hypernetwork trained on such files saw the type and shape of node
    ``stored_node_order(...)[i]`` in the place of node ``i``.
    """
    rows = node_rows(graph, n_cells)
    return sorted(range(len(rows)), key=lambda node: rows[node].cell)


def distances(graph: ArchGraph) -> npt.NDArray[np.uint8]:
    """The matrix of distances (N, N) of a graph, 0 where there is no path of the listed length.

    Raises:
        ValueError: If the graph lists distances above 250, which the files cannot hold.
    """
    if graph.virtual_edges > MAX_DISTANCE:
        raise ValueError(
            f"graph: got virtual edges up to {graph.virtual_edges}, needs at most {MAX_DISTANCE}"
        )
    matrix = np.zeros((graph.num_nodes, graph.num_nodes), dtype=np.uint8)
    source, target, distance = graph.edges.numpy().T
    matrix[source, target] = distance
    return matrix


def graph_from_rows(
    rows: Sequence[NodeRow], matrix: npt.NDArray[np.integer], virtual_edges: int
) -> ArchGraph:
    """The graph of a file, without the shapes of parameters (see :func:`with_shapes`).

    Args:
        rows: Table of nodes; row i is taken as node i.
        matrix: Distances (N, N) up to 250.
        virtual_edges: Largest distance that gets a virtual edge.

    Raises:
        ValueError: If a row has an unknown primitive.
    """
    if virtual_edges > MAX_DISTANCE:
        edges = shortest_distances(_hops(matrix), len(rows), virtual_edges)
    else:
        source, target = np.nonzero((matrix > 0) & (matrix <= virtual_edges))
        triples = np.stack((source, target, matrix[source, target]), axis=1)
        edges = torch.from_numpy(triples.astype(np.int64, copy=False))
    types = [_node_type(row.primitive) for row in rows]
    names = [_full_name(kind, row) for kind, row in zip(types, rows, strict=True)]
    op_types = torch.tensor([NODE_TYPE_INDEX[kind] for kind in types], dtype=torch.int64)
    return ArchGraph(
        op_types,
        edges,
        tuple(_POOL_SHAPE if kind in _POOLING else None for kind in types),
        tuple(names),
        {
            node: name.removesuffix("weight") + "bias"
            for node, (kind, name) in enumerate(zip(types, names, strict=True))
            if kind in ("bn", "ln")
        },
        virtual_edges,
        notes=notes_of_types(op_types),
    )


def check_rows(
    config: NetworkConfig | None, rows: Sequence[NodeRow], matrix: npt.NDArray[np.integer]
) -> None:
    """Compare what a file says of a graph with itself, and with the network that it belongs to.

    A bit that flipped on a disk shows: distances follow from the edges, edges and nodes from the
    configuration. Files of the published generator have no checksums.

    Args:
        config: The network; ``None`` for one that no configuration describes.
        rows: Table of nodes, in the order of the graph or cell by cell.
        matrix: Distances (N, N).

    Raises:
        ValueError: If they do not fit each other.
    """
    hops = _hops(matrix)
    source, target = np.nonzero(matrix)
    listed = np.stack((source, target, matrix[source, target]), axis=1).astype(np.int64)
    expected = shortest_distances(hops, len(rows), int(matrix.max()))
    if not np.array_equal(expected.numpy(), listed):
        raise ValueError("its distances are not those of its edges; the file is damaged")
    if config is None:
        return
    derived = build_graph(config, virtual_edges=1)
    ordered = node_rows(derived, config.n_cells)
    by_cell = sorted(ordered, key=lambda row: row.cell)
    if not torch.equal(derived.edges[:, :2], hops) or not (
        _same_nodes(rows, ordered) or _same_nodes(rows, by_cell)
    ):
        raise ValueError(
            "its graph is not the one that the configuration beside it describes; one of the files "
            "is damaged, or they do not belong together"
        )


def rows_in_graph_order(config: NetworkConfig, rows: Sequence[NodeRow]) -> Sequence[NodeRow]:
    """Put rows that are listed cell by cell in the order of the graph.

    Args:
        config: The network; the graph that it describes gives the order.
        rows: Table of its nodes (:func:`check_rows`), in either order.

    Returns:
        The rows in order; ``rows`` itself if they are not listed cell by cell.
    """
    if any(row.cell > following.cell for row, following in pairwise(rows)):
        return rows
    return node_rows(build_graph(config, virtual_edges=1), config.n_cells)


def with_shapes(graph: ArchGraph, parameters: Mapping[str, tuple[int, ...]]) -> ArchGraph:
    """The same graph for a network with other shapes of the same parameters.

    Args:
        graph: The graph.
        parameters: Shapes of all parameters of the network by their names.

    Raises:
        ValueError: If a node is named after a parameter that is not among them.
    """
    shapes: list[tuple[int, ...] | None] = []
    reached = set(graph.shift_names.values())
    for kind, shape, name in zip(graph.op_types.tolist(), graph.shapes, graph.names, strict=True):
        if NODE_TYPES[kind] in _WITH_PARAMETERS:
            if name not in parameters:
                raise ValueError(f"the network has no parameter {name!r}, which a node stands for")
            reached.add(name)
            shape = parameters[name]
        shapes.append(shape)
    return ArchGraph(
        graph.op_types,
        graph.edges,
        tuple(shapes),
        graph.names,
        graph.shift_names,
        graph.virtual_edges,
        {name: UNREACHED for name in parameters if name not in reached},
        graph.aliases,
        notes=graph.notes,
    )


def in_order(graph: ArchGraph, order: Sequence[int]) -> ArchGraph:
    """The graph with types, shapes and names of node ``order[i]`` in the place of node i.

    What the published loader makes of files that list nodes in another order than edges.
    """
    place = {node: index for index, node in enumerate(order)}
    return ArchGraph(
        graph.op_types[torch.tensor(order)],
        graph.edges,
        tuple(graph.shapes[node] for node in order),
        tuple(graph.names[node] for node in order),
        {place[node]: graph.shift_names[node] for node in order if node in graph.shift_names},
        graph.virtual_edges,
        graph.skipped,
        graph.aliases,
        notes=graph.notes,
    )


def _hops(matrix: npt.NDArray[np.integer]) -> torch.Tensor:
    pairs = np.stack(np.nonzero(matrix == 1), axis=1)
    return torch.from_numpy(pairs.astype(np.int64, copy=False))


def _node_type(primitive: str) -> str:
    kind = "bias" if primitive == "fc-b" else primitive
    with_kernel = _KERNEL_SUFFIX.match(kind)
    if with_kernel:
        kind = with_kernel.group(1)
    if kind not in NODE_TYPE_INDEX:
        raise ValueError(f"unknown primitive {primitive!r}, needs one of {', '.join(NODE_TYPES)}")
    return kind


def _full_name(kind: str, row: NodeRow) -> str:
    """Name of a node in its graph, also from the spellings of older files."""
    if kind not in _WITH_PARAMETERS:
        return kind
    name = row.name
    for part in ("stem", "pos_enc"):
        if part in name:
            return name[name.index(part) :]
    if name.startswith("classifier"):
        return name
    if name.endswith("to_out.0."):
        name += "weight"
    name = re.sub(r"^_ops\.(\d+)\.(?=\d+\.)", r"_ops.\1.op.", name)
    return f"cells.{row.cell}.{name}"


def _same_nodes(rows: Sequence[NodeRow], others: Sequence[NodeRow]) -> bool:
    def node(row: NodeRow) -> tuple[str, int, str]:
        kind = _node_type(row.primitive)
        return kind, row.cell, _full_name(kind, row)

    return [node(row) for row in rows] == [node(row) for row in others]
