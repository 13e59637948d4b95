"""The decoder of LoGAH: weights as products of two narrow matrices (arXiv 2405.16287).

An embedding becomes 2r rows of r numbers (an MLP C -> 4C -> 8C -> 2 r r), and each row ck numbers,
y = V relu(z) + v. Those of the first r rows, read in the order of memory as (ck, r), are A, those
of the last r rows B, and

    W[o, i, h, w] = sum_r A[o kh + h, r] B[i kw + w, r]

So few rows of z are needed: A's first row is that of y, and an output of V is a number of A. Only
these are computed. 1-D parameters are column 0 of the same product, (2, n): scale and shift.

A weight is written where it belongs: its factors are scaled, and their product goes straight into
the parameter, or into the flat buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ghn_fast.graph.arch_graph import ArchGraph, Target
from ghn_fast.hypernet.config import GHNConfig
from ghn_fast.hypernet.decode import VectorDecoder
from ghn_fast.hypernet.layout import Layout, Slot, fan_in_scale, lay_out
from ghn_fast.hypernet.linear import product
from ghn_fast.ops.expand_params import Kind, ParamPlan, PlanRow, expand_params, expand_params_into

# What the published code divides by is the standard deviation and this.
_LEAST_DEVIATION = 1e-7
# Numbers of one side of the largest product, per channel of max_shape.
_KERNEL = 16


class LowRankDecoder(nn.Module):
    """From embeddings to the factors of weights.

    Args:
        config: Uses ``hid``, ``max_shape`` and ``rank``.
    """

    def __init__(self, config: GHNConfig) -> None:
        super().__init__()
        hid, rank = config.hid, config.rank
        self.rank = rank
        self.side = _KERNEL * config.max_shape[0]
        self.layers = nn.Sequential(
            nn.Linear(hid, 4 * hid),
            nn.ReLU(),
            nn.Linear(4 * hid, 8 * hid),
            nn.ReLU(),
            nn.Linear(8 * hid, 2 * rank * rank),
        )
        self.output = nn.Linear(rank, self.side)

    def rows(self, x: Tensor) -> Tensor:
        """Rows (n, 2, r, r) of embeddings (n, C), after their ReLU: those of A, then of B."""
        return F.relu(self.layers(x)).view(len(x), 2, self.rank, self.rank)

    def factor(self, rows: Tensor, count: int) -> Tensor:
        """The first rows (n, count, r) of a factor, from its rows (n, r, r)."""
        numbers = count * self.rank
        needed = -(-numbers // self.side)
        width = min(numbers, self.side)
        y = F.linear(rows[:, :needed], self.output.weight[:width], self.output.bias[:width])
        return y.flatten(1)[:, :numbers].view(len(rows), count, self.rank)


class Matrix(NamedTuple):
    """A weight of a plan.

    Attributes:
        node: Its node in the batch.
        counts: Rows of A and of B.
        block: Shape (o, i, h, w) of the product.
        shape: Shape (O, I, h, w) of the weight, the product repeated.
        is_table: Whether (1, c, h, w) becomes a table (h w, c).
        scale: Factor, ``None`` where the standard deviation decides.
        deviation: Standard deviation that the weight gets, if ``scale`` is ``None``.
    """

    node: int
    counts: tuple[int, int]
    block: tuple[int, int, int, int]
    shape: tuple[int, int, int, int]
    is_table: bool
    scale: float | None
    deviation: float


@dataclass
class Factors:
    """What is decoded for a plan: factors of the weights, and blocks of the 1-D parameters."""

    weights: list[tuple[Tensor, Tensor]]
    blocks: list[Tensor]


@dataclass
class LowRankPlan:
    """What to decode for a batch of graphs, and where it goes.

    Attributes:
        layout: Where each parameter lies in the flat buffer.
        matrices: The weights, by their number in the layout.
        vectors: Plan of the 1-D parameters, which come from ``groups`` of nodes by their length.
        rows: Of each row of ``vectors`` its number in the layout.
        groups: Length of a 1-D parameter's block, 0 for the vector decoder's and -1 for the bias of
            a classifier, to its nodes.
    """

    layout: Layout
    matrices: dict[int, Matrix]
    vectors: ParamPlan
    rows: list[int]
    groups: dict[int, list[int]]
    _indices: dict[torch.device, list[Tensor]] = field(default_factory=dict, repr=False)

    @property
    def ranges(self) -> list[dict[str, tuple[int, tuple[int, ...]]]]:
        """Per graph, name of each parameter to (offset, shape) in the flat buffer."""
        return self.layout.ranges

    def decode(self, x: Tensor, blocks: nn.Module, vectors: nn.Module | None) -> Factors:
        """Decode all parameters of node embeddings (N, C), differentiable."""
        assert isinstance(blocks, LowRankDecoder)
        z = blocks.rows(x)
        # One backward pass puts all rows together again; taken one by one, each fills a whole z.
        of_node = z.unbind(0)
        weights = []
        for matrix in self.matrices.values():
            first, second = of_node[matrix.node].unbind(0)
            a = blocks.factor(first[None], matrix.counts[0])[0]
            b = blocks.factor(second[None], matrix.counts[1])[0]
            weights.append((a, b))
        made = []
        for length, index in zip(self.groups, self._of(x.device), strict=True):
            if length > 0:
                rows = z[index]
                a = blocks.factor(rows[:, 0], 2 * length)
                b = blocks.factor(rows[:, 1], 1)
                made.append((a * b).sum(2))
            else:
                assert isinstance(vectors, VectorDecoder)
                embedded = x[index]
                made.append(vectors.classifier(embedded) if length < 0 else vectors(embedded))
        return Factors(weights, made)

    def expand(self, decoded: Factors) -> Tensor:
        """The flat buffer of all parameters, differentiable."""
        slots = self.layout.slots
        flat_vectors = expand_params(decoded.blocks, self.vectors) if self.rows else None
        if not _needs_gradients(decoded) and decoded.weights:
            flat = decoded.weights[0][0].new_zeros(self.layout.numel)
            parts = [flat[s.start : s.end].view(s.part_shape) for s in slots]
            self._write(decoded, parts)
            return flat
        pieces: dict[int, Tensor] = {}
        for (number, matrix), (a, b) in zip(self.matrices.items(), decoded.weights, strict=True):
            pieces[number] = _repeated(_product(*_scaled(matrix, a, b), matrix), matrix)
        for row, number in zip(self.vectors.rows, self.rows, strict=True):
            assert flat_vectors is not None
            pieces[number] = flat_vectors[row.offset : row.end]
        result, end = [], 0
        like = next(iter(pieces.values())) if pieces else torch.zeros(0)
        for number, slot in enumerate(slots):
            if slot.start > end:
                result.append(like.new_zeros(slot.start - end))
            result.append(pieces[number].reshape(-1))
            end = slot.end
        if self.layout.numel > end:
            result.append(like.new_zeros(self.layout.numel - end))
        return torch.cat(result) if result else like.new_zeros(0)

    def expand_into(self, decoded: Factors, tensors: Sequence[Tensor | None]) -> None:
        """Write all parameters into tensors, one for each, or ``None`` to leave it out."""
        with torch.no_grad():
            parts = [
                None if tensor is None else slot.part(tensor)
                for slot, tensor in zip(self.layout.slots, tensors, strict=True)
            ]
            self._write(decoded, parts)

    def _write(self, decoded: Factors, parts: Sequence[Tensor | None]) -> None:
        if self.rows:
            expand_params_into(decoded.blocks, self.vectors, [parts[n] for n in self.rows])
        for (number, matrix), (a, b) in zip(self.matrices.items(), decoded.weights, strict=True):
            to = parts[number]
            if to is not None:
                _write_weight(*_scaled(matrix, a, b), matrix, to)

    def _of(self, device: torch.device) -> list[Tensor]:
        if device not in self._indices:
            with torch.inference_mode(False):
                self._indices[device] = [
                    torch.tensor(nodes, dtype=torch.int64).to(device)
                    for nodes in self.groups.values()
                ]
        return self._indices[device]


def plan_low_rank(
    graphs: Sequence[ArchGraph], config: GHNConfig, *, head: bool = True
) -> LowRankPlan:
    """Find out what to decode for graphs, and lay out the flat buffer.

    Args:
        graphs: The architecture graphs; their nodes are numbered through, as in a batch.
        config: Configuration of the hypernetwork.
        head: Whether the classifier at a graph's end is predicted.
    """
    layout = lay_out(graphs, head=head)
    matrices: dict[int, Matrix] = {}
    rows: list[PlanRow] = []
    numbers: list[int] = []
    groups: dict[int, tuple[int, dict[int, int]]] = {}
    end = 0
    for number, slot in enumerate(layout.slots):
        target = slot.target
        if len(target.predicted_shape) > 1:
            matrices[number] = _matrix(slot, graphs[slot.graph], config)
            continue
        length = _vector_length(target, config)
        group, nodes = groups.setdefault(length, (len(groups), {}))
        index = nodes.setdefault(slot.node, len(nodes))
        if length < 0:
            width, first = config.num_classes, index * config.num_classes
        else:
            width = length or config.hid // 2
            first = (2 * index + target.row) * width
        kind = Kind.COPY
        if config.normalize:
            kind = Kind.SHIFT if target.row else Kind.SCALE
        size = target.predicted_shape[0]
        rows.append(PlanRow(group, first, (width, 1, 1, 1), (size, 1, 1, 1), kind, 1.0, end))
        numbers.append(number)
        end += size
    return LowRankPlan(
        layout,
        matrices,
        ParamPlan(rows, end),
        numbers,
        {length: list(nodes) for length, (_, nodes) in groups.items()},
    )


def _vector_length(target: Target, config: GHNConfig) -> int:
    """Length of the block that a 1-D parameter comes from; see :class:`LowRankPlan`."""
    if config.vectors == "mlp":
        return -1 if target.head else 0
    most = config.max_shape[0]
    length = min(target.predicted_shape[0], most)
    # The block's length decides where its second row begins: as the published code rounds it.
    if length % 3 == 0:
        length = length // 3 * 4
    return most if 2 * length >= most else length


def _matrix(slot: Slot, graph: ArchGraph, config: GHNConfig) -> Matrix:
    out, in_, height, width = (*slot.target.predicted_shape, 1, 1)[:4]
    most = config.max_shape[0]
    side = _KERNEL * most
    # Tables of positions are decoded as wide as they are.
    o, i = min(out, most), min(in_, side // width if slot.is_table else most)
    block = (o, i, height, width)
    if max(o * height, i * width) > side:
        raise ValueError(
            f"graph: parameter '{slot.target.name}' of shape {slot.target.shape} needs "
            f"{max(o * height, i * width)} rows of a factor, which has {side}"
        )
    scale: float | None = 1.0
    if not slot.is_embedding and config.normalize:
        if config.weights == "standard_deviation":
            scale = None
        elif not slot.is_position:
            scale = fan_in_scale(slot.target)
    return Matrix(
        slot.node,
        (o * height, i * width),
        block,
        (out, in_, height, width),
        slot.is_table,
        scale,
        graph.initial_deviation,
    )


def _scaled(matrix: Matrix, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Factors with the scale of the weight in the first one."""
    if matrix.scale is not None:
        return (a if matrix.scale == 1.0 else a * matrix.scale), b
    deviation = _deviation(matrix, a, b)
    return a * (matrix.deviation / (deviation + _LEAST_DEVIATION)), b


def _deviation(matrix: Matrix, a: Tensor, b: Tensor) -> Tensor:
    """Standard deviation (unbiased) of a weight, from its factors alone.

    The sum of W is (sum of A's rows) (sum of B's rows), and that of its squares the trace of
    A'A B'B, rows counted as often as they are repeated.
    """
    (o, i, height, width), shape = matrix.block, matrix.shape
    rows = _repetitions(o, shape[0], a).repeat_interleave(height)
    columns = _repetitions(i, shape[1], b).repeat_interleave(width)
    wide_a, wide_b = a.double(), b.double()
    count = prod(shape)
    total = (rows @ wide_a) @ (columns @ wide_b)
    squares = ((wide_a.t() * rows) @ wide_a * ((wide_b.t() * columns) @ wide_b)).sum()
    return ((squares - total * total / count) / (count - 1)).clamp(min=0).sqrt().to(a.dtype)


def _repetitions(have: int, want: int, like: Tensor) -> Tensor:
    """How often each of ``have`` rows comes when they are repeated to ``want``."""
    index = torch.arange(have, device=like.device)
    return (want // have + (index < want % have)).double()


def _product(a: Tensor, b: Tensor, matrix: Matrix) -> Tensor:
    """The block (o, i, h, w) of a weight, or (h w, c, 1, 1) of a table."""
    o, i, height, width = matrix.block
    block = (a @ b.t()).view(o, height, i, width).transpose(1, 2)
    if matrix.is_table:
        return block.reshape(i, height * width).t()[:, :, None, None]
    return block


def _repeated(block: Tensor, matrix: Matrix) -> Tensor:
    """A block, repeated to the whole weight."""
    shape = matrix.shape
    if matrix.is_table:
        shape = (shape[2] * shape[3], shape[1], 1, 1)
    if tuple(block.shape) == shape:
        return block
    times = [-(-want // have) for have, want in zip(block.shape, shape, strict=True)]
    return block.repeat(times)[tuple(slice(0, want) for want in shape)]


def _write_weight(a: Tensor, b: Tensor, matrix: Matrix, to: Tensor) -> None:
    """Write a weight where it belongs, without a copy of it besides.

    What repeats is copied from where it was written first.
    """
    o, i, height, width = matrix.block
    plain = height == width == 1 and to.ndim == 2 and to.dtype == a.dtype
    if not (plain and to.device == a.device and to.is_contiguous()):
        whole = _repeated(_product(a, b, matrix), matrix)
        to.copy_(whole.reshape(to.shape))
        return
    to[:o, :i] = product(a, b)
    for start in range(i, to.shape[1], i):
        end = min(start + i, to.shape[1])
        to[:o, start:end] = to[:o, : end - start]
    for start in range(o, to.shape[0], o):
        end = min(start + o, to.shape[0])
        to[start:end] = to[: end - start]


def _needs_gradients(decoded: Factors) -> bool:
    tensors = [*decoded.blocks, *(t for pair in decoded.weights for t in pair)]
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
