"""Where the parameters of a batch of graphs lie in the flat buffer, whatever decodes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

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
        slots: The parameters in the order of the buffer.
        ranges: Per graph, name of each parameter to (offset, shape).
        numel: Number of elements of the buffer.
        has_tables: Whether there is a table (1, n, c) of positions among them.
    """

    slots: list[Slot]
    ranges: list[dict[str, tuple[int, tuple[int, ...]]]]
    numel: int
    has_tables: bool


def lay_out(graphs: Sequence[ArchGraph], *, head: bool = True) -> Layout:
    """Give each parameter of graphs its place.

    Args:
        graphs: The graphs; their nodes are numbered through, as in a batch.
        head: Whether what the classifier's own heads predict is among them.
    """
    slots: list[Slot] = []
    ranges: list[dict[str, tuple[int, tuple[int, ...]]]] = []
    first_node = end = 0
    for number, graph in enumerate(graphs):
        ranges.append({})
        node_types = graph.op_types.tolist()
        for target in graph.targets:
            if target.head and not head:
                continue
            is_table = node_types[target.node] == NODE_TYPE_INDEX["pos_enc"]
            is_position = is_table and len(target.predicted_shape) == 4
            size, whole = prod(target.predicted_shape), prod(target.shape)
            slots.append(
                Slot(
                    number,
                    first_node + target.node,
                    target,
                    is_position,
                    is_table and not is_position,
                    end + whole - size,
                    end + whole,
                )
            )
            ranges[-1][target.name] = (end, target.shape)
            end += -(-whole // ALIGNMENT) * ALIGNMENT
        first_node += graph.num_nodes
    return Layout(slots, ranges, end, any(slot.is_table for slot in slots))


def fan_in_scale(target: Target) -> float:
    """Factor of a weight by its fan-in (arXiv 2110.13100, section 4.2)."""
    shape = target.predicted_shape
    # Depthwise and wide kernels (1x7) are not followed by a ReLU in the networks of DeepNets-1M.
    no_relu = len(shape) > 2 and (shape[1] == 1 or shape[2] < shape[3])
    gain = (1.0 if no_relu else 2.0) if target.gain is None else target.gain
    return float((gain / (target.fan_in or prod(shape[1:]))) ** 0.5)
