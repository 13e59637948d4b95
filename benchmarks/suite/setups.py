"""Turn a case into a function that runs it once; everything else is done beforehand."""

from __future__ import annotations

import gc
import importlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import ghn_fast
from ghn_fast.deepnets import SampledNets, meta_batches
from ghn_fast.graph import ArchGraph, clear_cache
from ghn_fast.ops import backend
from suite.cases import Case
from suite.names import find

if TYPE_CHECKING:
    from ghn_fast.ops.expand_params import ParamPlan

Run = Callable[[], Any]
CUTOFF = 50
CLASSES = 10
# Images of a meta-training step; their number changes the candidate networks' share only.
IMAGES, IMAGE_SIZE = 8, 32
_OPS = ("gated_gnn", "expand_params", "shortest_distances", "collate_edges")


class SkippedError(Exception):
    """A case cannot run on this machine; the message says why."""


def problem_of(case: Case) -> str | None:
    """Why a case cannot run here, or ``None`` if it can."""
    if case.device == "cuda" and not torch.cuda.is_available():
        return "there is no CUDA device here"
    if case.path in _OPS:
        # An op is known once its module has been imported.
        importlib.import_module(f"ghn_fast.ops.{case.path}")
        return backend.problem_of(case.path, case.backend, case.device)
    return backend.extension_problem()


@contextmanager
def prepared(case: Case) -> Iterator[Run]:
    """Set a case up, and give the function that runs it once, on its back end.

    Raises:
        SkippedError: If it cannot run on this machine.
    """
    problem = problem_of(case)
    if problem is not None:
        raise SkippedError(problem)
    torch.manual_seed(0)
    with ghn_fast.backend(case.backend):
        run = SETUPS[case.path](case)
        if case.part == "forward":
            run = _without_gradient(run)
        gc.collect()
        yield run


@cache
def graphs_of(kind: str, count: int) -> list[ArchGraph]:
    """Make graphs of one kind: a torchvision network by name, or the first of a sampled split."""
    if kind in ("train", "deep"):
        nets = SampledNets(kind, count, seed=1)
        return [nets[index].graph for index in range(count)]
    return [ghn_fast.capture(network_of(kind))] * count


def network_of(kind: str) -> nn.Module:
    """Build a torchvision network with as many classes as the hypernetwork predicts."""
    import torchvision

    return torchvision.models.get_model(kind, num_classes=CLASSES)


def blocks_of(plan: ParamPlan, device: str, dtype: torch.dtype) -> list[Tensor]:
    """Make random blocks that a plan can read."""
    sizes: dict[int, int] = {}
    for row in plan.rows:
        end = row.source + prod(row.block_shape)
        sizes[row.block] = max(sizes.get(row.block, 0), end)
    return [
        torch.randn(sizes.get(block, 0)).to(device, dtype).requires_grad_()
        for block in range(max(sizes, default=-1) + 1)
    ]


def _without_gradient(run: Run) -> Run:
    def forward() -> Any:
        with torch.no_grad():
            return run()

    return forward


def _gradient(out: Tensor | list[Tensor], inputs: list[Tensor]) -> Run:
    """Run the backward pass alone, of an output that is computed once."""
    outputs = [out] if isinstance(out, Tensor) else out
    directions = [torch.randn_like(tensor) for tensor in outputs]
    return lambda: torch.autograd.grad(
        outputs, inputs, directions, retain_graph=True, allow_unused=True
    )


def _gated_gnn(case: Case) -> Run:
    batch = find("GraphBatch")(graphs_of(case.graph, case.meta_batch)).to(case.device)
    dtype = getattr(torch, case.dtype)
    gnn = find("GatedGNN")(ghn_fast.GHNConfig(hid=case.hid)).to(case.device, dtype)
    x = torch.randn(batch.num_nodes, case.hid).to(case.device, dtype).requires_grad_()
    if case.part == "backward":
        return _gradient(gnn(x, batch), [x, *gnn.parameters()])
    return lambda: gnn(x, batch)


def _expand_params(case: Case) -> Run:
    expand_params, graphs = find("expand_params"), graphs_of(case.graph, case.meta_batch)
    plan = find("plan_decoding")(graphs, ghn_fast.GHNConfig()).params
    blocks = blocks_of(plan, case.device, getattr(torch, case.dtype))
    if case.part == "backward":
        return _gradient(expand_params(blocks, plan), blocks)
    return lambda: expand_params(blocks, plan)


def _shortest_distances(case: Case) -> Run:
    shortest_distances = find("shortest_distances")
    (graph,) = graphs_of(case.graph, 1)
    edges = graph.edges[graph.edges[:, 2] == 1, :2].contiguous()
    return lambda: shortest_distances(edges, graph.num_nodes, CUTOFF)


def _collate_edges(case: Case) -> Run:
    collate_edges = find("collate_edges")
    graphs = graphs_of(case.graph, case.meta_batch)
    offsets = [0, *itertools.accumulate(graph.num_nodes for graph in graphs)]
    edges = [graph.edges for graph in graphs]
    return lambda: collate_edges(edges, offsets)


def _decode(case: Case) -> Run:
    graphs = graphs_of(case.graph, case.meta_batch)
    ghn, decode = _hypernetwork(case), find("decode")
    plan = find("plan_decoding")(graphs, ghn.config)
    nodes = sum(graph.num_nodes for graph in graphs)
    x = torch.randn(nodes, case.hid).to(case.device).requires_grad_()
    if case.part == "backward":
        inputs = [x, *ghn.blocks.parameters(), *ghn.vectors.parameters()]
        return _gradient(decode(x, plan, ghn.blocks, ghn.vectors), inputs)
    return lambda: decode(x, plan, ghn.blocks, ghn.vectors)


def _hypernetwork(case: Case) -> ghn_fast.GHN:
    return ghn_fast.GHN(ghn_fast.GHNConfig(hid=case.hid, num_classes=CLASSES)).to(case.device)


def _capture(case: Case) -> Run:
    network = network_of(case.graph)
    return lambda: ghn_fast.capture(network)


def _predict_warm(case: Case) -> Run:
    network, ghn = network_of(case.graph).to(case.device), _hypernetwork(case)
    return lambda: ghn.predict(network)


def _predict_cold(case: Case) -> Run:
    network, ghn = network_of(case.graph).to(case.device), _hypernetwork(case)

    def run() -> None:
        clear_cache()
        ghn.predict(network)

    return run


def _loader(case: Case) -> Run:
    nets = SampledNets("train", 10**4, seed=1)
    # The same few steps again and again, whatever number of calls a measurement makes: step 0 is
    # a function of the seed.

    def run() -> list[ArchGraph]:
        items = next(meta_batches(nets, case.meta_batch, seed=0))
        return [item.graph for item in items]

    return run


def _generator(case: Case) -> Run:
    make_record = find("make_record")
    return lambda: [make_record(case.graph, index, seed=1) for index in range(2)]


def _meta_step(case: Case) -> Run:
    nets = SampledNets("train", 10**4, seed=1)
    items = next(meta_batches(nets, case.meta_batch, seed=3))
    ghn = _hypernetwork(case).train()
    optimizer = torch.optim.Adam(ghn.parameters(), 1e-3)
    images = torch.randn(IMAGES, 3, IMAGE_SIZE, IMAGE_SIZE, device=case.device)
    targets = torch.arange(IMAGES, device=case.device) % CLASSES
    # One thread, so that the work is that of one process on one core.
    trainer = find("MetaTrainer")(
        ghn,
        optimizer,
        meta_batch=case.meta_batch,
        grad_clip=5.0,
        executor=find("Executor")(torch.device(case.device), parallel=1),
    )
    return lambda: trainer.step(items, images, targets)


SETUPS: dict[str, Callable[[Case], Run]] = {
    "gated_gnn": _gated_gnn,
    "expand_params": _expand_params,
    "shortest_distances": _shortest_distances,
    "collate_edges": _collate_edges,
    "decode": _decode,
    "capture": _capture,
    "predict_cold": _predict_cold,
    "predict_warm": _predict_warm,
    "loader": _loader,
    "generator": _generator,
    "meta_step": _meta_step,
}
