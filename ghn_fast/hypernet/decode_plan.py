"""Plans of decoding: which parameters share a product, and where each of them goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from ghn_fast.graph.arch_graph import ArchGraph, Target
from ghn_fast.hypernet.config import GHNConfig
from ghn_fast.hypernet.layout import Layout, Part, fan_in_scale, lay_out, part_of
from ghn_fast.ops.decode_blocks import Decoder, GroupRow, group_numbers
from ghn_fast.ops.expand_params import (
    Kind,
    ParamPlan,
    PlanRow,
    expand_params,
    expand_params_into,
)
from ghn_fast.ops.expand_params_plan import table_of

Shape4 = tuple[int, int, int, int]


class Group(NamedTuple):
    """What the parameters that are decoded together have in common.

    Attributes:
        decoder: What decodes them.
        shape: Shape (out, in, h, w) of the decoder's blocks; ones for a decoder of vectors.
        resized: Height and width that blocks are interpolated to, if not their own.
        is_table: Whether blocks (1, c, h, w) become tables (h w, c).
    """

    decoder: Decoder
    shape: Shape4
    resized: tuple[int, int] | None = None
    is_table: bool = False

    def finished(self, blocks: Tensor) -> Tensor:
        """Blocks (n, out, in, h, w) as parameters are expanded from, differentiable."""
        if self.resized is not None:
            flat = F.interpolate(blocks.flatten(0, 1), self.resized, mode="bilinear")
            blocks = flat.unflatten(0, blocks.shape[:2])
        if self.is_table:
            blocks = blocks.flatten(3).transpose(2, 3)
        return blocks.contiguous()


@dataclass
class DecodePlan:
    """What to decode for a batch of graphs, and how to expand it.

    Attributes:
        groups: The groups of parameters, each with its nodes.
        params: Plan of the flat buffer; its blocks are the groups in order.
        layout: Where each parameter lies in the flat buffer, one for each row of ``params``.
    """

    groups: dict[Group, list[int]]
    params: ParamPlan
    layout: Layout
    _nodes: dict[torch.device, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def nodes(self, device: torch.device) -> Tensor:
        """The nodes of all groups, one after the other, on a device; kept for the next call."""
        if device not in self._nodes:
            nodes = np.concatenate([[], *self.groups.values()]).astype(np.int64)
            with torch.inference_mode(False):
                self._nodes[device] = torch.from_numpy(nodes).to(device, non_blocking=True)
        return self._nodes[device]

    @cached_property
    def nodes_and_groups(self) -> tuple[Tensor, list[int]]:
        """Nodes and groups, as :func:`ghn_fast.ops.decode_blocks.decode_blocks` reads them."""
        rows = [
            GroupRow(group.decoder, group.shape, len(nodes)) for group, nodes in self.groups.items()
        ]
        return self.nodes(torch.device("cpu")), group_numbers(rows)

    def finish(self, blocks: Sequence[Tensor]) -> list[Tensor]:
        """Decoded blocks of all groups, as parameters are expanded from."""
        return [
            group.finished(block) if group.resized is not None or group.is_table else block
            for group, block in zip(self.groups, blocks, strict=True)
        ]

    @property
    def ranges(self) -> list[dict[str, tuple[int, tuple[int, ...]]]]:
        """Per graph, name of each parameter to (offset, shape) in the flat buffer."""
        return self.layout.ranges

    def expand(self, decoded: Sequence[Tensor]) -> Tensor:
        """The flat buffer of all parameters, differentiable."""
        return expand_params(decoded, self.params)

    def expand_into(self, decoded: Sequence[Tensor], tensors: Sequence[Tensor | None]) -> None:
        """Write all parameters into tensors, one for each, or ``None`` to leave it out."""
        if self.layout.has_tables:
            tensors = [
                tensor if tensor is None or not slot.is_table else slot.part(tensor)
                for slot, tensor in zip(self.layout.slots, tensors, strict=True)
            ]
        expand_params_into(decoded, self.params, tensors)


def plan_decoding(
    graphs: Sequence[ArchGraph], config: GHNConfig, *, head: bool = True
) -> DecodePlan:
    """Group the parameters of graphs by decoder product and lay out the flat buffer.

    What a graph adds is found once, and put behind that of others.

    Args:
        graphs: The architecture graphs; their nodes are numbered through, as in a batch.
        config: Configuration of the hypernetwork.
        head: Whether the classifier's own heads predict weight and bias at the graph's end; without
            them these two are left out.
    """
    layout = lay_out(graphs, head=head)
    groups: dict[Group, list[int]] = {}
    numbers: dict[Group, int] = {}
    tables = []
    first_node = end = 0
    for graph in graphs:
        part = _part_of(graph, config, head)
        table = part.table.copy()
        number, shift = np.empty((2, len(part.groups)), np.int64)
        for local, (group, nodes) in enumerate(part.groups.items()):
            before = groups.setdefault(group, [])
            number[local] = numbers.setdefault(group, len(numbers))
            # Blocks of the nodes of graphs before this one; a vector has two rows for a node.
            rows = 2 if group.decoder == Decoder.VECTOR else 1
            shift[local] = len(before) * rows * prod(_block_shape(group, config))
            before += nodes if first_node == 0 else [first_node + node for node in nodes]
        table[:, 1] += shift[table[:, 0]]
        table[:, 0] = number[table[:, 0]]
        table[:, 11] += end
        tables.append(table)
        end += part.numel
        first_node += graph.num_nodes
    joined = np.concatenate(tables) if tables else np.empty((0, 13), np.int64)
    return DecodePlan(groups, ParamPlan.of_table(joined, layout.numel), layout)


class _Part(NamedTuple):
    """What a graph adds to a plan: its own plan, when it stands alone.

    Attributes:
        groups: The groups, each with its nodes.
        table: ``ParamPlan.table`` (R, 13).
        numel: Elements of the flat buffer, with the gap behind the last parameter.
    """

    groups: dict[Group, list[int]]
    table: npt.NDArray[np.int64]
    numel: int


# By graph, for as long as it exists, and by what else decides: an architecture comes again in other
# company.
_parts: WeakKeyDictionary[ArchGraph, dict[tuple[GHNConfig, bool], _Part]] = WeakKeyDictionary()


def _part_of(graph: ArchGraph, config: GHNConfig, head: bool) -> _Part:
    parts = _parts.setdefault(graph, {})
    if (config, head) not in parts:
        parts[config, head] = _plan_part(part_of(graph, head), config)
    return parts[config, head]


def _plan_part(places: Part, config: GHNConfig) -> _Part:
    rows: list[PlanRow] = []
    # Of each group its number, and of its nodes the index among the blocks that it decodes.
    groups: dict[Group, tuple[int, dict[int, int]]] = {}
    # Many parameters of an architecture are alike.
    known: dict[Any, tuple[Group, tuple[Shape4, Shape4, Kind, float]]] = {}
    for slot in places.slots:
        target = slot.target
        alike = (
            *(target.predicted_shape, target.head, target.row, target.fan_in, target.gain),
            *(slot.is_position, slot.is_table),
        )
        if alike not in known:
            group = _group_of(target, config, slot.is_table)
            kind, scale = _normalisation(target, slot.is_position, config)
            shape = _pad(target.predicted_shape)
            if slot.is_table:
                shape = (shape[2] * shape[3], shape[1], 1, 1)
            known[alike] = group, (_block_shape(group, config), shape, kind, scale)
        group, found = known[alike]
        number, nodes = groups.setdefault(group, (len(groups), {}))
        index = nodes.setdefault(slot.node, len(nodes))
        if group.decoder == Decoder.VECTOR:
            index = 2 * index + target.row
        rows.append(PlanRow(number, index * prod(found[0]), *found, slot.start))
    nodes_of = {group: list(nodes) for group, (_, nodes) in groups.items()}
    return _Part(nodes_of, table_of(rows), places.numel)


def _group_of(target: Target, config: GHNConfig, is_table: bool) -> Group:
    shape, limit = target.predicted_shape, config.max_shape
    if len(shape) == 1:
        return Group(Decoder.HEAD_BIAS if target.head else Decoder.VECTOR, (1, 1, 1, 1))
    out, in_, height, width = _pad(shape)
    in_ = _round_up(in_, limit[1])
    if target.head:
        return Group(Decoder.HEAD_WEIGHT, (limit[0], in_, 1, 1))
    out = _round_up(out, limit[0])
    resized = None
    if config.window == "middle" and height > limit[2] and width > limit[3]:
        resized = height, width
    block = (out, in_, min(height, limit[2]), min(width, limit[3]))
    return Group(Decoder.BLOCK, block, resized, is_table)


def _round_up(channels: int, limit: int) -> int:
    """Number of channels to decode: few different numbers, so that groups are large.

    What is decoded beyond the channels of a parameter is cut off again, so this is a matter of time
    alone: steps of a quarter of the limit waste little and leave few groups.
    """
    step = max(limit // 4, 1)
    if channels < step:
        return channels if channels % 3 else min(channels // 3 * 4, step)
    return min(-(-channels // step) * step, limit)


def _block_shape(group: Group, config: GHNConfig) -> Shape4:
    """Shape of what a parameter of a group is expanded from."""
    if group.decoder == Decoder.VECTOR:
        return config.vector_channels, 1, 1, 1
    if group.decoder == Decoder.HEAD_BIAS:
        return config.num_classes, 1, 1, 1
    if group.decoder == Decoder.HEAD_WEIGHT:
        return config.num_classes, group.shape[1], 1, 1
    height, width = group.resized or group.shape[2:]
    if group.is_table:
        return height * width, group.shape[1], 1, 1
    return (*group.shape[:2], height, width)


def _normalisation(target: Target, is_position: bool, config: GHNConfig) -> tuple[Kind, float]:
    """Kind and scale of a parameter (arXiv 2110.13100, section 4.2)."""
    if not config.normalize or is_position:
        return Kind.COPY, 1.0
    shape = target.predicted_shape
    if len(shape) == 1:
        return (Kind.SHIFT if target.row else Kind.SCALE), 1.0
    return Kind.WEIGHT, fan_in_scale(target)


def _pad(shape: tuple[int, ...]) -> Shape4:
    out, in_, height, width = (*shape, 1, 1, 1)[:4]
    return out, in_, height, width
