"""Where to draw the nodes and edges of an architecture graph.

Nodes stand in ranks from top to bottom. Graphviz's ``dot`` places them where it is installed; else
they are placed here, after Sugiyama, Tagawa and Toda (1981): ranks by longest path, an order in
each rank by barycentres, and positions by weighted least squares. A deep graph would become a long
thin ribbon, so its ranks are folded into columns that are read from left to right.

Lengths are inches, x to the right and y downwards.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from ghn_fast.drawing.columns import Edge, Point, fold
from ghn_fast.drawing.layered import layered_layout

ENGINES = ("auto", "dot", "layered")
"""Names of the layout engines; ``auto`` is ``dot`` where it is installed, up to 500 edges."""

RANK_GAP = 0.12
NODE_GAP = 0.12
_DOT_SECONDS = 30
# DenseNet-121 (841 edges) takes dot more than a minute with its own limits and seconds with these,
# but it draws a line for every edge, side by side, 50 inches wide; the layered layout draws one for
# all long edges of a node. Up to here "auto" is dot.
_MANY_EDGES = 500
_FEWER_ITERATIONS = "nslimit=1 nslimit1=1 mclimit=0.3"


@dataclass
class Layout:
    """Positions of nodes and edges.

    Attributes:
        positions: Centre of each node.
        routes: Each edge to its cubic Bézier curve: a start, then triples of two control points
            and a point on the curve.
        width: Extent of the drawing to the right of 0.
        height: Extent of the drawing below 0.
        engine: Which engine placed the nodes.
        columns: Number of columns that the ranks were folded into.
    """

    positions: list[Point]
    routes: dict[Edge, list[Point]]
    width: float
    height: float
    engine: str
    columns: int = 1


def layout_graph(
    edges: Sequence[Edge],
    sizes: Sequence[Point],
    *,
    engine: str = "auto",
    columns: int | None = None,
) -> Layout:
    """Place the nodes of a directed acyclic graph, and route its edges.

    Args:
        edges: Pairs (from, to) with from < to.
        sizes: Width and height of each node.
        engine: One of :data:`ENGINES`.
        columns: Number of columns to fold the ranks into; chosen for a readable aspect if ``None``.

    Raises:
        ValueError: If an argument is not valid, or ``dot`` was asked for and cannot be run.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine: got {engine!r}, needs one of {', '.join(ENGINES)}")
    if columns is not None and columns < 1:
        raise ValueError(f"columns: got {columns}, needs at least 1")
    if not sizes:
        return Layout([], {}, 0.0, 0.0, "layered")
    placed = None
    sparse = len(edges) <= _MANY_EDGES
    if engine == "dot" or (engine == "auto" and sparse and shutil.which("dot") is not None):
        try:
            placed = _dot_layout(edges, sizes)
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            if engine == "dot":
                raise ValueError(
                    f"engine: dot was asked for, but it cannot be run: {_reason(error)}; install "
                    "graphviz, or take engine='layered'"
                ) from error
    if placed is not None:
        name, drawing = "dot", fold(edges, *placed, sizes, columns)
    else:
        name = "layered"
        drawing = fold(edges, *layered_layout(edges, sizes, NODE_GAP, RANK_GAP), sizes, columns)
        if drawing.breaks:
            # Once more for each column alone: edges to other columns took room inside.
            placed = layered_layout(edges, sizes, NODE_GAP, RANK_GAP, drawing.breaks)
            drawing = fold(edges, *placed, sizes, breaks=drawing.breaks)
    width, height = drawing.extent
    count = len(drawing.breaks) + 1
    return Layout(drawing.positions, drawing.routes, width, height, name, count)


def _reason(error: Exception) -> str:
    said = getattr(error, "stderr", None)
    return str(said).strip() if said else str(error)


def _dot_layout(
    edges: Sequence[Edge], sizes: Sequence[Point]
) -> tuple[list[Point], dict[Edge, list[Point]]]:
    limits = _FEWER_ITERATIONS if len(edges) > _MANY_EDGES else ""
    lines = [
        "digraph {",
        f"graph [nodesep={NODE_GAP} ranksep={RANK_GAP} {limits}]",
        'node [shape=box fixedsize=true label=""] edge [arrowhead=none]',
    ]
    lines += [f"{n} [width={w:.4f} height={h:.4f}]" for n, (w, h) in enumerate(sizes)]
    lines += [f"{source} -> {target}" for source, target in edges]
    result = subprocess.run(
        ["dot", "-Tplain"],
        input="\n".join([*lines, "}"]),
        capture_output=True,
        text=True,
        timeout=_DOT_SECONDS,
        check=True,
    )
    return _read_plain(result.stdout, len(sizes))


def _read_plain(text: str, nodes: int) -> tuple[list[Point], dict[Edge, list[Point]]]:
    """Read dot's plain format; raises ValueError if it is not complete."""
    positions: list[Point | None] = [None] * nodes
    routes: dict[Edge, list[Point]] = {}
    # dot breaks lines that are too long with a backslash.
    for line in text.replace("\\\n", "").splitlines():
        words = line.split()
        if words and words[0] == "node":
            positions[int(words[1])] = (float(words[2]), -float(words[3]))
        elif words and words[0] == "edge":
            numbers = [float(word) for word in words[4 : 4 + 2 * int(words[3])]]
            points = [(x, -y) for x, y in zip(numbers[::2], numbers[1::2], strict=True)]
            routes[int(words[1]), int(words[2])] = points
    found = [position for position in positions if position is not None]
    if len(found) < nodes:
        raise ValueError(f"dot placed {len(found)} of {nodes} nodes")
    return found, routes
