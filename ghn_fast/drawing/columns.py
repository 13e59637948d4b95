"""Folding the ranks of a drawing into columns that are read from left to right.

Edges from one column to another leave the last rank downwards (other ranks to the right), rise in
the gap between the columns, and enter the first rank from above (other ranks from the left). All
such edges of one node run as one line and branch off.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import NamedTuple

Point = tuple[float, float]
Edge = tuple[int, int]

# A column is not made shorter than this, and a picture about this much wider than high.
_SHORTEST_COLUMN = 4.0
_ASPECT = 1.35
_COLUMN_GAP = 0.3
# Distance between lines that run side by side, and from nodes.
_LANE = 0.07
_CLEAR = 0.14
_ROUND = 0.07
# Costs of a break: for columns of unequal length, for each node that edges come from across it, and
# for each edge.
_UNEQUAL = 14.0
_SOURCE = 1.0
_CROSSING = 0.15


class Drawing(NamedTuple):
    """A folded drawing.

    Attributes:
        positions: Centre of each node.
        routes: Cubic Bézier curve of each edge.
        extent: Width and height.
        breaks: First rank of each column after the first one.
    """

    positions: list[Point]
    routes: dict[Edge, list[Point]]
    extent: Point
    breaks: list[int]


def fold(
    edges: Sequence[Edge],
    positions: Sequence[Point],
    routes: Mapping[Edge, list[Point]],
    sizes: Sequence[Point],
    columns: int | None = None,
    *,
    breaks: Sequence[int] | None = None,
) -> Drawing:
    """Fold a drawing, and move it to the origin.

    Args:
        edges: Pairs (from, to).
        positions: Centre of each node; nodes of one rank have the same y.
        routes: Cubic Bézier curve of each edge that stays within a column, at least.
        sizes: Width and height of each node.
        columns: Number of columns, or ``None`` to choose it for a readable aspect.
        breaks: First rank of each column after the first one, if that has been decided.
    """
    levels = sorted({round(y, 3) for _, y in positions})
    rank_of = {level: rank for rank, level in enumerate(levels)}
    ranks = [rank_of[round(y, 3)] for _, y in positions]
    if breaks is not None:
        return _folded(edges, positions, routes, sizes, ranks, breaks)
    costs = _break_costs(edges, ranks, len(levels))

    def drawing(number: int) -> Drawing:
        return _folded(edges, positions, routes, sizes, ranks, _breaks(costs, number))

    if columns is not None:
        return drawing(min(columns, len(levels)))
    # More columns make the drawing wider and lower: the fewest that are wide enough, or one less.
    fewest, most = 1, max(1, int((levels[-1] - levels[0]) / _SHORTEST_COLUMN))
    while fewest < most:
        middle = (fewest + most) // 2
        width, height = drawing(middle).extent
        if width < _ASPECT * height:
            fewest = middle + 1
        else:
            most = middle
    candidates = [drawing(number) for number in (fewest - 1, fewest) if number > 0]
    return min(candidates, key=lambda candidate: _misfit(candidate.extent))


def _misfit(extent: Point) -> float:
    aspect = extent[0] / extent[1]
    return max(aspect / _ASPECT, _ASPECT / aspect)


def _break_costs(edges: Sequence[Edge], ranks: Sequence[int], count: int) -> list[float]:
    """What it costs to begin another column after each rank."""
    farthest: dict[int, int] = {}
    costs = [-_SOURCE - _CROSSING] * count
    for source, target in edges:
        farthest[source] = max(farthest.get(source, 0), ranks[target])
        for rank in range(ranks[source], ranks[target]):
            costs[rank] += _CROSSING
    for source, last in farthest.items():
        for rank in range(ranks[source], last):
            costs[rank] += _SOURCE
    return costs


def _breaks(costs: Sequence[float], columns: int) -> list[int]:
    """First rank of each column after the first one: the cheapest, by dynamic programming."""
    ranks = len(costs)
    ideal = ranks / columns
    # Least cost of the columns so far, by the rank that begins the next one.
    best: dict[int, float] = {0: 0.0}
    steps: list[dict[int, int]] = []
    for column in range(columns):
        following: dict[int, float] = {}
        chosen: dict[int, int] = {}
        for start, cost in best.items():
            if abs(start - column * ideal) > ideal:
                continue
            ends: Sequence[int] = [ranks]
            if column < columns - 1:
                # Each column that follows needs a rank, too.
                latest = ranks - (columns - 1 - column)
                ends = range(start + 1, min(start + max(int(1.5 * ideal), 1), latest) + 1)
            for end in ends:
                unequal = (end - start) / ideal - 1
                total = cost + _UNEQUAL * unequal * unequal
                total += costs[end - 1] if end < ranks else 0.0
                if total < following.get(end, math.inf):
                    following[end], chosen[end] = total, start
        best = following
        steps.append(chosen)
    breaks, end = [], ranks
    for chosen in reversed(steps):
        end = chosen[end]
        breaks.append(end)
    return breaks[-2::-1]


class _Columns:
    """The columns of a drawing, and the lines that run between them.

    A line is named by its source node. ``lanes[c]`` lists the lines in the gap to the right of
    column c; ``over[c]`` and ``under[c]`` those above and below column c; ``across`` those that run
    above all columns, to one that is not the next.
    """

    def __init__(self, edges: Sequence[Edge], ranks: Sequence[int], breaks: Sequence[int]) -> None:
        firsts = [0, *breaks]
        lasts = [*(first - 1 for first in breaks), max(ranks)]
        self.count = len(firsts)
        self.of = [bisect_right(breaks, rank) for rank in ranks]
        self.is_first = [rank == firsts[c] for rank, c in zip(ranks, self.of, strict=True)]
        self.is_last = [rank == lasts[c] for rank, c in zip(ranks, self.of, strict=True)]
        self.links = [(s, t) for s, t in edges if self.of[s] != self.of[t]]
        nearest: list[dict[int, int]] = [{} for _ in firsts]
        over: list[set[int]] = [set() for _ in firsts]
        under: list[set[int]] = [set() for _ in firsts]
        across: set[int] = set()
        for source, target in self.links:
            start, end = self.of[source], self.of[target]
            depth = -1 if self.is_first[target] else ranks[target]
            nearest[end - 1][source] = min(nearest[end - 1].get(source, depth), depth)
            if start != end - 1:
                nearest[start][source] = -2
                across.add(source)
            if self.is_first[target]:
                over[end].add(source)
            if self.is_last[source]:
                under[start].add(source)
        # The line with the highest end is the leftmost, or its end would cross the others.
        self.lanes = [sorted(lines, key=lambda s: (lines[s], s)) for lines in nearest]
        self.over = [sorted(lines) for lines in over]
        self.under = [sorted(lines) for lines in under]
        self.across = sorted(across)


class _Frame(NamedTuple):
    """Where nodes, columns and the gaps between ranks lie in a folded drawing."""

    placed: list[Point]
    sizes: Sequence[Point]
    ranks: Sequence[int]
    headroom: float
    bottoms: list[float]
    rights: list[float]
    # Of each node, y between its rank and the one above or below.
    above: list[float]
    below: list[float]


def _folded(
    edges: Sequence[Edge],
    positions: Sequence[Point],
    routes: Mapping[Edge, list[Point]],
    sizes: Sequence[Point],
    ranks: Sequence[int],
    breaks: Sequence[int],
) -> Drawing:
    columns = _Columns(edges, ranks, breaks)
    inside = [edge for edge in edges if columns.of[edge[0]] == columns.of[edge[1]]]
    # Corners of what stands in each column: nodes and the edges inside.
    corners: list[list[Point]] = [[] for _ in range(columns.count)]
    tops, ends = [math.inf] * (max(ranks) + 2), [-math.inf] * (max(ranks) + 2)
    for node, ((x, y), (width, height)) in enumerate(zip(positions, sizes, strict=True)):
        low, high = y - height / 2, y + height / 2
        corners[columns.of[node]] += [(x - width / 2, low), (x + width / 2, high)]
        tops[ranks[node]] = min(tops[ranks[node]], low)
        ends[ranks[node]] = max(ends[ranks[node]], high)
    for edge in inside:
        corners[columns.of[edge[0]]] += routes[edge]
    headroom = max(_room(lines) for lines in columns.over) + _LANE * len(columns.across)
    offsets: list[Point] = []
    bottoms, rights = [], []
    left, bottom = 0.0, 0.0
    for column, points in enumerate(corners):
        low, high = min(x for x, _ in points), max(x for x, _ in points)
        top, end = min(y for _, y in points), max(y for _, y in points)
        offsets.append((left - low, headroom - top))
        bottoms.append(headroom + end - top)
        rights.append(left + high - low)
        bottom = max(bottom, bottoms[-1] + _room(columns.under[column]))
        left = rights[-1] + _COLUMN_GAP + _LANE * max(len(columns.lanes[column]) - 1, 0)
    moves = [offsets[column] for column in columns.of]
    placed = [(x + dx, y + dy) for (x, y), (dx, dy) in zip(positions, moves, strict=True)]
    moved = {}
    for edge in inside:
        dx, dy = moves[edge[0]]
        moved[edge] = [(x + dx, y + dy) for x, y in routes[edge]]
    gaps = [(end + top) / 2 for end, top in zip(ends, tops[1:], strict=False)]
    frame = _Frame(
        placed,
        sizes,
        ranks,
        headroom,
        bottoms,
        rights,
        [gaps[rank - 1] + dy for rank, (_, dy) in zip(ranks, moves, strict=True)],
        [gaps[rank] + dy for rank, (_, dy) in zip(ranks, moves, strict=True)],
    )
    for edge in columns.links:
        moved[edge] = _rounded(_link(edge, columns, frame))
    ordered = {edge: moved[edge] for edge in edges}
    return Drawing(placed, ordered, (rights[-1], bottom), list(breaks))


def _room(lines: Sequence[int]) -> float:
    """Room that lines need above or below a column."""
    return _CLEAR + _LANE * (len(lines) - 1) if lines else 0.0


def _link(edge: Edge, columns: _Columns, frame: _Frame) -> list[Point]:
    """Corners of the line from one column to another."""
    source, target = edge
    start, end = columns.of[source], columns.of[target]
    (x0, y0), (x1, y1) = frame.placed[source], frame.placed[target]
    (width0, height0), (width1, height1) = frame.sizes[source], frame.sizes[target]

    def lane(column: int) -> float:
        shift = _LANE * columns.lanes[column].index(source)
        return frame.rights[column] + _COLUMN_GAP / 2 + shift

    if columns.is_last[source]:
        y = frame.bottoms[start] + _CLEAR + _LANE * columns.under[start].index(source)
        points = [(x0, y0 + height0 / 2), (x0, y), (lane(start), y)]
    elif _has_neighbour(source, columns, frame, to_the_right=True):
        y = frame.below[source]
        points = [(x0, y0 + height0 / 2), (x0, y), (lane(start), y)]
    else:
        points = [(x0 + width0 / 2, y0), (lane(start), y0)]
    if start != end - 1:
        y = _LANE * columns.across.index(source)
        points += [(lane(start), y), (lane(end - 1), y)]
    if columns.is_first[target]:
        y = frame.headroom - _CLEAR - _LANE * columns.over[end].index(source)
        points += [(lane(end - 1), y), (x1, y), (x1, y1 - height1 / 2)]
    elif _has_neighbour(target, columns, frame, to_the_right=False):
        y = frame.above[target]
        points += [(lane(end - 1), y), (x1, y), (x1, y1 - height1 / 2)]
    else:
        points += [(lane(end - 1), y1), (x1 - width1 / 2, y1)]
    return points


def _has_neighbour(node: int, columns: _Columns, frame: _Frame, *, to_the_right: bool) -> bool:
    """Whether a line to the left or right would run into another node of the rank."""
    x = frame.placed[node][0]
    return any(
        rank == frame.ranks[node] and (frame.placed[other][0] > x) == to_the_right
        for other, rank in enumerate(frame.ranks)
        if other != node
    )


def _rounded(corners: Sequence[Point]) -> list[Point]:
    """A cubic Bézier curve along straight lines, with rounded corners."""
    curve = [corners[0]]

    def line_to(end: Point) -> None:
        (x, y), (ex, ey) = curve[-1], end
        curve.extend(
            [(x + (ex - x) / 3, y + (ey - y) / 3), (ex - (ex - x) / 3, ey - (ey - y) / 3), end]
        )

    for before, corner, after in zip(corners, corners[1:], corners[2:], strict=False):
        enter, leave = (_towards(corner, other) for other in (before, after))
        line_to(enter)
        curve.extend([corner, corner, leave])
    line_to(corners[-1])
    return curve


def _towards(corner: Point, other: Point) -> Point:
    """The point on the way from a corner to another one where its rounding ends."""
    distance = math.dist(corner, other)
    share = min(_ROUND / distance, 0.5) if distance else 0.0
    return corner[0] + share * (other[0] - corner[0]), corner[1] + share * (other[1] - corner[1])
