"""The cases in the straightforward way: the same inputs and weights, what one would write first."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

import ghn_fast
from ghn_fast.graph.batch import GraphBatch
from ghn_fast.hypernet.config import GHNConfig
from ghn_fast.hypernet.propagate import GatedGNN
from suite.cases import Case
from suite.peers.node_by_node import Baseline
from suite.peers.prediction import Predictor, capture
from suite.peers.training import straightforward_step
from suite.setups import Run, architectures, graphs_of, hypernetwork, images_for, network_of


def _gated_gnn(case: Case) -> Run:
    batch = GraphBatch(graphs_of(case.graph, case.meta_batch))
    walk = Baseline(batch.edges, batch.offsets).to(case.device)
    dtype = getattr(torch, case.dtype)
    gnn = GatedGNN(GHNConfig(hid=case.hid)).to(case.device, dtype)
    x = torch.randn(batch.num_nodes, case.hid).to(case.device, dtype).requires_grad_()

    def forward() -> torch.Tensor:
        return walk(x, gnn.message, gnn.virtual_message, gnn.update)

    if case.part == "forward":
        return forward
    out, inputs = forward(), [x, *gnn.parameters()]
    direction = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, inputs, direction, retain_graph=True)


def _predict_cold(case: Case) -> Run:
    network, predict = network_of(case.graph), Predictor(hypernetwork(case))
    return lambda: predict(network)


def _predict_warm(case: Case) -> Run:
    network, predict = network_of(case.graph), Predictor(hypernetwork(case))
    graph = capture(network)
    return lambda: predict(network, graph)


def _meta_step(case: Case) -> Run:
    steps, (images, targets) = architectures(case), images_for(case)
    ghn: ghn_fast.GHN = hypernetwork(case).train()
    optimizer = torch.optim.Adam(ghn.parameters(), 1e-3)
    walks: dict[int, Baseline] = {}

    def run() -> float:
        items = next(steps)
        graphs = [item.graph for item in items]
        if id(items) not in walks:
            batch = GraphBatch(graphs)
            walks[id(items)] = Baseline(batch.edges, batch.offsets)
        step = straightforward_step(
            ghn, optimizer, items, graphs, walks[id(items)], images, targets, math.inf
        )
        return step.loss

    return run


PLAIN: dict[str, Callable[[Case], Run]] = {
    "gated_gnn": _gated_gnn,
    "predict_cold": _predict_cold,
    "predict_warm": _predict_warm,
    "meta_step": _meta_step,
}
