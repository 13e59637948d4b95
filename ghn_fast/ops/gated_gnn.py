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

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ghn_fast.ops import gated_gnn_triton
from ghn_fast.ops.backend import cuda_problem, library_problem, register_op, resolve
from ghn_fast.ops.gated_gnn_plan import GraphPlan, SweepPlan


class MLPWeights(NamedTuple):
    """Weights of a two-layer perceptron: (H, C), (H,), (C, H), (C,)."""

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


def gated_gnn(
    x: Tensor,
    plans: GraphPlan,
    mlp: MLPWeights,
    mlp_ve: MLPWeights | None,
    gru: GRUWeights,
    steps: int = 1,
) -> Tensor:
    """Propagate node features: ``steps`` times a forward and a backward sweep.

    Runs on the back ends ``reference``, ``cpu``, ``cuda`` and ``triton`` (see
    :mod:`ghn_fast.ops.backend`). The compiled ones compute float16 and bfloat16 in float32, from
    the first node to the last, and round the result; the reference computes in the dtype of ``x``
    throughout. The compiled ones are differentiable once, the reference any number of times.

    Args:
        x: Node features (N, C) in float32, float64, float16 or bfloat16; ``cpu`` and ``cuda`` take
            up to 1,024 channels. Wider features or hidden layers than ``triton`` has a kernel for
            go to the reference, with a warning.
        plans: Plan of the batch, on the device of ``x``.
        mlp: Weights of the message along edges.
        mlp_ve: Weights of the message along edges and virtual edges; ``None`` for GHN-1.
        gru: Weights of the node update.
        steps: Number of rounds T.

    Returns:
        Updated node features (N, C), differentiable in ``x`` and all weights; (0, C) for a batch
        without nodes. Deterministic, and independent of the number of threads, on the compiled back
        ends; deterministic on CPU on the reference.

    Raises:
        TypeError: If ``x`` is not of one of these dtypes or a weight differs from it in dtype.
        ValueError: If shapes or devices do not fit, or the back end that is asked for cannot run.
    """
    _check(x, plans, mlp, mlp_ve, gru, steps)
    chosen = resolve("gated_gnn", x.device.type)
    weights = [*mlp, *(mlp_ve or ()), *gru]
    if chosen == "triton" and not _has_instance(x, weights):
        chosen = "reference"
    if chosen == "reference":
        return reference(x, plans.sweeps, mlp, mlp_ve, gru, steps)
    save = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights))
    if chosen == "triton":
        packed, graphs = plans.packed_here(), plans.num_graphs
        return gated_gnn_triton.propagate(x, packed, graphs, weights, steps, save)
    out, _ = torch.ops.ghn_fast.gated_gnn_forward(x, plans.packed, weights, steps, save)
    return out


def _has_instance(x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether the Triton kernels know the widths; if not, a warning says so, once for each."""
    hidden = [len(weights[i]) for i in range(0, len(weights) - 4, 4)]
    problem = gated_gnn_triton.too_wide(x.shape[1], hidden)
    if problem is not None and problem not in _warned:
        _warned.add(problem)
        message = f"gated_gnn runs on its slow plain-PyTorch reference: {problem}"
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    return problem is None


_warned: set[str] = set()


def reference(
    x: Tensor,
    sweeps: tuple[SweepPlan, SweepPlan],
    mlp: MLPWeights,
    mlp_ve: MLPWeights | None,
    gru: GRUWeights,
    steps: int = 1,
) -> Tensor:
    """:func:`gated_gnn` in plain PyTorch, level by level; differentiable any number of times."""
    for _ in range(steps):
        for sweep in sweeps:
            x = _sweep(x, sweep, mlp, mlp_ve, gru)
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
        plan.all_distance.to(x.dtype).reciprocal().unsqueeze(1).split(plan.all_sizes),
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


def _check(
    x: Tensor,
    plans: GraphPlan,
    mlp: MLPWeights,
    mlp_ve: MLPWeights | None,
    gru: GRUWeights,
    steps: int,
) -> None:
    if x.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        raise TypeError(f"x: got {x.dtype}, needs float32, float64, float16 or bfloat16")
    if x.ndim != 2 or x.shape[0] != plans.num_nodes:
        raise ValueError(f"x: got shape {tuple(x.shape)}, needs ({plans.num_nodes}, C)")
    if x.device.type != plans.device.type:
        raise ValueError(f"plans: got plans on {plans.device}, needs them on {x.device}, as x is")
    if steps < 1:
        raise ValueError(f"steps: got {steps}, needs at least 1")
    channels = x.shape[1]
    shapes: tuple[tuple[int, ...], ...]
    for name, mlp_weights in (("mlp", mlp), ("mlp_ve", mlp_ve)):
        if mlp_weights is not None:
            hidden = len(mlp_weights.bias_0)
            shapes = ((hidden, channels), (hidden,), (channels, hidden), (channels,))
            _check_weights(x, name, mlp_weights._asdict(), shapes)
    gates = 3 * channels
    shapes = ((gates, channels), (gates, channels), (gates,), (gates,))
    _check_weights(x, "gru", gru._asdict(), shapes)


def _check_weights(
    x: Tensor, name: str, weights: dict[str, Tensor], shapes: Sequence[tuple[int, ...]]
) -> None:
    for (field, tensor), shape in zip(weights.items(), shapes, strict=True):
        if tensor.shape != shape:
            raise ValueError(f"{name}.{field}: got shape {tuple(tensor.shape)}, needs {shape}")
        if tensor.dtype != x.dtype:
            raise TypeError(f"{name}.{field}: got {tensor.dtype}, needs {x.dtype}, as x has")
        if tensor.device != x.device:
            raise ValueError(
                f"{name}.{field}: got a tensor on {tensor.device}, needs it on {x.device}"
            )


def _padded(width: Any) -> Any:
    return (width + 15) // 16 * 16


def _saved_width(channels: Any, hidden: Sequence[Any]) -> Any:
    """Elements that the forward keeps per node and sweep (Record in gated_gnn_layout.h)."""
    return (6 + len(hidden)) * _padded(channels) + sum(_padded(h) for h in hidden)


def _check_devices(x: Tensor, plan: Tensor, weights: Sequence[Tensor]) -> None:
    """A tensor on the meta device calls the fake kernel, wherever the others are."""
    for name, tensor in (("plan", plan), *(("weights", weight) for weight in weights)):
        if tensor.device != x.device:
            raise ValueError(f"{name}: got a tensor on {tensor.device}, needs it on {x.device}")


def _forward_fake(
    x: Tensor, plan: Tensor, weights: Sequence[Tensor], steps: int, save: bool
) -> tuple[Tensor, Tensor]:
    _check_devices(x, plan, weights)
    hidden = [weights[i].shape[0] for i in range(0, len(weights) - 4, 4)]
    out = x.new_empty(x.shape)
    dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    if not save:
        return out, x.new_empty(0, dtype=dtype)
    width = _saved_width(x.shape[1], hidden)
    return out, x.new_empty(2 * steps, x.shape[0], width, dtype=dtype)


def _backward_fake(
    grad: Tensor, x: Tensor, plan: Tensor, weights: Sequence[Tensor], saved: Tensor, steps: int
) -> tuple[Tensor, list[Tensor]]:
    _check_devices(x, plan, weights)
    return x.new_empty(x.shape), [weight.new_empty(weight.shape) for weight in weights]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, plan, weights, ctx.steps, ctx.save = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, plan, output[1], *weights)


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    x, plan, saved, *weights = ctx.saved_tensors
    if grad is None:
        return None, None, [None] * len(weights), None, None
    if not ctx.save:
        raise RuntimeError("gated_gnn_forward: to be differentiated, it needs save=True")
    grad_x, grad_weights = torch.ops.ghn_fast.gated_gnn_backward(
        grad, x, plan, weights, saved, ctx.steps
    )
    return grad_x, None, grad_weights, None, None


if library_problem() is None:
    torch.library.register_fake("ghn_fast::gated_gnn_forward", _forward_fake)
    torch.library.register_fake("ghn_fast::gated_gnn_backward", _backward_fake)
    torch.library.register_autograd(
        "ghn_fast::gated_gnn_forward", _backward, setup_context=_setup_context
    )

register_op(
    "gated_gnn",
    {"cpu": library_problem, "cuda": cuda_problem, "triton": gated_gnn_triton.problem},
)
