"""Cells of NAS-Bench-201: their networks, and their architecture graphs without a capture.

A cell (arXiv 2001.00326) has four states; each state is the sum of operations on all states before
it, six operations in all. A network is a stem, three stages of equal cells with 16, 32 and 64
channels, a residual block that halves the size between two stages, and a linear classifier.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor, nn

from ghn_fast.graph import NODE_TYPE_INDEX, ArchGraph
from ghn_fast.graph.rules import GraphRules
from ghn_fast.ops.shortest_distances import shortest_distances

OPERATIONS: Final = ("skip_connect", "none", "nor_conv_3x3", "nor_conv_1x1", "avg_pool_3x3")
"""The operations, in the order of the numbers that the tables use."""

EDGES: Final = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
"""From which state to which one each of a cell's six numbers leads."""

CHANNELS, CELLS = 16, 5

Cell = tuple[int, ...]
"""A cell as six numbers of operations, one for each of :data:`EDGES`."""


def parse_cell(text: str) -> Cell:
    """Read a cell in one of its two notations.

    Args:
        text: Six numbers, ``(4, 0, 3, 1, 4, 3)``, as :data:`EDGES` orders them; or operations with
            their sources, ``|avg_pool_3x3~0|+|skip_connect~0|none~1|+|...|``.

    Raises:
        ValueError: If it is none of these.
    """
    if "|" in text:
        found = {}
        for target, part in enumerate(text.split("+"), start=1):
            for name, source in re.findall(r"\|?(\w+)~(\d)", part):
                found[int(source), target] = name
        if set(found) == set(EDGES) and set(found.values()) <= set(OPERATIONS):
            return tuple(OPERATIONS.index(found[edge]) for edge in EDGES)
    else:
        numbers = tuple(int(number) for number in re.findall(r"-?\d+", text))
        if len(numbers) == len(EDGES) and all(0 <= n < len(OPERATIONS) for n in numbers):
            return numbers
    raise ValueError(
        f"cell: got {text!r}, needs six numbers from 0 to {len(OPERATIONS) - 1} or the notation "
        "|op~0|+|op~0|op~1|+|op~0|op~1|op~2|"
    )


def alive_edges(cell: Cell) -> list[int]:
    """The edges on a path from the input to the output of a cell, by their places.

    Raises:
        ValueError: If there is none.
    """
    return list(_alive(tuple(cell)))


@lru_cache(maxsize=1 << 15)
def _alive(cell: Cell) -> tuple[int, ...]:
    none = OPERATIONS.index("none")
    there = [k for k in range(len(EDGES)) if cell[k] != none]
    forward, backward = {0}, {3}
    for k in sorted(there, key=lambda k: EDGES[k]):
        if EDGES[k][0] in forward:
            forward.add(EDGES[k][1])
    for k in sorted(there, key=lambda k: EDGES[k], reverse=True):
        if EDGES[k][1] in backward:
            backward.add(EDGES[k][0])
    alive = tuple(k for k in there if EDGES[k][0] in forward and EDGES[k][1] in backward)
    if not alive:
        raise ValueError(f"cell: got {cell}, whose input does not reach its output")
    return alive


# The order in which a state adds its terms, and a cell computes its states.
_ORDER = sorted(range(len(EDGES)), key=lambda k: (EDGES[k][1], EDGES[k][0]))


class _Cell(nn.Module):
    def __init__(self, cell: Cell, channels: int) -> None:
        super().__init__()
        self.edges = nn.ModuleDict()
        self._alive = set(alive_edges(cell))
        for k in _ORDER:
            if k in self._alive:
                self.edges[str(k)] = _operation(OPERATIONS[cell[k]], channels)

    def forward(self, x: Tensor) -> Tensor:
        states: list[Tensor | None] = [x, None, None, None]
        for k in _ORDER:
            if k in self._alive:
                source, target = EDGES[k]
                term, total = self.edges[str(k)](states[source]), states[target]
                states[target] = term if total is None else total + term
        assert states[3] is not None  # its input reaches its output
        return states[3]


def _operation(name: str, channels: int) -> nn.Module:
    if name == "skip_connect":
        return nn.Identity()
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    size = int(name[-1])
    return nn.Sequential(*_relu_conv(channels, channels, size, 1))


def _relu_conv(inputs: int, outputs: int, size: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    return [nn.ReLU(), conv, nn.BatchNorm2d(outputs)]


class _Reduction(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.a = nn.Sequential(*_relu_conv(inputs, outputs, 3, 2))
        self.b = nn.Sequential(*_relu_conv(outputs, outputs, 3, 1))
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2), nn.Conv2d(inputs, outputs, 1, bias=False)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) + self.shortcut(x)


class CellNetwork(nn.Module):
    """A network of NAS-Bench-201. Operations that no path uses are left out.

    Args:
        cell: Its cell, see :func:`parse_cell`.
        num_classes: Number of classes.
        channels: Channels of the first stage; 16 in NAS-Bench-201.
        cells: Cells of a stage; 5 in NAS-Bench-201.

    Raises:
        ValueError: If the cell's input does not reach its output.
    """

    def __init__(
        self, cell: Cell, num_classes: int = 10, channels: int = CHANNELS, cells: int = CELLS
    ) -> None:
        super().__init__()
        conv = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.stem = nn.Sequential(conv, nn.BatchNorm2d(channels))
        self.cells = nn.ModuleList()
        for stage in range(3):
            width = channels << stage
            if stage:
                self.cells.append(_Reduction(width // 2, width))
            self.cells.extend(_Cell(cell, width) for _ in range(cells))
        self.last = nn.Sequential(nn.BatchNorm2d(4 * channels), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(4 * channels, num_classes)
        self.input_shape = (3, 32, 32)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 3, H, W)."""
        x = self.stem(x)
        for cell in self.cells:
            x = cell(x)
        return self.classifier(self.pool(self.last(x)).flatten(1))


@dataclass(frozen=True)
class CellGraph:
    """The architecture graph of a cell's network, and where its nodes come from.

    Attributes:
        graph: The graph; equal to a captured one but for the numbers of its nodes.
        places: Long tensor (N,): for a node of a cell the edge that it is on, 0 to 5, or 6 plus the
            state that it adds up, 6 to 9; 10 for all others.
        stages: Long tensor (N,): the stage of each node, 0 to 2.
    """

    graph: ArchGraph
    places: Tensor
    stages: Tensor


PLACES = len(EDGES) + 4
OUTSIDE = PLACES


def cell_graph(
    cell: Cell,
    *,
    num_classes: int = 10,
    channels: int = CHANNELS,
    cells: int = CELLS,
    virtual_edges: int = 50,
    rules: GraphRules = GraphRules.GHN2,
) -> CellGraph:
    """The architecture graph of :class:`CellNetwork`, without building or running it.

    Args:
        cell, num_classes, channels, cells: As for :class:`CellNetwork`.
        virtual_edges: Largest distance that gets a virtual edge; 1 means none.
        rules: The rules that the graph is made by.

    Raises:
        ValueError: If the cell's input does not reach its output.
    """
    made = _Builder(rules)
    conv, norm = NODE_TYPE_INDEX["conv"], NODE_TYPE_INDEX["bn"]
    x = made.add(NODE_TYPE_INDEX["input"], None, "input", ())
    x = made.add(conv, (channels, 3, 3, 3), "stem.0.weight", (x,))
    value = _Value(0, (made.norm("stem.1", channels, x),))
    number = 0
    for stage in range(3):
        width = channels << stage
        made.stage = stage
        if stage:
            value = _add_reduction(made, f"cells.{number}", width, value)
            number += 1
        for _ in range(cells):
            value = _add_cell(made, f"cells.{number}", cell, width, value)
            number += 1
    made.place = OUTSIDE
    width = channels << 2
    x = made.add(norm, (width,), "last.0.weight", value.nodes)
    made.shifts[x] = "last.0.bias"
    x = made.add(NODE_TYPE_INDEX["glob_avg"], None, "glob_avg", (x,))
    x = made.add(conv, (num_classes, width), "classifier.weight", (x,))
    made.add(NODE_TYPE_INDEX["bias"], (num_classes,), "classifier.bias", (x,))
    return made.finish(virtual_edges)


@dataclass(frozen=True)
class _Value:
    """Features: what they are as an operation, and the nodes that a reader of them gets edges of.

    A sum of a value with itself is no node, but another operation than what it sums.
    """

    key: int
    nodes: tuple[int, ...]


class _Builder:
    """Nodes and edges in the order of a network's layers."""

    def __init__(self, rules: GraphRules) -> None:
        self.rules = rules
        self.types: list[int] = []
        self.shapes: list[tuple[int, ...] | None] = []
        self.names: list[str] = []
        self.shifts: dict[int, str] = {}
        self.pairs: list[tuple[int, int]] = []
        self.places: list[int] = []
        self.stages: list[int] = []
        self.place, self.stage, self.keys = OUTSIDE, 0, 0

    def add(
        self, kind: int, shape: tuple[int, ...] | None, name: str, sources: tuple[int, ...]
    ) -> int:
        node = len(self.types)
        self.types.append(kind)
        self.shapes.append(shape)
        self.names.append(name)
        self.places.append(self.place)
        self.stages.append(self.stage)
        self.pairs += [(source, node) for source in sources]
        return node

    def norm(self, name: str, channels: int, source: int) -> int:
        node = self.add(NODE_TYPE_INDEX["bn"], (channels,), f"{name}.weight", (source,))
        self.shifts[node] = f"{name}.bias"
        return node

    def value(self, nodes: tuple[int, ...]) -> _Value:
        self.keys += 1
        return _Value(self.keys, nodes)

    def sum(self, one: _Value, other: _Value) -> _Value:
        if one.key == other.key:
            return self.value(one.nodes)
        nodes = tuple(sorted({*one.nodes, *other.nodes}))
        if len(nodes) == 1 and self.rules.blocks == "structure":
            return self.value(nodes)  # a sum that a single path comes to is no node there
        return self.value((self.add(NODE_TYPE_INDEX["sum"], None, "sum", nodes),))

    def finish(self, virtual_edges: int) -> CellGraph:
        edges = torch.tensor(self.pairs, dtype=torch.int64)
        edges = edges[torch.argsort(edges[:, 0] * len(self.types) + edges[:, 1])]
        graph = ArchGraph(
            torch.tensor(self.types),
            shortest_distances(edges, len(self.types), virtual_edges),
            tuple(self.shapes),
            tuple(self.names),
            self.shifts,
            virtual_edges,
            rules=self.rules,
        )
        return CellGraph(graph, torch.tensor(self.places), torch.tensor(self.stages))


def _add_conv(made: _Builder, name: str, shape: tuple[int, int, int, int], value: _Value) -> _Value:
    node = made.add(NODE_TYPE_INDEX["conv"], shape, f"{name}.1.weight", value.nodes)
    return made.value((made.norm(f"{name}.2", shape[0], node),))


def _add_reduction(made: _Builder, name: str, width: int, value: _Value) -> _Value:
    made.place = OUTSIDE
    half = width // 2
    main = _add_conv(made, f"{name}.a", (width, half, 3, 3), value)
    main = _add_conv(made, f"{name}.b", (width, width, 3, 3), main)
    pool = made.add(NODE_TYPE_INDEX["avg_pool"], (1, 1, 2, 2), "avg_pool", value.nodes)
    conv = NODE_TYPE_INDEX["conv"]
    short = made.add(conv, (width, half, 1, 1), f"{name}.shortcut.1.weight", (pool,))
    return made.sum(main, made.value((short,)))


def _add_cell(made: _Builder, name: str, cell: Cell, width: int, value: _Value) -> _Value:
    states: list[_Value | None] = [value, None, None, None]
    alive = _alive(tuple(cell))
    for k in _ORDER:
        if k not in alive:
            continue
        source, target = EDGES[k]
        term, total = states[source], states[target]
        assert term is not None  # its source is reached
        operation = OPERATIONS[cell[k]]
        made.place = k
        if operation == "avg_pool_3x3":
            kind = NODE_TYPE_INDEX["avg_pool"]
            term = made.value((made.add(kind, (1, 1, 3, 3), "avg_pool", term.nodes),))
        elif operation != "skip_connect":
            size = int(operation[-1])
            term = _add_conv(made, f"{name}.edges.{k}", (width, width, size, size), term)
        made.place = len(EDGES) + target
        states[target] = term if total is None else made.sum(total, term)
    assert states[3] is not None
    return states[3]


# The paths from state 0 to state 3, as places of edges; what leaves and enters the states.
_PATHS = ((2,), (0, 4), (1, 5), (0, 3, 5))
_NO_PATH = 9
_ENDS = ((0, 1, 2), (2, 4, 5), (0,), (1, 3), (3, 4), (5,))
"""Edges that leave the input, enter the output; enter, and leave, each state between them."""


def cell_counts(cells: Sequence[Cell]) -> tuple[Tensor, Tensor]:
    """Simple properties of cells, the baseline that embeddings have to beat.

    Returns:
        How often each operation occurs, (cells, 5); and for each of the 31 sets of operations
        twelve numbers, (cells, 372): how many edges have one of them; the shortest and the longest
        of the four paths from input to output made of them alone (9 and 0 without one), and how
        many such paths there are; the most of them on any path, and on one without ``none``; how
        many leave the input, enter the output, enter each of the two states between, leave each.
        Both float64.
    """
    table = torch.tensor([list(cell) for cell in cells])
    kinds = range(len(OPERATIONS))
    operations = torch.stack([(table == number).sum(dim=1) for number in kinds], dim=1)
    there = table != OPERATIONS.index("none")
    alive = torch.stack([there[:, list(path)].all(dim=1) for path in _PATHS], dim=1)
    lengths = torch.tensor([len(path) for path in _PATHS])
    columns = []
    for size in range(1, len(OPERATIONS) + 1):
        for chosen in itertools.combinations(kinds, size):
            inside = torch.isin(table, torch.tensor(chosen))
            on_path = torch.stack([inside[:, list(path)].sum(dim=1) for path in _PATHS], dim=1)
            whole = on_path == lengths
            columns += [
                inside.sum(dim=1),
                torch.where(whole, lengths, _NO_PATH).amin(dim=1),
                torch.where(whole, lengths, 0).amax(dim=1),
                whole.sum(dim=1),
                on_path.amax(dim=1),
                (on_path * alive).amax(dim=1),
                *(inside[:, list(edges)].sum(dim=1) for edges in _ENDS),
            ]
    return operations.double(), torch.stack(columns, dim=1).double()
