"""Gated graph neural network over a batch of architecture graphs.

A sweep visits the nodes in topological order (or in reverse) and updates each by

    m_v = sum_{u -> v} MLP(h_u) + sum_{u ~> v} MLP_ve(h_u) / s_uv,    h_v <- GRU(m_v, h_v)

where the second sum runs over edges and virtual edges alike and s_uv is their shortest-path
distance (arXiv 1810.05749, Eq. 3; arXiv 2110.13100, Eq. 3 and 4). Without virtual edges only the
first sum remains. Both MLPs have two layers with a ReLU after each.

A message depends on its sender alone, so it is computed once per node, when the node has been
updated, and then only scaled and added along the edges; nodes without a path between them are
updated together, over all graphs of the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class MLPWeights(NamedTuple):
    """Weights of a two-layer perceptron: (hid_1, C), (hid_1,), (C, hid_1), (C,)."""

    weight_0: Tensor
    bias_0: Tensor
    weight_1: Tensor
    bias_1: Tensor


class GRUWeights(NamedTuple):
    """Weights of a GRU cell as in ``torch.nn.GRUCell``: (3C, C), (3C, C), (3C,), (3C,)."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor
    bias_hh: Tensor


class SweepPlan(NamedTuple):
    """Order of one sweep. Nodes are renumbered by level; the plan speaks in those numbers.

    Attributes:
        order: Long tensor (N,), the node at each place.
        level_sizes: Number of nodes of each level.
        hop_source: Sender of each edge, as its place within its level, sorted by level.
        hop_target: Receiver of each edge, as its place.
        hop_sizes: Number of edges that leave each level.
        all_source: As ``hop_source``, for edges and virtual edges together.
        all_target: As ``hop_target``, likewise.
        all_weight: 1 / distance, float32.
        all_sizes: As ``hop_sizes``, likewise.
    """

    order: Tensor
    level_sizes: list[int]
    hop_source: Tensor
    hop_target: Tensor
    hop_sizes: list[int]
    all_source: Tensor
    all_target: Tensor
    all_weight: Tensor
    all_sizes: list[int]

    def to(self, device: torch.device | str) -> SweepPlan:
        """The plan with its tensors on a device."""
        moved = [v.to(device) if isinstance(v, Tensor) else v for v in self]
        return SweepPlan._make(moved)


def plan_sweep(sources: Tensor, targets: Tensor, distances: Tensor, levels: Tensor) -> SweepPlan:
    """Plan a sweep in which messages run from ``sources`` to ``targets``.

    Args:
        sources: Long tensor (M,), sender of each edge or virtual edge.
        targets: Long tensor (M,), receiver of each.
        distances: Long tensor (M,), shortest-path distance of each, at least 1.
        levels: Long tensor (N,), level of each node; a sender's level is below its receiver's.

    Raises:
        ValueError: If an index is out of range, a distance is below 1 or an edge does not lead to a
            higher level.
    """
    num_nodes = len(levels)
    if sources.numel() > 0:
        for name, index in (("sources", sources), ("targets", targets)):
            low, high = int(index.min()), int(index.max())
            if low < 0 or high >= num_nodes:
                raise ValueError(
                    f"{name}: got nodes from {low} to {high}, needs nodes from 0 to {num_nodes - 1}"
                )
        if int(distances.min()) < 1:
            raise ValueError(f"distances: got {int(distances.min())}, needs at least 1")
        if bool((levels[sources] >= levels[targets]).any()):
            raise ValueError("levels: an edge does not lead to a higher level; is there a cycle?")
    order = torch.argsort(levels, stable=True)
    sizes = torch.bincount(levels) if num_nodes else levels
    place = torch.empty_like(order)
    place[order] = torch.arange(num_nodes)
    start = torch.cumsum(sizes, 0) - sizes

    def edges(mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        s, t, d = (v if mask is None else v[mask] for v in (sources, targets, distances))
        by_level = torch.argsort(levels[s], stable=True)
        s, t, d = s[by_level], t[by_level], d[by_level]
        level = levels[s]
        counts = torch.bincount(level, minlength=len(sizes)).tolist()
        return place[s] - start[level], place[t], d.to(torch.float32).reciprocal(), counts

    hop_source, hop_target, _, hop_sizes = edges(distances == 1)
    all_source, all_target, all_weight, all_sizes = edges(None)
    return SweepPlan(
        order,
        sizes.tolist(),
        hop_source,
        hop_target,
        hop_sizes,
        all_source,
        all_target,
        all_weight,
        all_sizes,
    )


def gated_gnn(
    x: Tensor,
    plans: tuple[SweepPlan, SweepPlan],
    mlp: MLPWeights,
    mlp_ve: MLPWeights | None,
    gru: GRUWeights,
    steps: int = 1,
) -> Tensor:
    """Propagate node features: ``steps`` times a forward and a backward sweep.

    Args:
        x: Node features (N, C).
        plans: Plans of the forward and of the backward sweep.
        mlp: Weights of the message along edges.
        mlp_ve: Weights of the message along edges and virtual edges; ``None`` for GHN-1.
        gru: Weights of the node update.
        steps: Number of rounds T.

    Returns:
        Updated node features (N, C), differentiable in ``x`` and all weights. Deterministic on CPU.

    Raises:
        TypeError: If ``x`` is not a floating-point tensor.
        ValueError: If shapes do not fit.
    """
    if not x.is_floating_point():
        raise TypeError(f"x: got {x.dtype}, needs a floating-point tensor")
    if x.ndim != 2 or len(plans[0].order) != len(x):
        raise ValueError(f"x: got shape {tuple(x.shape)}, needs ({len(plans[0].order)}, C)")
    if gru.weight_ih.shape != (3 * x.shape[1], x.shape[1]):
        got = tuple(gru.weight_ih.shape)
        raise ValueError(f"gru: got weight_ih of shape {got}, needs {(3 * x.shape[1], x.shape[1])}")
    if steps < 1:
        raise ValueError(f"steps: got {steps}, needs at least 1")
    for _ in range(steps):
        for plan in plans:
            x = _sweep(x, plan, mlp, mlp_ve, gru)
    return x


def _sweep(
    x: Tensor, plan: SweepPlan, mlp: MLPWeights, mlp_ve: MLPWeights | None, gru: GRUWeights
) -> Tensor:
    states = x[plan.order]
    incoming = torch.zeros_like(states)
    hops = zip(
        plan.hop_source.split(plan.hop_sizes), plan.hop_target.split(plan.hop_sizes), strict=True
    )
    pairs = zip(
        plan.all_source.split(plan.all_sizes),
        plan.all_target.split(plan.all_sizes),
        plan.all_weight.to(x.dtype).unsqueeze(1).split(plan.all_sizes),
        strict=True,
    )
    updated = []
    first = 0
    for state, hop, pair in zip(states.split(plan.level_sizes), hops, pairs, strict=True):
        # A copy, because `incoming` goes on changing in place.
        message = incoming[first : first + len(state)].clone()
        first += len(state)
        state = torch.gru_cell(message, state, *gru)
        updated.append(state)
        source, target = hop
        if len(source):
            incoming.index_add_(0, target, _perceptron(state, mlp)[source])
        source, target, weight = pair
        if len(source) and mlp_ve is not None:
            incoming.index_add_(0, target, _perceptron(state, mlp_ve)[source] * weight)
    if not updated:
        return x
    inverse = torch.empty_like(plan.order)
    inverse[plan.order] = torch.arange(len(plan.order), device=inverse.device)
    return torch.cat(updated)[inverse]


def _perceptron(x: Tensor, weights: MLPWeights) -> Tensor:
    hidden = F.relu(F.linear(x, weights.weight_0, weights.bias_0))
    return F.relu(F.linear(hidden, weights.weight_1, weights.bias_1))
