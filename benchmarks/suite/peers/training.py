"""A meta-training step as one writes it first: what a step is measured against.

Networks are built in every step, with parameters of their own, which the predicted tensors then
replace one by one. Nodes pass messages one position at a time, and every parameter is decoded and
tiled by itself, in plain PyTorch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ghn_fast
from ghn_fast.graph import ArchGraph
from ghn_fast.graph.batch import GraphBatch
from ghn_fast.hypernet.decode import decode
from ghn_fast.hypernet.decode_plan import plan_decoding
from ghn_fast.ops.expand_params import Kind, PlanRow
from suite.peers.node_by_node import Baseline


class Step(NamedTuple):
    """Mean loss, wall-clock seconds in all, and those of the candidate networks alone."""

    loss: float
    seconds: float
    network_seconds: float


def straightforward_step(
    ghn: ghn_fast.GHN,
    optimizer: torch.optim.Optimizer,
    architectures: Sequence[Any],
    graphs: Sequence[ArchGraph],
    messages: Baseline,
    images: Tensor,
    targets: Tensor,
    grad_clip: float,
) -> Step:
    """Take one step; graphs and the indices of message passing (``messages``) are at hand."""
    start = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    with ghn_fast.backend("reference"):
        tensors = predict(ghn, graphs, messages)
    losses, found, network_seconds = [], [], 0.0
    for architecture, predicted in zip(architectures, tensors, strict=True):
        network = architecture.build().train()
        leaves = {name: value.detach().requires_grad_() for name, value in predicted.items()}
        replace_parameters(network, leaves)
        before = time.perf_counter()
        loss = F.cross_entropy(network(images), targets)
        (loss / len(architectures)).backward()
        losses.append(float(loss.detach()))
        network_seconds += time.perf_counter() - before
        found.append({name: leaf.grad for name, leaf in leaves.items()})
    outputs, gradients = [], []
    for predicted, gradient in zip(tensors, found, strict=True):
        for name, value in predicted.items():
            if gradient[name] is not None:
                outputs.append(value)
                gradients.append(gradient[name])
    torch.autograd.backward(outputs, gradients)
    nn.utils.clip_grad_norm_(ghn.parameters(), grad_clip)
    optimizer.step()
    seconds = time.perf_counter() - start
    return Step(math.fsum(losses) / len(losses), seconds, network_seconds)


def predict(
    ghn: ghn_fast.GHN, graphs: Sequence[ArchGraph], messages: Baseline
) -> list[dict[str, Tensor]]:
    """Predict the parameters of a meta-batch by name, one tensor after the other."""
    batch = GraphBatch(graphs).to(ghn.device)
    # Its parts are those of a gated GNN.
    gnn: Any = ghn.propagator
    x = ghn.encoder(batch.op_types, ghn.encoder.shape_index(batch.shapes).to(ghn.device))
    x = ghn.norm(messages(x, gnn.message, gnn.virtual_message, gnn.update))
    plan = plan_decoding(batch.graphs, ghn.config)
    blocks = decode(x, plan, ghn.blocks, ghn.vectors)
    rows = iter(plan.params.rows)
    result = []
    for ranges in plan.ranges:
        named = {}
        for name, (_, shape) in ranges.items():
            row = next(rows)
            named[name] = tile(blocks[row.block], row).reshape(shape)
        result.append(named)
    return result


def tile(blocks: Tensor, row: PlanRow) -> Tensor:
    """Make one parameter: repeat its block until it is large enough, cut it off, normalise."""
    size = math.prod(row.block_shape)
    block = blocks.reshape(-1)[row.source : row.source + size].view(row.block_shape)
    repeats = [-(-want // have) for want, have in zip(row.shape, row.block_shape, strict=True)]
    out, in_, height, width = row.shape
    value = block.repeat(repeats)[:out, :in_, :height, :width]
    if row.kind is Kind.WEIGHT:
        return value * row.scale
    if row.kind is Kind.SCALE:
        return 2 * torch.sigmoid(0.5 * value)
    if row.kind is Kind.SHIFT:
        return torch.tanh(0.2 * value)
    return value


def replace_parameters(network: nn.Module, values: dict[str, Tensor]) -> None:
    """Put tensors in the places of a network's own parameters."""
    for name, value in values.items():
        path, _, attribute = name.rpartition(".")
        module = network.get_submodule(path)
        delattr(module, attribute)
        setattr(module, attribute, value)
