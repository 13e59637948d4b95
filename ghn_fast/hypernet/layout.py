"""Where the parameters of a batch of graphs lie in the flat buffer, whatever decodes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor

from ghn_fast.graph.arch_graph import ArchGraph, Target
from ghn_fast.graph.node_types import NODE_TYPE_INDEX

# Parameters begin at multiples of so many elements of the flat buffer (64 bytes of float32): whole
# cache lines, and 16-byte accesses on a GPU.
ALIGNMENT = 16


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of a parameter.

    Attributes:
        graph: Number of its graph.
        node: Its node in the batch.
        target: What is predicted.
        is_position: Whether it is a table of positions on a grid, (1, c, h, w) or (1, n, c).
        is_embedding: Whether it is a table that is read by index.
        start: First element that is predicted; those of a table's token come before.
        end: Behind its last element.
    """

    graph: int
    node: int
    target: Target
    is_position: bool
    is_embedding: bool
    start: int
    end: int

    @property
    def is_table(self) -> bool:
        """Whether it is a table (1, n, c) of positions."""
        return self.is_position and len(self.target.shape) == 3

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Shape of the part that is predicted."""
        shape = self.target.shape
        if not self.is_table:
            return shape
        return (1, (self.end - self.start) // shape[2], shape[2])

    def part(self, tensor: Tensor) -> Tensor:
        """The part of a parameter that is predicted."""
        if tensor.numel() == self.end - self.start:
            return tensor.detach()
        return tensor.detach()[:, -self.part_shape[1] :]


@dataclass(frozen=True)
class Layout:
    """Where parameters lie.

    Attributes:
        ranges: Per graph, name of each parameter to (offset, shape).
        numel: Number of elements of the buffer.
        has_tables: Whether there is a table (1, n, c) of positions among them.
        make_slots: Makes ``slots``; training does without them.
    """

    ranges: list[dict[str, tuple[int, tuple[int, ...]]]]
    numel: int
    has_tables: bool
    make_slots: Callable[[], list[Slot]]

    @cached_property
    def slots(self) -> list[Slot]:
        """The parameters in the order of the buffer."""
        return self.make_slots()


def lay_out(graphs: Sequence[ArchGraph], *, head: bool = True) -> Layout:
    """Give each parameter of graphs its place.

    Args:
        graphs: The graphs; their nodes are numbered through, as in a batch.
        head: Whether what the classifier's own heads predict is among them.
    """
    parts = [part_of(graph, head) for graph in graphs]
    ranges = []
    end = 0
    for part in parts:
        ranges.append({name: (end + offset, shape) for name, offset, shape in part.places})
        end += part.numel

    def make_slots() -> list[Slot]:
        slots = []
        first_node = first = 0
        for number, (graph, part) in enumerate(zip(graphs, parts, strict=True)):
            slots += [
                replace(
                    slot,
                    graph=number,
                    node=first_node + slot.node,
                    start=first + slot.start,
                    end=first + slot.end,
                )
                for slot in part.slots
            ]
            first_node += graph.num_nodes
            first += part.numel
        return slots

    return Layout(ranges, end, any(part.has_tables for part in parts), make_slots)


class Part(NamedTuple):
    """The places of the parameters of one graph, from the first one on.

    Attributes:
        slots: The parameters.
        places: Name, offset and shape of each.
        numel: Elements of the buffer, with the gap behind the last one.
        has_tables: As in :class:`Layout`.
    """

    slots: list[Slot]
    places: list[tuple[str, int, tuple[int, ...]]]
    numel: int
    has_tables: bool


# By graph, for as long as it exists: an architecture comes again in other company.
_parts: WeakKeyDictionary[ArchGraph, dict[bool, Part]] = WeakKeyDictionary()


def part_of(graph: ArchGraph, head: bool) -> Part:
    """The places of the parameters of a graph; found once."""
    parts = _parts.setdefault(graph, {})
    if head not in parts:
        parts[head] = _lay_out_one(graph, head)
    return parts[head]


def _lay_out_one(graph: ArchGraph, head: bool) -> Part:
    slots: list[Slot] = []
    places: list[tuple[str, int, tuple[int, ...]]] = []
    end = 0
    node_types = graph.op_types.tolist()
    for target in graph.targets:
        if target.head and not head:
            continue
        is_table = node_types[target.node] == NODE_TYPE_INDEX["pos_enc"]
        is_position = is_table and len(target.predicted_shape) == 4
        size, whole = prod(target.predicted_shape), prod(target.shape)
        slots.append(
            Slot(
                0,
                target.node,
                target,
                is_position,
                is_table and not is_position,
                end + whole - size,
                end + whole,
            )
        )
        places.append((target.name, end, target.shape))
        end += -(-whole // ALIGNMENT) * ALIGNMENT
    return Part(slots, places, end, any(slot.is_table for slot in slots))


def fan_in_scale(target: Target) -> float:
    """Factor of a weight by its fan-in (arXiv 2110.13100, section 4.2)."""
    shape = target.predicted_shape
    # Depthwise and wide kernels (1x7) are not followed by a ReLU in the networks of DeepNets-1M.
    no_relu = len(shape) > 2 and (shape[1] == 1 or shape[2] < shape[3])
    gain = (1.0 if no_relu else 2.0) if target.gain is None else target.gain
    return float((gain / (target.fan_in or prod(shape[1:]))) ** 0.5)
