"""A layered drawing of a directed acyclic graph, without graphviz."""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Sequence
from itertools import pairwise

from ghn_fast.graph.properties import longest_path_ranks

Point = tuple[float, float]

_ORDER_SWEEPS = 12
_POSITION_SWEEPS = 24
# How strongly a link pulls its ends to one x, by the number of ends that only mark a long edge:
# long edges are to run straight. The ratios are those of Gansner et al. (1993).
_PULL = (1.0, 2.0, 8.0)


class _Layers:
    """Nodes by rank, with a marker in every rank that a long edge passes.

    The long edges that leave one node share their markers: they run as one line and branch off.

    Args:
        edges: Pairs (from, to).
        nodes: Number of nodes; markers are numbered from there on.
        breaks: Ranks that begin another column.
    """

    def __init__(self, edges: Sequence[tuple[int, int]], nodes: int, breaks: Sequence[int]) -> None:
        self.nodes = nodes
        self.rank = _ranks(edges, nodes)
        column = [bisect_right(breaks, rank) for rank in self.rank]
        edges = [(source, target) for source, target in edges if column[source] == column[target]]
        self.paths: dict[tuple[int, int], list[int]] = {}
        buses: dict[int, list[int]] = {}
        for source, target in edges:
            bus = buses.setdefault(source, [])
            span = self.rank[target] - self.rank[source]
            while len(bus) < span - 1:
                self.rank.append(self.rank[source] + len(bus) + 1)
                bus.append(len(self.rank) - 1)
            self.paths[source, target] = [source, *bus[: span - 1], target]
        self.above: list[list[int]] = [[] for _ in self.rank]
        self.below: list[list[int]] = [[] for _ in self.rank]
        links = {link for path in self.paths.values() for link in pairwise(path)}
        for upper, lower in sorted(links):
            self.below[upper].append(lower)
            self.above[lower].append(upper)
        self.layers: list[list[int]] = [[] for _ in range(max(self.rank, default=-1) + 1)]
        for item, rank in enumerate(self.rank):
            self.layers[rank].append(item)

    def is_marker(self, item: int) -> bool:
        return item >= self.nodes


def layered_layout(
    edges: Sequence[tuple[int, int]],
    sizes: Sequence[Point],
    node_gap: float,
    rank_gap: float,
    breaks: Sequence[int] = (),
) -> tuple[list[Point], dict[tuple[int, int], list[Point]]]:
    """Place nodes in ranks, and route edges.

    Args:
        edges: Pairs (from, to) with from < to.
        sizes: Width and height of each node.
        node_gap: Least gap between the nodes of a rank.
        rank_gap: Gap between ranks.
        breaks: Ranks that will begin another column. Edges from one column to another are left out,
            and do not influence where the nodes stand in their ranks.

    Returns:
        The centre of each node, y downwards, and the cubic Bézier curve of each edge.
    """
    layers = _Layers(edges, len(sizes), breaks)
    _order(layers)
    widths = [width for width, _ in sizes]
    if widths and max(widths) < 2 * min(widths):
        # Symbols of nearly one size get places of one size, so that chains run straight.
        widths = [max(widths)] * len(widths)
    widths += [0.0] * (len(layers.rank) - len(sizes))
    x = _positions(layers, widths, node_gap)
    y, top = [], 0.0
    for layer in layers.layers:
        height = max((sizes[item][1] for item in layer if item < len(sizes)), default=0.0)
        y.append(top + height / 2)
        top += height + rank_gap
    routes = {}
    for (source, target), path in layers.paths.items():
        points = [(x[item], y[layers.rank[item]]) for item in path]
        points[0] = (points[0][0], points[0][1] + sizes[source][1] / 2)
        points[-1] = (points[-1][0], points[-1][1] - sizes[target][1] / 2)
        routes[source, target] = _curve(points)
    return [(x[node], y[layers.rank[node]]) for node in range(len(sizes))], routes


def _ranks(edges: Sequence[tuple[int, int]], nodes: int) -> list[int]:
    """Ranks by longest path; a node without predecessors stands right above its successors."""
    ranks = longest_path_ranks(nodes, list(edges))
    targets = {target for _, target in edges}
    nearest: dict[int, int] = {}
    for source, target in edges:
        nearest[source] = min(nearest.get(source, ranks[target]), ranks[target])
    for node, rank in nearest.items():
        if node not in targets and node != 0:
            ranks[node] = rank - 1
    return ranks


def _order(layers: _Layers) -> None:
    """Reorder each layer by barycentres, up and down; the order with fewest crossings stays."""
    best = [list(layer) for layer in layers.layers]
    least = _crossings(layers)
    for sweep in range(_ORDER_SWEEPS):
        downwards = sweep % 2 == 0
        links = layers.above if downwards else layers.below
        sequence = layers.layers if downwards else layers.layers[::-1]
        place: dict[int, float] = {}
        for layer in sequence:
            own = {item: float(index) for index, item in enumerate(layer)}
            mean = {
                item: sum(place[other] for other in links[item]) / len(links[item])
                if links[item]
                else own[item]
                for item in layer
            }
            # Sorting is stable: what ties keeps its order.
            layer.sort(key=mean.__getitem__)
            place.update({item: float(index) for index, item in enumerate(layer)})
        crossings = _crossings(layers)
        if crossings < least:
            best, least = [list(layer) for layer in layers.layers], crossings
        if least == 0:
            break
    layers.layers = best


def _crossings(layers: _Layers) -> int:
    place = {item: index for layer in layers.layers for index, item in enumerate(layer)}
    total = 0
    for layer in layers.layers:
        ends = [end for item in layer for end in sorted(place[o] for o in layers.below[item])]
        seen: list[int] = []
        for end in ends:
            total += len(seen) - bisect_right(seen, end)
            insort(seen, end)
    return total


def _positions(layers: _Layers, widths: Sequence[float], gap: float) -> list[float]:
    x = [0.0] * len(layers.rank)
    for layer in layers.layers:
        at = 0.0
        for index, item in enumerate(layer):
            if index:
                at += (widths[layer[index - 1]] + widths[item]) / 2 + gap
            x[item] = at
    best, least = list(x), math.inf
    for sweep in range(_POSITION_SWEEPS):
        # First the layers follow one neighbour, down and up; then they settle between the two.
        one_sided = sweep < _POSITION_SWEEPS // 2
        downwards = sweep % 2 == 0
        for layer in layers.layers if downwards else layers.layers[::-1]:
            wanted, weights = [], []
            for item in layer:
                above, below = layers.above[item], layers.below[item]
                others = [*above, *below]
                if one_sided:
                    others = (above if downwards else below) or others
                pulls = [
                    (x[other], _PULL[layers.is_marker(item) + layers.is_marker(other)])
                    for other in others
                ]
                wanted.append(_nearest_median(x[item], pulls))
                weights.append(sum(pull for _, pull in pulls) or 1.0)
            gaps = [(widths[left] + widths[right]) / 2 + gap for left, right in pairwise(layer)]
            for item, at in zip(layer, _spread(wanted, weights, gaps), strict=True):
                x[item] = at
        length = sum(
            _PULL[layers.is_marker(upper) + layers.is_marker(lower)] * abs(x[upper] - x[lower])
            for upper, lowers in enumerate(layers.below)
            for lower in lowers
        )
        if length < least:
            best, least = list(x), length
    return best


def _nearest_median(at: float, pulls: Sequence[tuple[float, float]]) -> float:
    """The weighted median of positions; of several the one nearest to where the item is.

    Medians minimise the sum of distances, so that a chain becomes straight with one bend, where
    means would make it lean over its whole length.
    """
    half = sum(pull for _, pull in pulls) / 2
    if half == 0:
        return at
    low = high = at
    passed = 0.0
    ordered = sorted(pulls)
    for index, (position, pull) in enumerate(ordered):
        passed += pull
        if passed >= half:
            low = high = position
            if passed == half and index + 1 < len(ordered):
                high = ordered[index + 1][0]
            break
    return min(max(at, low), high)


def _spread(
    wanted: Sequence[float], weights: Sequence[float], gaps: Sequence[float]
) -> list[float]:
    """Positions nearest to the wanted ones (weighted least squares) that keep order and gaps.

    Without the gaps this is isotonic regression, which pooling adjacent violators solves.
    """
    offsets = [0.0]
    for gap in gaps:
        offsets.append(offsets[-1] + gap)
    # Pools of neighbours: weighted sum, weight, number.
    pools: list[list[float]] = []
    for want, weight, offset in zip(wanted, weights, offsets, strict=True):
        pools.append([(want - offset) * weight, weight, 1])
        while len(pools) > 1 and pools[-2][0] * pools[-1][1] > pools[-1][0] * pools[-2][1]:
            total, weight_sum, number = pools.pop()
            pools[-1][0] += total
            pools[-1][1] += weight_sum
            pools[-1][2] += number
    placed = [total / weight for total, weight, number in pools for _ in range(int(number))]
    return [at + offset for at, offset in zip(placed, offsets, strict=True)]


def _curve(points: Sequence[Point]) -> list[Point]:
    """A smooth curve through points in successive ranks, vertical at each of them."""
    curve = [points[0]]
    for (x0, y0), (x1, y1) in pairwise(points):
        middle = (y0 + y1) / 2
        curve += [(x0, middle), (x1, middle), (x1, y1)]
    return curve
