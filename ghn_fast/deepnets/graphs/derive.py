"""Compiled back end of graphs and sizes of configurations.

:func:`ghn_fast.deepnets.build_graph` and :func:`ghn_fast.deepnets.count_parameters` state what the
results are, and have the reference in Python. Here the same is done in C++ (``csrc/cpu/deepnets*``)
from the record of a configuration: the graph, its distances and its schedule of message passing
together. The graph keeps what it has in arrays; names, shapes and the list of edges become Python
objects when they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from ghn_fast.deepnets.architectures.genotype import NetworkConfig
from ghn_fast.deepnets.files.record import encode
from ghn_fast.graph.arch_graph import ArchGraph
from ghn_fast.graph.node_types import NODE_TYPE_INDEX, NODE_TYPES
from ghn_fast.ops.backend import extension_problem, register_op, resolve
from ghn_fast.ops.plan import GraphPlan

UNREACHED = "not on a path from the input to the output"

# Largest image whose networks the compiled builder plans.
_LARGEST_IMAGE = 1 << 20

_SUFFIX_BITS, _SLOT_BITS = 5, 10
_STEM, _CLASSIFIER = (1 << _SLOT_BITS) - 2, (1 << _SLOT_BITS) - 1
# In the order of the enumerations in csrc/cpu/deepnets_params.cpp.
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


class DerivedGraph(ArchGraph):
    """An architecture graph of a configuration, in arrays.

    Attributes:
        node_table: Int32 tensor (N, 6) of rows (number of the name or -1, dimensions of the shape
            or 0 for none, the shape, filled up with ones).
    """

    node_table: Tensor
    _skipped: Tensor
    _packed: Tensor

    def __new__(cls, *args: Any, **fields: Any) -> DerivedGraph:
        # With fields of its own, as from dataclasses.replace, it is a graph like any other.
        if args or fields:
            return ArchGraph(*args, **fields)  # type: ignore[return-value]
        return super().__new__(cls)

    @classmethod
    def of(cls, arrays: Sequence[Tensor], virtual_edges: int) -> DerivedGraph:
        """A graph from what ``torch.ops.ghn_fast.deepnets_graph`` returns."""
        graph = cls.__new__(cls)
        types, table, skipped, packed = arrays
        # The class is frozen for everyone else.
        graph.__dict__.update(
            op_types=types,
            node_table=table,
            _skipped=skipped,
            _packed=packed,
            virtual_edges=virtual_edges,
            aliases={},
            full_shapes={},
            fan_ins={},
            gains={},
            offsets=frozenset(),
            notes=(),
        )
        return graph

    @cached_property
    def plan(self) -> GraphPlan:
        """Plan of message passing over the graph."""
        return GraphPlan.of_packed(self._packed, self.num_nodes)

    @cached_property
    def edges(self) -> Tensor:  # type: ignore[override]
        return self.plan.edges

    @property
    def num_edges(self) -> int:
        """Number of edges, virtual edges included."""
        return self.plan.num_edges

    @cached_property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        codes = self.node_table[:, 0].tolist()
        return tuple(
            parameter_name(code) if code >= 0 else NODE_TYPES[kind]
            for code, kind in zip(codes, self._types, strict=True)
        )

    @cached_property
    def shapes(self) -> tuple[tuple[int, ...] | None, ...]:  # type: ignore[override]
        return tuple(
            tuple(shape[:dims]) if dims else None for _, dims, *shape in self.node_table.tolist()
        )

    @cached_property
    def shift_names(self) -> Mapping[int, str]:  # type: ignore[override]
        return {
            node: f"{name[:-6]}bias"  # instead of "weight"
            for node, (kind, name) in enumerate(zip(self._types, self.names, strict=True))
            if kind in _NORMS
        }

    @cached_property
    def skipped(self) -> Mapping[str, str]:  # type: ignore[override]
        return {parameter_name(code): UNREACHED for code in self._skipped.tolist()}

    @cached_property
    def _types(self) -> list[int]:
        return self.op_types.tolist()


def compiled() -> bool:
    """Whether configurations go through the compiled back end."""
    return resolve("deepnets_graph", "cpu") == "cpu"


def derive_graph(
    config: NetworkConfig,
    num_classes: int,
    image_size: int,
    virtual_edges: int,
    structure_size: int | None = None,
) -> DerivedGraph | None:
    """Architecture graph of a network by the compiled back end.

    Args:
        config: The network.
        num_classes: Number of classes.
        image_size: Height and width of the images that the shapes are for.
        virtual_edges: Largest shortest-path distance that gets a virtual edge.
        structure_size: Height and width of the images that nodes and edges are for, if others.

    Returns:
        The graph; ``None`` where the reference has to take over: without the compiled back end, and
        for networks that do not fit into a record.

    Raises:
        ValueError: If no path leads from the input to the output, or an argument is not valid.
    """
    record = _record(config, image_size)
    if record is None:
        return None
    arrays = torch.ops.ghn_fast.deepnets_graph(
        torch.frombuffer(record, dtype=torch.uint8),
        num_classes,
        image_size,
        image_size if structure_size is None else structure_size,
        virtual_edges,
    )
    return DerivedGraph.of(arrays, virtual_edges)


def derive_sizes(
    config: NetworkConfig, num_classes: int, image_sizes: Sequence[int], *, nodes: bool = False
) -> list[int] | None:
    """Number of nodes of a network's graph, 0 unless asked for, and of parameters per image size.

    ``None`` where the reference has to take over; see :func:`derive_graph`.
    """
    record = _record(config, max(image_sizes))
    if record is None:
        return None
    return sizes_of_records([record], num_classes, image_sizes, nodes=nodes)[0].tolist()


def sizes_of_records(
    records: Sequence[bytes | bytearray],
    num_classes: int,
    image_sizes: Sequence[int],
    *,
    nodes: bool = False,
) -> Tensor:
    """Sizes of networks by the compiled back end, which has to be there.

    Args:
        records: Records of the networks.
        num_classes: Number of classes.
        image_sizes: Heights and widths of images.
        nodes: Whether to count the nodes of the graph for the first of them.

    Returns:
        Long tensor (B, 1 + number of image sizes): nodes (0 if not asked for), then the number of
        parameters for each image size.

    Raises:
        ValueError: If a record or size is not valid, or a network has 2^62 parameters or more.
    """
    ends = torch.tensor([len(record) for record in records], dtype=torch.int64).cumsum(0)
    data = torch.frombuffer(bytearray(b"".join(records) or b"\0"), dtype=torch.uint8)
    return torch.ops.ghn_fast.deepnets_sizes(data, ends, num_classes, list(image_sizes), nodes)


def _record(config: NetworkConfig, image_size: int) -> bytearray | None:
    if not compiled() or image_size > _LARGEST_IMAGE:
        return None
    try:
        return bytearray(encode(config))
    except ValueError:
        return None


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


register_op("deepnets_graph", {"cpu": extension_problem}, on_host=True)
