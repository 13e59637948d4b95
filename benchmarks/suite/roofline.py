"""Roofline: what an op has to move and compute, what the machine can, and how near it comes.

The least time of an op is that of its bytes at the bandwidth of a copy or of its operations at the
rate of a matrix product, whichever is longer; the achieved part is that time over the measured one.
Bytes are those of inputs and outputs, each once: what stays in caches costs nothing. Both ceilings
are measured on the machine, with as many threads as the ops get.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any
from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode

from ghn_fast.graph.batch import GraphBatch
from ghn_fast.hypernet import linear
from ghn_fast.hypernet.config import GHNConfig
from ghn_fast.hypernet.decode_plan import plan_decoding
from ghn_fast.hypernet.propagate import GatedGNN
from suite.cases import Case
from suite.clock import in_turn, quartile
from suite.setups import CLASSES, graphs_of, prepared

PATHS = ("gated_gnn", "expand_params", "shortest_distances", "collate_edges", "decode")
_BYTES = 256 * 10**6
_SIDE = {"cpu": 1024, "cuda": 8192}
_FLOAT = 4
# An edge as a sweep needs it: where it comes from, and its weight.
_EDGE = 8


@dataclass(frozen=True)
class Ceilings:
    """What a device can: bytes per second of filling and copying, operations per second.

    Attributes:
        fill: Bytes written per second.
        copy: Bytes read and written per second.
        flops: Operations per second of a float32 matrix product.
    """

    fill: float
    copy: float
    flops: float


@dataclass(frozen=True)
class Work:
    """What an op has to do at least."""

    bytes: int
    flops: int

    def seconds(self, ceilings: Ceilings) -> float:
        """Least time."""
        return max(self.bytes / ceilings.copy, self.flops / ceilings.flops)

    def bound(self, ceilings: Ceilings) -> str:
        """What the least time comes from."""
        memory = self.bytes / ceilings.copy >= self.flops / ceilings.flops
        return "memory" if memory else "arithmetic"


def best(run: Callable[[], Any], device: str, repeats: int = 15) -> float:
    """Measure the lower quartile of the seconds of a call."""
    return quartile(in_turn({"": run}, repeats, 0.02, device)[""])


def measure_ceilings(device: str) -> Ceilings:
    """Measure bandwidths beyond the caches, and the rate of a large matrix product."""
    source = torch.ones(_BYTES // _FLOAT, device=device)
    target = torch.empty_like(source)
    side = _SIDE[device]
    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    product = torch.empty_like(a)
    seconds = best(lambda: torch.mm(a, b, out=product), device)
    if device == "cpu" and linear._has_onednn():
        # The faster of the two libraries that products go to (ghn_fast/hypernet/linear.py).
        onednn = partial(torch.ops.mkldnn._linear_pointwise, a, b, None, "none", [], "")
        seconds = min(seconds, best(onednn, device))
    return Ceilings(
        fill=_BYTES / best(lambda: target.fill_(1.0), device),
        copy=2 * _BYTES / best(lambda: target.copy_(source), device),
        flops=2 * side**3 / seconds,
    )


def work_of(case: Case) -> Work:
    """Count bytes and operations of an op.

    Raises:
        ValueError: If the path is not one of :data:`PATHS`.
    """
    graphs = graphs_of(case.graph, case.meta_batch)
    if case.path == "gated_gnn":
        return _gated_gnn(case, GraphBatch(graphs))
    if case.path == "expand_params":
        plan = plan_decoding(graphs, GHNConfig()).params
        used = {(r.block, r.source): prod(map(min, r.block_shape, r.shape)) for r in plan.rows}
        elements, read = plan.numel, sum(used.values())
        if case.part == "forward":
            return Work(_FLOAT * (elements + read), elements)
        # Reads the gradient and the blocks, writes the gradient of the blocks.
        return Work(_FLOAT * (elements + 2 * read), 2 * elements)
    if case.path in ("shortest_distances", "collate_edges"):
        rows = sum(graph.num_edges for graph in graphs)
        if case.path == "collate_edges":
            return Work(48 * rows, 2 * rows)
        edges = sum(int((graph.edges[:, 2] == 1).sum()) for graph in graphs)
        # Integers; how many operations a search needs depends on the graph, and is not counted.
        return Work(24 * rows + 16 * edges, 0)
    if case.path == "decode":
        return _decode(case)
    raise ValueError(f"path: got {case.path!r}, needs one of {', '.join(PATHS)}")


def _gated_gnn(case: Case, batch: GraphBatch) -> Work:
    nodes, edges, hid = batch.num_nodes, len(batch.edges), case.hid
    hops = int((batch.edges[:, 2] == 1).sum())
    hidden = hid // 2
    weights = sum(p.numel() for p in GatedGNN(GHNConfig(hid=hid)).parameters())
    # Two perceptrons and a GRU per node, one multiplication and addition per edge and channel.
    per_node = 2 * 2 * (2 * hid * hidden) + 2 * 6 * hid * hid
    flops = 2 * (nodes * per_node + 2 * edges * hid + hops * hid)
    moved = 2 * _FLOAT * nodes * hid + _FLOAT * weights + 2 * _EDGE * edges
    if case.part == "forward":
        return Work(moved, flops)
    # Gradients of inputs and of weights: two products for each one; one more input and output.
    return Work(moved + _FLOAT * (nodes * hid + weights), 2 * flops)


def _decode(case: Case) -> Work:
    from ghn_fast import GHN, backend

    config = GHNConfig(hid=case.hid, num_classes=CLASSES)
    ghn = GHN(config)
    weights = [*ghn.blocks.parameters(), *ghn.vectors.parameters()]
    graphs = graphs_of(case.graph, case.meta_batch)
    nodes = sum(graph.num_nodes for graph in graphs)
    elements = sum(p.numel() for p in weights) + nodes * case.hid
    # Operations are counted in torch's own products alone.
    with (
        mock.patch.object(linear, "_has_onednn", lambda: False),
        prepared(case) as run,
        backend("reference"),
        FlopCounterMode(display=False) as counter,
    ):
        found = run()
    if case.part == "forward":
        elements += sum(block.numel() for block in found)
    else:
        # Weights are read and their gradients written; the gradient of the blocks is read.
        plan = plan_decoding(graphs, config).params
        ends = {r.block: 0 for r in plan.rows}
        for row in plan.rows:
            ends[row.block] = max(ends[row.block], row.source + prod(row.block_shape))
        elements = 2 * elements + sum(ends.values())
    return Work(_FLOAT * elements, counter.get_total_flops())


def roofline_of(case: Case, seconds: float, ceilings: Ceilings) -> dict[str, Any]:
    """The work of a case, its least time, and the part of the ceiling that it achieves."""
    work = work_of(case)
    least = work.seconds(ceilings)
    return {
        "bytes": work.bytes,
        "flops": work.flops,
        "least_seconds": least,
        "bound": work.bound(ceilings),
        "achieved": least / seconds,
    }
