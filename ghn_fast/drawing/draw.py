"""Pictures of architecture graphs: nodes coloured by operation, with a legend."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ghn_fast.drawing.placement import Layout, Point, layout_graph
from ghn_fast.graph.arch_graph import ArchGraph
from ghn_fast.graph.node_types import LANGUAGE_NODE_TYPES
from ghn_fast.graph.properties import main_edges
from ghn_fast.utils.optional import installed, missing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE_SUFFIXES = (".svg", ".png", ".pdf")
"""File formats that a graph can be drawn in."""
LABELS = ("none", "op", "name")
"""What can be written in the nodes: nothing, operation and shape, or the parameter's name."""

_POINTS = 72.0
_DIAMETER = 0.17
_MARGIN = 0.15
_FONT = 7.0
_LETTER = 0.0585
_INK = "#1c2026"
_EDGE = "#3c4450"
_VIRTUAL = "#d98324"
_DPI = 160
# Agg refuses pictures of 2^16 pixels in one direction; viewers give up long before.
_MOST_PIXELS = 16000


class Style(NamedTuple):
    """How the nodes of one kind look: colour, marker of matplotlib, diameter relative to others."""

    colour: str
    marker: str = "o"
    scale: float = 1.0
    dark: bool = False


# In the order of the legend: relatives have related colours, and shapes tell them apart in print.
STYLES: dict[str, Style] = {
    "input": Style("#ffffff", "s", 1.25),
    "conv": Style("#2f6fb7", dark=True),
    "conv 1×1": Style("#8ec1ee", "^", 1.1),
    "linear": Style("#1b3f77", "h", 1.1, dark=True),
    "sep_conv": Style("#17a7b8"),
    "dil_conv": Style("#7fd6d2"),
    "bias": Style("#e86bb0", "D", 0.75),
    "bn": Style("#3f9d4f", "s", 0.85, dark=True),
    "ln": Style("#b5d94c", "s", 0.85),
    "pos_enc": Style("#f4d03f", "s", 0.85),
    "max_pool": Style("#f28e2b", "v", 1.15),
    "avg_pool": Style("#fdc68a", "v", 1.15),
    "glob_avg": Style("#b8541c", "v", 1.35, dark=True),
    "msa": Style("#20242b", dark=True),
    "cse": Style("#d62f2f", dark=True),
    "sum": Style("#8e6bc4", "P", 1.1, dark=True),
    "concat": Style("#cdb9ea", "X", 1.1),
}
"""Kinds of nodes: the fifteen types, with 1×1 convolutions and linear layers apart."""


def node_kind(graph: ArchGraph, node: int) -> str:
    """The entry of :data:`STYLES` for a node."""
    kind, shape = LANGUAGE_NODE_TYPES[int(graph.op_types[node])], graph.shapes[node]
    if kind != "conv" or shape is None:
        return kind
    if len(shape) == 2:
        return "linear"
    return "conv 1×1" if math.prod(shape[2:]) == 1 else "conv"


def check_picture(path: str | os.PathLike[str]) -> Path:
    """Check that a picture can be written, before any work is done.

    Raises:
        ValueError: If the suffix is none of :data:`PICTURE_SUFFIXES`, or the folder of ``path``
            cannot be made or written to.
        ModuleNotFoundError: If matplotlib is not installed; the message says how to install it.
    """
    path = Path(path)
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise ValueError(f"path: got {path}, needs a suffix of {', '.join(PICTURE_SUFFIXES)}")
    parent = path.absolute().parent
    existing = next(folder for folder in (parent, *parent.parents) if folder.exists())
    if path.is_dir():
        raise ValueError(f"path: got {path}, which is a folder; needs a file")
    if not existing.is_dir():
        raise ValueError(f"path: got {path}, but {existing} is a file; needs a folder")
    if not os.access(existing, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise ValueError(f"path: got {path}, but it cannot be written to")
    if not installed("matplotlib"):
        raise missing("matplotlib", "drawing", "pictures")
    return path


def draw_graph(
    graph: ArchGraph,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    labels: str = "none",
    virtual_edges: int = 1,
    engine: str = "auto",
    columns: int | None = None,
) -> Layout:
    """Draw an architecture graph as in arXiv 2110.13100, figure 1: coloured by operation.

    The picture is as large as the graph needs. A deep graph is folded into columns that are read
    from left to right. Text of an SVG stays text; LaTeX is not run.

    Args:
        graph: The graph.
        path: The picture: .svg, .png or .pdf. Missing folders are made.
        title: Written above the graph.
        labels: One of :data:`LABELS`.
        virtual_edges: Virtual edges up to this distance are drawn, thin and light; 1 draws none.
        engine: Layout engine, see :func:`ghn_fast.drawing.placement.layout_graph`.
        columns: Number of columns; chosen for a readable aspect if ``None``.

    Returns:
        The layout that was drawn.

    Raises:
        ValueError: If an argument is not valid or the picture cannot be written.
        ModuleNotFoundError: If matplotlib is not installed.
    """
    path = check_picture(path)
    if labels not in LABELS:
        raise ValueError(f"labels: got {labels!r}, needs one of {', '.join(LABELS)}")
    if virtual_edges < 1:
        raise ValueError(f"virtual_edges: got {virtual_edges}, needs at least 1 (1 means none)")
    import matplotlib

    kinds = [node_kind(graph, node) for node in range(graph.num_nodes)]
    texts = _texts(graph, kinds, labels)
    sizes = [_size(kind, text) for kind, text in zip(kinds, texts, strict=True)]
    layout = layout_graph(main_edges(graph), sizes, engine=engine, columns=columns)
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "ghn_fast",
        "pdf.fonttype": 42,
        "text.usetex": False,
        "font.family": ["sans-serif"],
        "font.sans-serif": ["DejaVu Sans"],
    }
    with matplotlib.rc_context(settings):
        figure = _figure(graph, layout, kinds, texts, sizes, title, virtual_edges)
        # A picture of the same graph is the same file.
        stamp = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(
            path,
            dpi=min(_DPI, _MOST_PIXELS / max(figure.get_size_inches())),
            metadata=stamp.get(path.suffix.lower()),
        )
    return layout


def _texts(graph: ArchGraph, kinds: Sequence[str], labels: str) -> list[str]:
    if labels == "none":
        return [""] * len(kinds)
    if labels == "name":
        return list(graph.names)
    texts = []
    for kind, shape in zip(kinds, graph.shapes, strict=True):
        if shape is None:
            texts.append(kind)
        elif kind in ("max_pool", "avg_pool"):
            texts.append(f"{kind} {shape[2]}×{shape[3]}")
        else:
            texts.append(f"{kind.removesuffix(' 1×1')} {'×'.join(map(str, shape))}")
    return texts


def _size(kind: str, text: str) -> Point:
    if text:
        return len(text) * _LETTER + 0.12, 0.17
    diameter = _DIAMETER * STYLES[kind].scale
    return diameter, diameter


def _figure(
    graph: ArchGraph,
    layout: Layout,
    kinds: Sequence[str],
    texts: Sequence[str],
    sizes: Sequence[Point],
    title: str | None,
    virtual_edges: int,
) -> Figure:
    """A figure in which one unit of the only axes is one inch."""
    # Figure without pyplot: no global state, no display.
    from matplotlib.figure import Figure

    shown = [kind for kind in STYLES if kind in kinds]
    entry = 0.95
    across = max(min(len(shown), 4) * entry, layout.width)
    per_row = max(1, min(len(shown), int(across / entry)))
    # Rows of equal length rather than a last one with a single entry.
    rows = math.ceil(len(shown) / per_row)
    per_row = math.ceil(len(shown) / max(rows, 1)) if shown else 1
    title_width = 0.0 if title is None else 0.085 * max(map(len, title.splitlines() or [""]))
    width = max(across, per_row * entry, title_width) + 2 * _MARGIN
    title_height = 0.0 if title is None else 0.19 * len(title.splitlines()) + 0.1
    legend_height = 0.22 * rows + 0.1
    height = layout.height + title_height + legend_height + 2 * _MARGIN

    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    dx, dy = (width - layout.width) / 2, _MARGIN + title_height
    at = [(x + dx, y + dy) for x, y in layout.positions]
    if virtual_edges > 1:
        _draw_virtual_edges(axes, graph, at, virtual_edges)
    _draw_edges(axes, [[(x + dx, y + dy) for x, y in r] for r in layout.routes.values()])
    if any(texts):
        _draw_boxes(axes, at, kinds, texts, sizes)
    else:
        for kind in shown:
            places = [place for place, other in zip(at, kinds, strict=True) if other == kind]
            _draw_markers(axes, places, kind)
    if title is not None:
        axes.text(
            width / 2,
            _MARGIN,
            title,
            ha="center",
            va="top",
            fontsize=10,
            color=_INK,
            parse_math=False,
        )
    left = (width - per_row * entry) / 2
    for index, kind in enumerate(shown):
        x = left + (index % per_row) * entry + 0.12
        y = height - _MARGIN - legend_height + 0.22 + 0.22 * (index // per_row)
        _draw_markers(axes, [(x, y)], kind, 0.85)
        axes.text(x + 0.15, y, kind, ha="left", va="center_baseline", fontsize=7.5, color=_INK)
    return figure


def _draw_markers(axes: Any, places: Sequence[Point], kind: str, scale: float = 1.0) -> None:
    style = STYLES[kind]
    axes.scatter(
        [x for x, _ in places],
        [y for _, y in places],
        s=(_DIAMETER * style.scale * scale * _POINTS) ** 2,
        marker=style.marker,
        facecolor=style.colour,
        edgecolor=_INK,
        linewidth=1.1 if kind == "input" else 0.5,
        zorder=3,
    )


def _draw_boxes(
    axes: Any,
    places: Sequence[Point],
    kinds: Sequence[str],
    texts: Sequence[str],
    sizes: Sequence[Point],
) -> None:
    from matplotlib.patches import FancyBboxPatch

    for (x, y), kind, text, (width, height) in zip(places, kinds, texts, sizes, strict=True):
        style = STYLES[kind]
        box = FancyBboxPatch(
            (x - width / 2 + 0.03, y - height / 2 + 0.03),
            width - 0.06,
            height - 0.06,
            boxstyle="round,pad=0.03",
            facecolor=style.colour,
            edgecolor=_INK,
            linewidth=0.5,
            zorder=3,
        )
        axes.add_patch(box)
        axes.text(
            x,
            y,
            text,
            ha="center",
            va="center_baseline",
            fontsize=_FONT,
            color="white" if style.dark else _INK,
            parse_math=False,
            zorder=4,
        )


def _draw_edges(axes: Any, routes: Sequence[Sequence[Point]]) -> None:
    from matplotlib.collections import PathCollection, PolyCollection
    from matplotlib.path import Path as Curve

    curves, heads = [], []
    for points in routes:
        curves.append(Curve(points, [Curve.MOVETO] + [Curve.CURVE4] * (len(points) - 1)))
        heads.append(_arrowhead(points))
    lines = PathCollection(curves, facecolor="none", edgecolor=_EDGE, linewidth=0.8, zorder=2)
    tips = PolyCollection(heads, facecolor=_EDGE, edgecolor="none", zorder=2)
    for collection in (lines, tips):
        axes.add_collection(collection, autolim=False)


def _arrowhead(points: Sequence[Point], length: float = 0.065) -> list[Point]:
    """A triangle whose tip is the end of a curve."""
    x, y = points[-1]
    # Control points may coincide with the end; the direction is that of the last one that differs.
    before = next((p for p in reversed(points) if math.dist(p, (x, y)) > 1e-6), (x, y - 1))
    reach = math.dist(before, (x, y))
    ux, uy = (x - before[0]) / reach, (y - before[1]) / reach
    back = (x - length * ux, y - length * uy)
    half = 0.42 * length
    return [(x, y), (back[0] - half * uy, back[1] + half * ux),
            (back[0] + half * uy, back[1] - half * ux)]  # fmt: skip


def _draw_virtual_edges(
    axes: Any, graph: ArchGraph, places: Sequence[Point], farthest: int
) -> None:
    """Arcs that bend away from the line between their ends, fainter with distance."""
    from matplotlib.collections import PathCollection
    from matplotlib.path import Path as Curve

    if graph.virtual_edges < farthest:
        graph = graph.with_virtual_edges(farthest)
    rows = graph.edges[(graph.edges[:, 2] > 1) & (graph.edges[:, 2] <= farthest)]
    curves, colours = [], []
    for source, target, distance in rows.tolist():
        (x0, y0), (x1, y1) = places[source], places[target]
        bend = (x0 + x1) / 2 + 0.18 * (y1 - y0), (y0 + y1) / 2 - 0.18 * (x1 - x0)
        curves.append(Curve([(x0, y0), bend, (x1, y1)], [Curve.MOVETO, Curve.CURVE3, Curve.CURVE3]))
        colours.append((_VIRTUAL, max(0.06, 0.8 / distance)))
    axes.add_collection(
        PathCollection(curves, facecolor="none", edgecolor=colours, linewidth=0.4, zorder=1),
        autolim=False,
    )
