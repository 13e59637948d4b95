"""The Triton back end of gated_gnn as custom ops; the kernels are in kernels/gated_gnn.py.

They are loaded when they are first used, so that importing this module needs no Triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ghn_fast.ops import triton_kernels

# Widest node features, and hidden layers together, that there is an instance of the kernels for
# (LARGEST in kernels/gated_gnn.py).
_LARGEST = 32


def problem() -> str | None:
    """Why the Triton kernels cannot be used, or ``None`` where they can."""
    return triton_kernels.problem("gated_gnn")


def too_wide(channels: int, hidden: Sequence[int]) -> str | None:
    """Why there is no instance of the kernels for some widths, or ``None`` where there is one.

    Args:
        channels: Width of the node features.
        hidden: Widths of the hidden layers.
    """
    together = sum(_padded(width) for width in hidden)
    if channels <= _LARGEST and together <= _LARGEST:
        return None
    return (
        f"got {channels} channels and hidden layers of {' and '.join(map(str, hidden))}; the "
        f"Triton kernels take up to {_LARGEST} channels, and hidden layers of {_LARGEST} together"
    )


def _kernels() -> ModuleType:
    return triton_kernels.load("gated_gnn")


def _padded(width: int) -> int:
    return -(-width // 16) * 16


class _Sizes:
    """Widths of the weights, and where the arrays of a record lie (gated_gnn_layout.h)."""

    def __init__(self, x: Tensor, weights: Sequence[Tensor]) -> None:
        self.nodes, self.channels = x.shape
        self.hidden = [len(weights[i]) for i in range(0, len(weights) - 4, 4)]
        self.messages = len(self.hidden)
        narrow = x.dtype in (torch.float16, torch.bfloat16)
        self.dtype = torch.float32 if narrow else x.dtype
        c, h = _padded(self.channels), sum(_padded(width) for width in self.hidden)
        self.c = c
        self.record_widths = [c, c, 4 * c, h, self.messages * c]
        self.factor_widths = [4 * c, h, self.messages * c]

    def arrays(self, memory: Tensor, widths: list[int]) -> list[list[Tensor]]:
        """Arrays (N, width) of each sweep in memory (sweeps, N, width of all)."""
        sizes = [self.nodes * width for width in widths]
        return [
            [
                part.view(self.nodes, width)
                for part, width in zip(sweep.view(-1).split(sizes), widths, strict=True)
            ]
            for sweep in memory
        ]

    def rows(self, x: Tensor) -> Tensor:
        """Rows (N, C) in the type of the arithmetic, padded, in memory of their own."""
        return pad(x.to(self.dtype), (0, self.c - self.channels)).contiguous()

    def constants(self) -> dict[str, Any]:
        found: dict[str, Any] = _kernels().constants(self.channels, self.hidden, self.dtype)
        return found


def _all_weights(weights: Sequence[Tensor]) -> list[Tensor]:
    """Twelve weights; where there is one perceptron, it stands in for the other unread."""
    given = [weight.contiguous() for weight in weights]
    return given if len(given) == 12 else [*given[:4], *given[:4], *given[4:]]


def _forward(
    x: Tensor, plan: Tensor, graphs: int, weights: Sequence[Tensor], steps: int, save: bool
) -> tuple[Tensor, Tensor]:
    sizes = _Sizes(x, weights)
    shape = (2 * steps if save else 2, sizes.nodes, sum(sizes.record_widths))
    memory = torch.empty(shape, dtype=sizes.dtype, device=x.device)
    nothing = memory.new_empty(0)
    if x.numel() == 0:
        return x.clone(), memory if save else nothing
    record = sizes.arrays(memory, sizes.record_widths)
    sweeps = [record[sweep % len(record)] for sweep in range(2 * steps)]
    _kernels().forward(
        sizes.rows(x), plan, graphs, _all_weights(weights), sweeps, sizes.constants()
    )
    out = sweeps[-1][0][:, : sizes.channels].to(x.dtype, copy=True)
    return out.contiguous(), memory if save else nothing


def _backward(
    grad: Tensor,
    x: Tensor,
    plan: Tensor,
    graphs: int,
    weights: Sequence[Tensor],
    saved: Tensor,
    steps: int,
) -> tuple[Tensor, list[Tensor]]:
    sizes = _Sizes(x, weights)
    if x.numel() == 0:
        return torch.zeros_like(x), [torch.zeros_like(weight) for weight in weights]
    shape = (2 * steps, sizes.nodes, sum(sizes.factor_widths))
    memory = torch.empty(shape, dtype=sizes.dtype, device=x.device)
    record = sizes.arrays(saved.contiguous(), sizes.record_widths)
    factors = sizes.arrays(memory, sizes.factor_widths)
    start, d_state = sizes.rows(x), sizes.rows(grad)
    _kernels().backward(
        start, d_state, plan, graphs, _all_weights(weights), record, factors, sizes.constants()
    )
    found = weight_gradients(start, record, factors, sizes.channels, sizes.hidden)
    grad_x = d_state[:, : sizes.channels].to(x.dtype, copy=True).contiguous()
    return grad_x, [weight.to(x.dtype) for weight in found]


def weight_gradients(
    start: Tensor,
    record: Sequence[Sequence[Tensor]],
    factors: Sequence[Sequence[Tensor]],
    channels: int,
    hidden: Sequence[int],
) -> list[Tensor]:
    """Gradients of the weights: four products and three sums over the nodes of all sweeps.

    Args:
        start: States before the first sweep (N, c), padded.
        record: Per sweep state, message, gates, hidden, sent.
        factors: Per sweep the gradients of the gates (n r z hn), of hidden and of sent.
        channels, hidden: Widths without padding.
    """
    c = start.shape[1]
    states = [start, *(sweep[0] for sweep in record)]
    before, state = torch.cat(states[:-1]), torch.cat(states[1:])
    message, near_far = (torch.cat([sweep[k] for sweep in record]) for k in (1, 3))
    d_gates, d_hidden, d_sent = (torch.cat(parts) for parts in zip(*factors, strict=True))
    first, second = d_hidden.t() @ state, d_sent.t() @ near_far
    first_b, second_b = d_hidden.sum(0), d_sent.sum(0)
    result = []
    shift = 0
    for k, width in enumerate(hidden):
        rows = slice(shift, shift + width)
        outputs = slice(k * c, k * c + channels)
        result += [first[rows, :channels], first_b[rows], second[outputs, rows], second_b[outputs]]
        shift += _padded(width)
    ih = (d_gates.t() @ message).view(4, c, c)[[1, 2, 0], :channels, :channels].flatten(0, 1)
    hh = (d_gates.t() @ before).view(4, c, c)[1:, :channels, :channels].flatten(0, 1)
    biases = d_gates.sum(0).view(4, c)[:, :channels]
    result += [ih, hh, biases[[1, 2, 0]].flatten(), biases[1:].flatten()]
    # Results of an op share no memory.
    return [weight.clone(memory_format=torch.contiguous_format) for weight in result]


def propagate(
    x: Tensor, plan: Tensor, graphs: int, weights: Sequence[Tensor], steps: int, save: bool
) -> Tensor:
    """:func:`ghn_fast.ops.gated_gnn.gated_gnn`, of arguments that have been checked.

    Args:
        x: Node features (N, C).
        plan: Packed plan, on the device of ``x``.
        graphs: Number of graphs of the plan.
        weights: Those of the perceptrons and of the GRU cell.
        steps: Number of rounds.
        save: Whether the result will be differentiated.
    """
    out, _ = torch.ops.ghn_fast.gated_gnn_triton(x, plan, graphs, weights, steps, save)
    return out


def _saved_width(channels: Any, hidden: Sequence[Any]) -> Any:
    """Elements that the forward keeps per node and sweep."""
    return (6 + len(hidden)) * _padded(channels) + sum(_padded(width) for width in hidden)


def _forward_fake(
    x: Tensor, plan: Tensor, graphs: int, weights: Sequence[Tensor], steps: int, save: bool
) -> tuple[Tensor, Tensor]:
    dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    if not save:
        return x.new_empty(x.shape), x.new_empty(0, dtype=dtype)
    hidden = [weights[i].shape[0] for i in range(0, len(weights) - 4, 4)]
    width = _saved_width(x.shape[1], hidden)
    return x.new_empty(x.shape), x.new_empty(2 * steps, x.shape[0], width, dtype=dtype)


def _backward_fake(
    grad: Tensor,
    x: Tensor,
    plan: Tensor,
    graphs: int,
    weights: Sequence[Tensor],
    saved: Tensor,
    steps: int,
) -> tuple[Tensor, list[Tensor]]:
    return x.new_empty(x.shape), [weight.new_empty(weight.shape) for weight in weights]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, plan, ctx.graphs, weights, ctx.steps, ctx.save = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, plan, output[1], *weights)


def _differentiate(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    x, plan, saved, *weights = ctx.saved_tensors
    if grad is None:
        return None, None, None, [None] * len(weights), None, None
    if not ctx.save:
        raise RuntimeError("gated_gnn_triton: to be differentiated, it needs save=True")
    grad_x, grad_weights = torch.ops.ghn_fast.gated_gnn_triton_backward(
        grad, x, plan, ctx.graphs, weights, saved, ctx.steps
    )
    return grad_x, None, None, grad_weights, None, None


triton_kernels.define(
    "gated_gnn_triton",
    "(Tensor x, Tensor plan, int graphs, Tensor[] weights, int steps, bool save)"
    " -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
)
triton_kernels.define(
    "gated_gnn_triton_backward",
    "(Tensor grad, Tensor x, Tensor plan, int graphs, Tensor[] weights, Tensor saved,"
    " int steps) -> (Tensor, Tensor[])",
    _backward,
    _backward_fake,
)
torch.library.register_autograd(
    "ghn_fast::gated_gnn_triton", _differentiate, setup_context=_setup_context
)
