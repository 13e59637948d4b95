"""Architecture graphs by the compiled op, which reads the record of a configuration.

:func:`ghn_fast.deepnets.build_graph` states what the result is, and has the reference in Python.
The op (``csrc/deepnets/``) makes the graph, its distances and its schedule of message passing
together, in arrays; names, shapes and the list of edges become Python objects when they are asked
for.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ghn_fast.deepnets.architectures.genotype import NetworkConfig
from ghn_fast.deepnets.architectures.record import encode
from ghn_fast.graph.arch_graph import ArchGraph, notes_of_types
from ghn_fast.graph.node_types import NODE_TYPE_INDEX, NODE_TYPES
from ghn_fast.ops.backend import resolve
from ghn_fast.ops.deepnets_graph import deepnets_graph
from ghn_fast.ops.gated_gnn_plan import GraphPlan

UNREACHED = "not on a path from the input to the output"

# Largest image whose networks the compiled builder plans.
_LARGEST_IMAGE = 1 << 20

_SUFFIX_BITS, _SLOT_BITS = 5, 10
_STEM, _CLASSIFIER = (1 << _SLOT_BITS) - 2, (1 << _SLOT_BITS) - 1
# In the order of the enumerations in csrc/deepnets/parameters.cpp.
_SUFFIXES = (
    *("op.1.weight", "op.2.weight", "op.2.bias", "op.3.weight", "op.3.bias"),
    *("op.5.weight", "op.6.weight", "op.7.weight", "op.7.bias"),
    *("conv_1.weight", "conv_2.weight", "bn.weight", "bn.bias"),
    *("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"),
    *("to_qkv.weight", "to_out.0.weight", "to_out.0.bias"),
    *("ln1.weight", "ln1.bias", "ln2.weight", "ln2.bias"),
    *("ff.net.0.weight", "ff.net.0.bias", "ff.net.3.weight", "ff.net.3.bias"),
)
_STEM_NAMES = (
    *("stem0.weight", "pos_enc.weight", "stem.0.weight", "stem.1.weight", "stem.1.bias"),
    *("stem0.0.weight", "stem0.1.weight", "stem0.1.bias"),
    *("stem0.3.weight", "stem0.4.weight", "stem0.4.bias"),
    *("stem1.1.weight", "stem1.2.weight", "stem1.2.bias"),
)

_NORMS = (NODE_TYPE_INDEX["bn"], NODE_TYPE_INDEX["ln"])


class _Arrays(NamedTuple):
    """What the op tells of nodes, see :func:`ghn_fast.ops.deepnets_graph.deepnets_graph`."""

    types: Tensor
    table: Tensor
    skipped_codes: Tensor

    def names(self) -> tuple[str, ...]:
        codes = self.table[:, 0].tolist()
        return tuple(
            parameter_name(code) if code >= 0 else NODE_TYPES[kind]
            for code, kind in zip(codes, self.types.tolist(), strict=True)
        )

    def notes(self) -> tuple[str, ...]:
        return notes_of_types(self.types)

    def shapes(self) -> tuple[tuple[int, ...] | None, ...]:
        return tuple(
            tuple(shape[:dims]) if dims else None for _, dims, *shape in self.table.tolist()
        )

    def shift_names(self) -> Mapping[int, str]:
        codes = self.table[:, 0].tolist()
        return {
            node: f"{parameter_name(codes[node])[:-6]}bias"  # instead of "weight"
            for node, kind in enumerate(self.types.tolist())
            if kind in _NORMS
        }

    def skipped(self) -> Mapping[str, str]:
        return {parameter_name(code): UNREACHED for code in self.skipped_codes.tolist()}


def compiled(image_size: int = 1) -> bool:
    """Whether configurations go through the compiled back end, for images of a size."""
    return image_size <= _LARGEST_IMAGE and resolve("deepnets_graph", "cpu") == "cpu"


def record_of(config: NetworkConfig, image_size: int) -> bytes | None:
    """The record that the compiled back end takes for a configuration.

    ``None`` where the reference has to take over: without the compiled back end, and for networks
    that do not fit into a record.
    """
    if not compiled(image_size):
        return None
    try:
        return encode(config)
    except ValueError:
        return None


def derive_graph(
    record: bytes,
    num_classes: int,
    image_size: int,
    virtual_edges: int,
    structure_size: int | None = None,
) -> ArchGraph:
    """Architecture graph of a network by the compiled back end, which has to be there.

    Args:
        record: The record of the network.
        num_classes: Number of classes.
        image_size: Height and width of the images that the shapes are for.
        virtual_edges: Largest shortest-path distance that gets a virtual edge.
        structure_size: Height and width of the images that nodes and edges are for, if others.

    Raises:
        ValueError: If no path leads from the input to the output, or an argument is not valid.
    """
    *arrays, packed = deepnets_graph(
        # A copy that may be written to, as torch would have it.
        torch.frombuffer(bytearray(record), dtype=torch.uint8),
        num_classes,
        image_size,
        image_size if structure_size is None else structure_size,
        virtual_edges,
    )
    made = _Arrays(*arrays)
    return ArchGraph(
        made.types,
        GraphPlan.of_packed(packed, len(made.types)),
        made.shapes,
        made.names,
        made.shift_names,
        virtual_edges,
        made.skipped,
        notes=made.notes,
    )


@lru_cache(maxsize=1 << 16)
def parameter_name(code: int) -> str:
    """Name of a parameter by its number."""
    part, slot = code >> (_SLOT_BITS + _SUFFIX_BITS), code >> _SUFFIX_BITS & _CLASSIFIER
    suffix = code & (1 << _SUFFIX_BITS) - 1
    if slot == _STEM:
        return _STEM_NAMES[suffix]
    if slot == _CLASSIFIER:
        return f"classifier.{3 * part}.{('weight', 'bias')[suffix]}"
    owner = f"preprocess{slot}" if slot < 2 else f"_ops.{slot - 2}"
    return f"cells.{part}.{owner}.{_SUFFIXES[suffix]}"
