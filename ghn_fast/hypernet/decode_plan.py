"""Plans of decoding: which parameters share a product, and where each of them goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ghn_fast.graph.arch_graph import ArchGraph, Target
from ghn_fast.graph.node_types import NODE_TYPE_INDEX
from ghn_fast.hypernet.config import GHNConfig
from ghn_fast.ops.decode_blocks import Decoder, GroupRow, group_numbers
from ghn_fast.ops.expand_params import Kind, ParamPlan, PlanRow

# Parameters begin at multiples of so many elements of the flat buffer (64 bytes of float32): whole
# cache lines, and 16-byte accesses on a GPU.
_ALIGNMENT = 16

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
        ranges: Per graph, name of each parameter to (offset, shape) in the flat buffer.
        tables: Numbers of the rows that are the last positions of a table (1, n, c) whose first
            ones are not predicted; these are zero in the flat buffer.
    """

    groups: dict[Group, list[int]]
    params: ParamPlan
    ranges: list[dict[str, tuple[int, tuple[int, ...]]]]
    tables: frozenset[int] = frozenset()
    _indices: dict[torch.device, list[Tensor]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def indices(self, device: torch.device) -> list[Tensor]:
        """The nodes of each group as long tensors on a device; kept for the next call."""
        if device not in self._indices:
            self._indices[device] = [
                torch.tensor(nodes, dtype=torch.int64).to(device) for nodes in self.groups.values()
            ]
        return self._indices[device]

    @cached_property
    def nodes_and_groups(self) -> tuple[Tensor, list[int]]:
        """Nodes and groups, as :func:`ghn_fast.ops.decode_blocks.decode_blocks` reads them."""
        rows = [
            GroupRow(group.decoder, group.shape, len(nodes)) for group, nodes in self.groups.items()
        ]
        nodes = [node for group in self.groups.values() for node in group]
        return torch.tensor(nodes, dtype=torch.int64), group_numbers(rows)

    def finish(self, blocks: Sequence[Tensor]) -> list[Tensor]:
        """Decoded blocks of all groups, as parameters are expanded from."""
        return [
            group.finished(block) if group.resized is not None or group.is_table else block
            for group, block in zip(self.groups, blocks, strict=True)
        ]

    def predicted_parts(self, tensors: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """Of one tensor for each row the part that is predicted."""
        if not self.tables:
            return tensors
        parts = list(tensors)
        for row in self.tables:
            tensor = parts[row]
            if tensor is not None:
                parts[row] = tensor.detach()[:, -self.params.rows[row].shape[0] :]
        return parts


def plan_decoding(
    graphs: Sequence[ArchGraph], config: GHNConfig, *, head: bool = True
) -> DecodePlan:
    """Group the parameters of graphs by decoder product and lay out the flat buffer.

    Args:
        graphs: The architecture graphs; their nodes are numbered through, as in a batch.
        config: Configuration of the hypernetwork.
        head: Whether the classifier's own heads predict weight and bias at the graph's end; without
            them these two are left out.
    """
    rows: list[PlanRow] = []
    ranges: list[dict[str, tuple[int, tuple[int, ...]]]] = []
    # Of each group its number, and of its nodes the index among the blocks that it decodes.
    groups: dict[Group, tuple[int, dict[int, int]]] = {}
    # Many parameters of an architecture are alike.
    layouts: dict[Any, tuple[Group, tuple[Shape4, Shape4, Kind, float]]] = {}
    tables: set[int] = set()
    first_node = end = 0
    for graph in graphs:
        ranges.append({})
        node_types = graph.op_types.tolist()
        for target in graph.targets:
            if target.head and not head:
                continue
            is_position = (
                node_types[target.node] == NODE_TYPE_INDEX["pos_enc"]
                and len(target.predicted_shape) == 4
            )
            is_table = is_position and len(target.shape) == 3 and target.shape[0] == 1
            alike = (
                *(target.predicted_shape, target.head, target.row),
                *(target.fan_in, target.gain, is_position, is_table),
            )
            if alike not in layouts:
                group = _group_of(target, config, is_table)
                kind, scale = _normalisation(target, is_position, config)
                shape = _pad(target.predicted_shape)
                if is_table:
                    shape = (shape[2] * shape[3], shape[1], 1, 1)
                layouts[alike] = group, (_block_shape(group, config), shape, kind, scale)
            group, layout = layouts[alike]
            number, nodes = groups.setdefault(group, (len(groups), {}))
            index = nodes.setdefault(first_node + target.node, len(nodes))
            if group.decoder == Decoder.VECTOR:
                index = 2 * index + target.row
            first = prod(target.shape) - prod(layout[1])
            if first:
                tables.add(len(rows))
            rows.append(PlanRow(number, index * prod(layout[0]), *layout, end + first))
            ranges[-1][target.name] = (end, target.shape)
            end += -(-prod(target.shape) // _ALIGNMENT) * _ALIGNMENT
        first_node += graph.num_nodes
    nodes_of = {group: list(nodes) for group, (_, nodes) in groups.items()}
    return DecodePlan(nodes_of, ParamPlan(rows, end), ranges, frozenset(tables))


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
        return max(config.max_shape[:2]), 1, 1, 1
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
    # Depthwise and wide kernels (1x7) are not followed by a ReLU in the networks of DeepNets-1M.
    no_relu = len(shape) > 2 and (shape[1] == 1 or shape[2] < shape[3])
    gain = (1.0 if no_relu else 2.0) if target.gain is None else target.gain
    return Kind.WEIGHT, (gain / (target.fan_in or prod(shape[1:]))) ** 0.5


def _pad(shape: tuple[int, ...]) -> Shape4:
    out, in_, height, width = (*shape, 1, 1, 1)[:4]
    return out, in_, height, width
