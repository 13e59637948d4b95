"""Plans: which parameters share a decoder product, and where each of them goes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ghn_fast.graph.arch_graph import ArchGraph, Target
from ghn_fast.graph.node_types import NODE_TYPE_INDEX
from ghn_fast.hypernet.config import GHNConfig
from ghn_fast.hypernet.decode import BlockDecoder, VectorDecoder, plain_layers
from ghn_fast.ops.decode_blocks import (
    Decoder,
    DecoderWeights,
    GroupRow,
    can_decode,
    decode_blocks,
    group_numbers,
    takes_weights,
)
from ghn_fast.ops.expand_params import Kind, ParamPlan, PlanRow

Group = tuple[Decoder, tuple[int, ...]]

# Parameters begin at multiples of so many elements of the flat buffer (64 bytes of float32): whole
# cache lines, and 16-byte accesses on a GPU.
_ALIGNMENT = 16


@dataclass
class DecodePlan:
    """What to decode for a batch of graphs, and how to expand it.

    Attributes:
        groups: Decoder and block shape of each group of parameters, to the nodes in the group.
        params: Plan of the flat buffer; its blocks are the groups in order.
        ranges: Per graph, name of each parameter to (offset, shape) in the flat buffer.
    """

    groups: dict[Group, list[int]] = field(default_factory=dict)
    params: ParamPlan = field(default_factory=lambda: ParamPlan([], 0))
    ranges: list[dict[str, tuple[int, tuple[int, ...]]]] = field(default_factory=list)
    _indices: dict[torch.device, list[Tensor]] = field(
        default_factory=dict, repr=False, compare=False
    )
    _compiled: tuple[Tensor, list[int]] | None = field(default=None, repr=False, compare=False)

    def spans(self) -> list[tuple[int, int]]:
        """Begin and end of each graph's part of the flat buffer; the parts fill it."""
        begins = [next(iter(places.values()), (None,))[0] for places in self.ranges]
        ends, end = [], self.params.numel
        for begin in reversed(begins):
            ends.append(end)
            end = end if begin is None else begin
        ends.reverse()
        return list(zip([0, *ends[:-1]], ends, strict=True))

    def indices(self, device: torch.device) -> list[Tensor]:
        """The nodes of each group as long tensors on a device; kept for the next call."""
        if device not in self._indices:
            self._indices[device] = [
                torch.tensor(nodes, dtype=torch.int64).to(device) for nodes in self.groups.values()
            ]
        return self._indices[device]

    def compiled(self) -> tuple[Tensor, list[int]]:
        """Nodes and groups as :func:`ghn_fast.ops.decode_blocks` reads them; kept, too."""
        if self._compiled is None:
            rows = [
                GroupRow(decoder, _block_shape(decoder, shape), len(nodes))
                for (decoder, shape), nodes in self.groups.items()
            ]
            nodes = [node for group in self.groups.values() for node in group]
            self._compiled = torch.tensor(nodes, dtype=torch.int64), group_numbers(rows)
        return self._compiled


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
    plan = DecodePlan()
    rows: list[PlanRow] = []
    places: dict[Group, dict[int, int]] = {}
    numbers: dict[Group, int] = {}
    first_node = end = 0
    for graph in graphs:
        ranges: dict[str, tuple[int, tuple[int, ...]]] = {}
        for target in graph.targets:
            if target.head and not head:
                continue
            key = _group(target, config)
            node = first_node + target.node
            place = places.setdefault(key, {})
            numbers.setdefault(key, len(numbers))
            index = place.setdefault(node, len(place))
            is_position = int(graph.op_types[target.node]) == NODE_TYPE_INDEX["pos_enc"]
            row = _row(target, key, index, numbers[key], is_position, end, config)
            rows.append(row)
            ranges[target.name] = (end, target.shape)
            end += -(-_numel(target.shape) // _ALIGNMENT) * _ALIGNMENT
        plan.ranges.append(ranges)
        first_node += graph.num_nodes
    plan.groups = {key: list(place) for key, place in places.items()}
    plan.params = ParamPlan(rows, end)
    return plan


def decode(
    x: Tensor, plan: DecodePlan, blocks: BlockDecoder, vectors: VectorDecoder
) -> list[Tensor]:
    """Decode the blocks of all groups of a plan from node embeddings (N, C)."""
    if can_decode(x):
        layers, others = plain_layers(blocks), plain_layers(vectors)
        if layers is not None and others is not None:
            weights = DecoderWeights(*layers, *others)
            if takes_weights(weights):
                return decode_blocks(x, *plan.compiled(), weights)
    result: list[Tensor] = []
    groups, shapes, places = [], [], []
    for (decoder, shape), index in zip(plan.groups, plan.indices(x.device), strict=True):
        nodes = x[index]
        if decoder == Decoder.VECTOR:
            result.append(vectors(nodes))
        elif decoder == Decoder.HEAD_BIAS:
            result.append(vectors.classifier(nodes))
        else:
            if decoder == Decoder.HEAD_WEIGHT:
                shape = (blocks.max_shape[0], shape[0], 1, 1)
            groups.append(nodes)
            shapes.append((shape[0], shape[1], shape[2], shape[3]))
            places.append(len(result))
            result.append(nodes)  # until its blocks are there
    for place, block in zip(places, blocks.decode_groups(groups, shapes), strict=True):
        result[place] = block
    for place, (decoder, _) in enumerate(plan.groups):
        if decoder == Decoder.HEAD_WEIGHT:
            result[place] = blocks.classifier(result[place])
    return result


def _block_shape(decoder: Decoder, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Shape of a group's blocks; of a classifier's weight only the in-channels count."""
    if decoder == Decoder.HEAD_WEIGHT:
        return 1, shape[0], 1, 1
    return _pad(shape) if decoder == Decoder.BLOCK else (1, 1, 1, 1)


def _group(target: Target, config: GHNConfig) -> Group:
    shape, limit = target.predicted_shape, config.max_shape
    if len(shape) == 1:
        return (Decoder.HEAD_BIAS if target.head else Decoder.VECTOR), ()
    if target.head:
        return Decoder.HEAD_WEIGHT, (_round_up(shape[1], limit[1]),)
    out, in_, height, width = _pad(shape)
    return Decoder.BLOCK, (
        _round_up(out, limit[0]),
        _round_up(in_, limit[1]),
        min(height, limit[2]),
        min(width, limit[3]),
    )


def _round_up(channels: int, limit: int) -> int:
    """Number of channels to decode: few different numbers, so that groups are large.

    What is decoded beyond the channels of a parameter is cut off again, so this is a matter of time
    alone: steps of a quarter of the limit waste little and leave few groups.
    """
    step = max(limit // 4, 1)
    if channels < step:
        return channels if channels % 3 else min(channels // 3 * 4, step)
    return min(-(-channels // step) * step, limit)


def _row(
    target: Target,
    key: Group,
    index: int,
    block: int,
    is_position: bool,
    offset: int,
    config: GHNConfig,
) -> PlanRow:
    decoder, group_shape = key
    channels = max(config.max_shape[:2])
    block_shape: tuple[int, int, int, int]
    if decoder == Decoder.VECTOR:
        block_shape = (channels, 1, 1, 1)
        source = (2 * index + target.row) * channels
    elif decoder == Decoder.HEAD_BIAS:
        block_shape = (config.num_classes, 1, 1, 1)
        source = index * config.num_classes
    elif decoder == Decoder.HEAD_WEIGHT:
        block_shape = (config.num_classes, group_shape[0], 1, 1)
        source = index * config.num_classes * group_shape[0]
    else:
        block_shape = _pad(group_shape)
        source = index * _numel(group_shape)
    kind, scale = _normalisation(target, is_position, config)
    return PlanRow(block, source, block_shape, _pad(target.predicted_shape), kind, scale, offset)


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
    return Kind.WEIGHT, (gain / (target.fan_in or _numel(shape[1:]))) ** 0.5


def _pad(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    out, in_, height, width = (*shape, 1, 1, 1)[:4]
    return out, in_, height, width


def _numel(shape: tuple[int, ...]) -> int:
    return math.prod(shape)
