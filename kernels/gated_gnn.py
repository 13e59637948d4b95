"""The gated GNN in Triton: one program for each graph, one launch for each sweep.

The contract is that of :func:`ghn_fast.ops.gated_gnn.gated_gnn`, and what is kept for the backward
pass lies in memory as csrc/common/gated_gnn_layout.h says, so that this forward pass may be
followed by the backward pass of another back end, and the other way round.

A program visits the nodes of its graph in the order of the sweep. The weights stay in registers. A
node gathers the messages of the nodes before it from memory, a block of edges at a time, is
updated, and stores what it sends; then the threads of the program meet, so that all of it can be
read by the next node. Backward the same walk goes the other way, and leaves for each node the
factors of which the gradients of the weights are products
(:func:`ghn_fast.ops.gated_gnn_triton.weight_gradients`).

Float16 and bfloat16 are computed in float32. Sums have a fixed order. Tested in Triton's
interpreter, and compiled for a GPU (sm_90); the compiled code has not run on one yet.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .functions import sigmoid, tanh

__all__ = ["LARGEST", "NUM_WARPS", "backward", "constants", "forward"]

# Widest node features, and hidden layers together, whose weights fit into a program's registers.
# With 64, single precision spills on 16 warps, too.
LARGEST = 32
# Edges that are gathered at a time. Most edges of a graph are virtual ones: a node of the training
# graphs has hundreds of them, and a handful of others.
EDGES, NEAR = tl.constexpr(64), tl.constexpr(8)
# With 4, the largest instance has 234 registers instead of 124 (sm_90, Triton 3.8).
NUM_WARPS = 8

_COMPUTE = {torch.float32: tl.float32, torch.float64: tl.float64}


def constants(channels: int, hidden: list[int], dtype: torch.dtype) -> dict[str, Any]:
    """The sizes that an instance of the kernels is compiled for.

    Args:
        channels: Width of the node features.
        hidden: Widths of the hidden layers, one for each perceptron.
        dtype: Of the arithmetic.
    """
    padded = [-(-width // 16) * 16 for width in (channels, *hidden)]
    return {
        "C": channels,
        "H0": hidden[0],
        "H1": hidden[1] if len(hidden) > 1 else 0,
        "CP": padded[0],
        "H0P": padded[1],
        "HP": sum(padded[1:]),
        "CT": triton.next_power_of_2(padded[0]),
        "HT": triton.next_power_of_2(sum(padded[1:])),
        "MESSAGES": len(hidden),
        "COMPUTE": _COMPUTE[dtype],
    }


def forward(
    start: Tensor,
    plan: Tensor,
    num_graphs: int,
    weights: list[Tensor],
    record: list[list[Tensor]],
    sizes: dict[str, Any],
) -> None:
    """All sweeps, one after the other.

    Args:
        start: States before the first sweep (N, CP), zeros behind the last channel.
        plan: Packed plan of the graphs.
        num_graphs: Number of graphs B.
        weights: The 12 weights in the order of the op's schema; those of a perceptron that there is
            not are never read.
        record: Per sweep the arrays state, message, gates, hidden, sent to write.
        sizes: The instance (:func:`constants`).
    """
    before = start
    with torch.cuda.device_of(start):
        for sweep, (state, message, gates, hidden, sent) in enumerate(record):
            _forward_kernel[(num_graphs,)](
                before_ptr=before,
                state_ptr=state,
                message_ptr=message,
                gates_ptr=gates,
                hidden_ptr=hidden,
                sent_ptr=sent,
                plan_ptr=plan,
                **_weights(weights),
                AGAINST=sweep % 2,
                num_warps=NUM_WARPS,
                **sizes,
            )
            before = state


def backward(
    start: Tensor,
    d_state: Tensor,
    plan: Tensor,
    num_graphs: int,
    weights: list[Tensor],
    record: list[list[Tensor]],
    factors: list[list[Tensor]],
    sizes: dict[str, Any],
) -> None:
    """All sweeps from the last one.

    Args:
        start, plan, num_graphs, weights, record, sizes: As in :func:`forward`.
        d_state: Gradient of the last states (N, CP); that of ``start`` afterwards.
        factors: Per sweep the arrays gates, hidden, sent to write.
    """
    d_message = torch.empty_like(d_state)
    with torch.cuda.device_of(start):
        for sweep in reversed(range(len(record))):
            _, _, gates, hidden, sent = record[sweep]
            d_gates, d_hidden, d_sent = factors[sweep]
            _backward_kernel[(num_graphs,)](
                before_ptr=record[sweep - 1][0] if sweep else start,
                gates_ptr=gates,
                hidden_ptr=hidden,
                sent_ptr=sent,
                d_state_ptr=d_state,
                d_message_ptr=d_message,
                d_gates_ptr=d_gates,
                d_hidden_ptr=d_hidden,
                d_sent_ptr=d_sent,
                plan_ptr=plan,
                **_weights(weights),
                AGAINST=sweep % 2,
                num_warps=NUM_WARPS,
                **sizes,
            )


_NAMES = (
    *("near_w1_ptr", "near_b1_ptr", "near_w2_ptr", "near_b2_ptr"),
    *("far_w1_ptr", "far_b1_ptr", "far_w2_ptr", "far_b2_ptr"),
    *("ih_ptr", "hh_ptr", "ih_b_ptr", "hh_b_ptr"),
)


def _weights(weights: list[Tensor]) -> dict[str, Tensor]:
    return dict(zip(_NAMES, weights, strict=True))


@triton.jit
def _edges(plan_ptr, BY_SENDER: tl.constexpr):
    """Edge list of a packed plan (csrc/common/gated_gnn_plan.h): ptr, split, node, distance."""
    graphs = tl.load(plan_ptr + 1).to(tl.int64)
    nodes = tl.load(plan_ptr + 2).to(tl.int64)
    edges = tl.load(plan_ptr + 3).to(tl.int64)
    ptr = plan_ptr + 8 + graphs + 1
    if BY_SENDER:
        ptr += 2 * nodes + 1 + 2 * edges
    split = ptr + nodes + 1
    node = split + nodes
    return ptr, split, node, node + edges


@triton.jit
def _order(plan_ptr, AGAINST: tl.constexpr):
    """Nodes of the graphs in the order of a sweep, along the edges or against them."""
    graphs = tl.load(plan_ptr + 1).to(tl.int64)
    nodes = tl.load(plan_ptr + 2).to(tl.int64)
    edges = tl.load(plan_ptr + 3).to(tl.int64)
    order = plan_ptr + 8 + graphs + 1 + 2 * (2 * nodes + 1 + 2 * edges)
    if AGAINST:
        order += nodes + graphs + 1 + tl.load(plan_ptr + 4).to(tl.int64) + 1
    return order


@triton.jit
def _gather(
    rows_ptr,  # (N, stride)
    first,  # row of the graph's first node
    node_ptr,
    distance_ptr,
    begin,
    end,
    columns,  # [CT]
    there,  # [CT]
    stride,
    shift,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
    CT: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Sum [CT] of rows at the other ends of edges [begin, end), maybe each over its distance."""
    sums = tl.zeros([CT], COMPUTE)
    at = begin
    while at < end:
        e = at + tl.arange(0, BLOCK)
        is_edge = e < end
        u = first + tl.load(node_ptr + e, mask=is_edge, other=0)
        mask = is_edge[:, None] & there[None, :]
        rows = tl.load(
            rows_ptr + u[:, None] * stride + shift + columns[None, :], mask=mask, other=0.0
        )
        if WEIGHTED:
            distance = tl.load(distance_ptr + e, mask=is_edge, other=1).to(COMPUTE)
            rows *= (1.0 / distance)[:, None]
        sums += tl.sum(rows, axis=0)
        at += BLOCK
    return sums


@triton.jit
def _forward_kernel(
    before_ptr,  # (N, CP)
    state_ptr,  # (N, CP)
    message_ptr,  # (N, CP)
    gates_ptr,  # (N, 4 CP): r z hn n
    hidden_ptr,  # (N, HP)
    sent_ptr,  # (N, MESSAGES * CP)
    plan_ptr,
    near_w1_ptr,  # (H0, C)
    near_b1_ptr,  # (H0)
    near_w2_ptr,  # (C, H0)
    near_b2_ptr,  # (C)
    far_w1_ptr,  # (H1, C)
    far_b1_ptr,  # (H1)
    far_w2_ptr,  # (C, H1)
    far_b2_ptr,  # (C)
    ih_ptr,  # (3 C, C)
    hh_ptr,  # (3 C, C)
    ih_b_ptr,  # (3 C)
    hh_b_ptr,  # (3 C)
    C: tl.constexpr,
    H0: tl.constexpr,
    H1: tl.constexpr,
    CP: tl.constexpr,
    H0P: tl.constexpr,
    HP: tl.constexpr,
    CT: tl.constexpr,
    HT: tl.constexpr,
    MESSAGES: tl.constexpr,
    AGAINST: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """One sweep: states, messages, gates, hidden layers and what is sent, node after node.

    m = sum of what is sent to the node; r = sigmoid(W_ir m + W_hr h), z likewise,
    n = tanh(W_in m + r * (W_hn h)), h' = n + z (h - n); then both perceptrons of h'.
    """
    graph_ptr = plan_ptr + 8
    first = tl.load(graph_ptr + tl.program_id(0)).to(tl.int64)
    last = tl.load(graph_ptr + tl.program_id(0) + 1).to(tl.int64)
    ptr, split_ptr, node_ptr, distance_ptr = _edges(plan_ptr, AGAINST)
    order_ptr = _order(plan_ptr, AGAINST)
    c = tl.arange(0, CT)
    h = tl.arange(0, HT)
    is_c = c < C
    ir, iz, inn = _gates(ih_ptr, c, C, COMPUTE)
    hr, hz, hn = _gates(hh_ptr, c, C, COMPUTE)
    ih_b = ih_b_ptr + c
    hh_b = hh_b_ptr + c
    b_r = tl.load(ih_b, mask=is_c, other=0.0).to(COMPUTE)
    b_r += tl.load(hh_b, mask=is_c, other=0.0).to(COMPUTE)
    b_z = tl.load(ih_b + C, mask=is_c, other=0.0).to(COMPUTE)
    b_z += tl.load(hh_b + C, mask=is_c, other=0.0).to(COMPUTE)
    b_in = tl.load(ih_b + 2 * C, mask=is_c, other=0.0).to(COMPUTE)
    b_hn = tl.load(hh_b + 2 * C, mask=is_c, other=0.0).to(COMPUTE)
    # The hidden layers lie side by side, that of the second perceptron from H0P on; the layers
    # behind them are apart, with zeros for what belongs to the other.
    first_b = _first_biases(near_b1_ptr, far_b1_ptr, h, H0, H1, H0P, MESSAGES, COMPUTE)
    near_b = tl.load(near_b2_ptr + c, mask=is_c, other=0.0).to(COMPUTE)
    far_b = tl.load(far_b2_ptr + c, mask=is_c, other=0.0).to(COMPUTE)
    first_w = _first_layers(near_w1_ptr, far_w1_ptr, c, h, C, H0, H1, H0P, MESSAGES, COMPUTE)
    near_w = _second_layer(near_w2_ptr, c, h, C, H0, 0, COMPUTE)
    far_w = _second_layer(far_w2_ptr, c, h, C, H1, H0P, COMPUTE)
    kept = c < CP
    place = first
    while place < last:
        v = first + tl.load(order_ptr + place)
        begin = tl.load(ptr + v)
        end = tl.load(ptr + v + 1)
        split = tl.load(split_ptr + v)
        m = _gather(
            sent_ptr, first, node_ptr, distance_ptr, begin, split, c, kept, MESSAGES * CP, 0,
            False, NEAR, CT, COMPUTE,
        )  # fmt: skip
        if MESSAGES == 2:
            m += _gather(
                sent_ptr, first, node_ptr, distance_ptr, begin, split, c, kept, 2 * CP, CP,
                False, NEAR, CT, COMPUTE,
            )  # fmt: skip
            m += _gather(
                sent_ptr, first, node_ptr, distance_ptr, split, end, c, kept, 2 * CP, CP,
                True, EDGES, CT, COMPUTE,
            )  # fmt: skip
        x = tl.load(before_ptr + v * CP + c, mask=kept, other=0.0)
        to = m[:, None]
        of = x[:, None]
        r = sigmoid(tl.sum(ir * to + hr * of, axis=0) + b_r)
        z = sigmoid(tl.sum(iz * to + hz * of, axis=0) + b_z)
        from_state = tl.sum(hn * of, axis=0) + b_hn
        n = tanh(tl.sum(inn * to, axis=0) + b_in + r * from_state)
        s = n + z * (x - n)
        t = tl.maximum(tl.sum(first_w * s[:, None], axis=0) + first_b, 0.0)
        near = tl.maximum(tl.sum(near_w * t[:, None], axis=0) + near_b, 0.0)
        tl.store(sent_ptr + v * MESSAGES * CP + c, near, mask=kept)
        if MESSAGES == 2:
            far = tl.maximum(tl.sum(far_w * t[:, None], axis=0) + far_b, 0.0)
            tl.store(sent_ptr + v * 2 * CP + CP + c, far, mask=kept)
        tl.store(state_ptr + v * CP + c, s, mask=kept)
        tl.store(message_ptr + v * CP + c, m, mask=kept)
        gate = gates_ptr + v * 4 * CP + c
        tl.store(gate, r, mask=kept)
        tl.store(gate + CP, z, mask=kept)
        tl.store(gate + 2 * CP, from_state, mask=kept)
        tl.store(gate + 3 * CP, n, mask=kept)
        tl.store(hidden_ptr + v * HP + h, t, mask=h < HP)
        # What this node sends is read by others of the program from here on.
        tl.debug_barrier()
        place += 1


@triton.jit
def _gates(w_ptr, c, C: tl.constexpr, COMPUTE: tl.constexpr):
    """Weights [CT, CT] of the gates r, z and n, by inputs and outputs."""
    mask = (c < C)[:, None] & (c < C)[None, :]
    place = w_ptr + c[None, :] * C + c[:, None]
    r = tl.load(place, mask=mask, other=0.0).to(COMPUTE)
    z = tl.load(place + C * C, mask=mask, other=0.0).to(COMPUTE)
    n = tl.load(place + 2 * C * C, mask=mask, other=0.0).to(COMPUTE)
    return r, z, n


@triton.jit
def _first_biases(
    near_b_ptr,
    far_b_ptr,
    h,
    H0: tl.constexpr,
    H1: tl.constexpr,
    H0P: tl.constexpr,
    MESSAGES: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Biases [HT] of the first layers of both perceptrons."""
    bias = tl.load(near_b_ptr + h, mask=h < H0, other=0.0).to(COMPUTE)
    if MESSAGES == 2:
        is_far = (h >= H0P) & (h < H0P + H1)
        bias += tl.load(far_b_ptr + h - H0P, mask=is_far, other=0.0).to(COMPUTE)
    return bias


@triton.jit
def _first_layers(
    near_w_ptr,
    far_w_ptr,
    c,
    h,
    C: tl.constexpr,
    H0: tl.constexpr,
    H1: tl.constexpr,
    H0P: tl.constexpr,
    MESSAGES: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """First layers [CT, HT] of both perceptrons, side by side."""
    is_c = (c < C)[:, None]
    weight = tl.load(
        near_w_ptr + h[None, :] * C + c[:, None], mask=is_c & (h < H0)[None, :], other=0.0
    ).to(COMPUTE)
    if MESSAGES == 2:
        is_far = (h >= H0P) & (h < H0P + H1)
        weight += tl.load(
            far_w_ptr + (h[None, :] - H0P) * C + c[:, None], mask=is_c & is_far[None, :], other=0.0
        ).to(COMPUTE)
    return weight


@triton.jit
def _second_layer(
    w_ptr,
    c,
    h,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    SHIFT: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Second layer [HT, CT] of the perceptron whose hidden layer of WIDTH begins at SHIFT."""
    mask = ((h >= SHIFT) & (h < SHIFT + WIDTH))[:, None] & (c < C)[None, :]
    place = w_ptr + c[None, :] * WIDTH + (h[:, None] - SHIFT)
    return tl.load(place, mask=mask, other=0.0).to(COMPUTE)


@triton.jit
def _backward_kernel(
    before_ptr,  # (N, CP)
    gates_ptr,  # (N, 4 CP): r z hn n
    hidden_ptr,  # (N, HP)
    sent_ptr,  # (N, MESSAGES * CP)
    d_state_ptr,  # (N, CP)
    d_message_ptr,  # (N, CP)
    d_gates_ptr,  # (N, 4 CP): n r z hn
    d_hidden_ptr,  # (N, HP)
    d_sent_ptr,  # (N, MESSAGES * CP)
    plan_ptr,
    near_w1_ptr,  # as in the forward pass, from here on
    near_b1_ptr,
    near_w2_ptr,
    near_b2_ptr,
    far_w1_ptr,
    far_b1_ptr,
    far_w2_ptr,
    far_b2_ptr,
    ih_ptr,
    hh_ptr,
    ih_b_ptr,
    hh_b_ptr,
    C: tl.constexpr,
    H0: tl.constexpr,
    H1: tl.constexpr,
    CP: tl.constexpr,
    H0P: tl.constexpr,
    HP: tl.constexpr,
    CT: tl.constexpr,
    HT: tl.constexpr,
    MESSAGES: tl.constexpr,
    AGAINST: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """One sweep from its last node: gradients of states, and the factors of those of weights."""
    graph_ptr = plan_ptr + 8
    first = tl.load(graph_ptr + tl.program_id(0)).to(tl.int64)
    last = tl.load(graph_ptr + tl.program_id(0) + 1).to(tl.int64)
    ptr, split_ptr, node_ptr, distance_ptr = _edges(plan_ptr, not AGAINST)
    order_ptr = _order(plan_ptr, AGAINST)
    c = tl.arange(0, CT)
    h = tl.arange(0, HT)
    is_c = c < C
    square = is_c[:, None] & is_c[None, :]  # [outputs, inputs]
    from_c = c[:, None] * C + c[None, :]
    ir = tl.load(ih_ptr + from_c, mask=square, other=0.0).to(COMPUTE)
    iz = tl.load(ih_ptr + C * C + from_c, mask=square, other=0.0).to(COMPUTE)
    inn = tl.load(ih_ptr + 2 * C * C + from_c, mask=square, other=0.0).to(COMPUTE)
    hr = tl.load(hh_ptr + from_c, mask=square, other=0.0).to(COMPUTE)
    hz = tl.load(hh_ptr + C * C + from_c, mask=square, other=0.0).to(COMPUTE)
    hn = tl.load(hh_ptr + 2 * C * C + from_c, mask=square, other=0.0).to(COMPUTE)
    is_near = h < H0
    near_w = tl.load(
        near_w2_ptr + c[:, None] * H0 + h[None, :], mask=is_c[:, None] & is_near[None, :], other=0.0
    ).to(COMPUTE)  # [CT, HT]
    first_w = tl.load(
        near_w1_ptr + h[:, None] * C + c[None, :], mask=is_near[:, None] & is_c[None, :], other=0.0
    ).to(COMPUTE)  # [HT, CT]
    if MESSAGES == 2:
        is_far = (h >= H0P) & (h < H0P + H1)
        far_w = tl.load(
            far_w2_ptr + c[:, None] * H1 + (h[None, :] - H0P),
            mask=is_c[:, None] & is_far[None, :],
            other=0.0,
        ).to(COMPUTE)
        first_w += tl.load(
            far_w1_ptr + (h[:, None] - H0P) * C + c[None, :],
            mask=is_far[:, None] & is_c[None, :],
            other=0.0,
        ).to(COMPUTE)
    kept = c < CP
    place = last - 1
    while place >= first:
        v = first + tl.load(order_ptr + place)
        begin = tl.load(ptr + v)
        end = tl.load(ptr + v + 1)
        split = tl.load(split_ptr + v)
        near = _gather(
            d_message_ptr, first, node_ptr, distance_ptr, begin, split, c, kept, CP, 0,
            False, NEAR, CT, COMPUTE,
        )  # fmt: skip
        sent = sent_ptr + v * MESSAGES * CP + c
        d_sent = d_sent_ptr + v * MESSAGES * CP + c
        d_near = tl.where(tl.load(sent, mask=kept, other=0.0) > 0, near, 0.0)
        tl.store(d_sent, d_near, mask=kept)
        d_hidden = tl.sum(near_w * d_near[:, None], axis=0)
        if MESSAGES == 2:
            both = near + _gather(
                d_message_ptr, first, node_ptr, distance_ptr, split, end, c, kept, CP, 0,
                True, EDGES, CT, COMPUTE,
            )  # fmt: skip
            d_far = tl.where(tl.load(sent + CP, mask=kept, other=0.0) > 0, both, 0.0)
            tl.store(d_sent + CP, d_far, mask=kept)
            d_hidden += tl.sum(far_w * d_far[:, None], axis=0)
        is_h = h < HP
        hidden = tl.load(hidden_ptr + v * HP + h, mask=is_h, other=0.0)
        d_hidden = tl.where(hidden > 0, d_hidden, 0.0)
        tl.store(d_hidden_ptr + v * HP + h, d_hidden, mask=is_h)
        d_state = d_state_ptr + v * CP + c
        grad = tl.load(d_state, mask=kept, other=0.0)
        grad += tl.sum(first_w * d_hidden[:, None], axis=0)
        x = tl.load(before_ptr + v * CP + c, mask=kept, other=0.0)
        gate = gates_ptr + v * 4 * CP + c
        r = tl.load(gate, mask=kept, other=0.0)
        z = tl.load(gate + CP, mask=kept, other=0.0)
        from_state = tl.load(gate + 2 * CP, mask=kept, other=0.0)
        n = tl.load(gate + 3 * CP, mask=kept, other=0.0)
        d_n = grad * (1.0 - z) * (1.0 - n * n)
        d_z = grad * (x - n) * z * (1.0 - z)
        d_hn = d_n * r
        d_r = d_n * from_state * r * (1.0 - r)
        d_gate = d_gates_ptr + v * 4 * CP + c
        tl.store(d_gate, d_n, mask=kept)
        tl.store(d_gate + CP, d_r, mask=kept)
        tl.store(d_gate + 2 * CP, d_z, mask=kept)
        tl.store(d_gate + 3 * CP, d_hn, mask=kept)
        of_r = d_r[:, None]
        of_z = d_z[:, None]
        d_m = tl.sum(inn * d_n[:, None] + ir * of_r + iz * of_z, axis=0)
        tl.store(d_message_ptr + v * CP + c, d_m, mask=kept)
        before = tl.sum(hr * of_r + hz * of_z + hn * d_hn[:, None], axis=0)
        # Only this node reads its own gradient.
        tl.store(d_state, grad * z + before, mask=kept)
        # The gradient of its message is read by others of the program from here on.
        tl.debug_barrier()
        place -= 1
