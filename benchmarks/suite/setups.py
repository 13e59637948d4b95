"""Turn a case into a function that runs it once; everything else is done beforehand."""

from __future__ import annotations

import atexit
import gc
import importlib
import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import ghn_fast
from ghn_fast.deepnets import DeepNets, SampledNets, meta_batches
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
# Architectures of the steps that never see one twice, in one process; and of a file.
FRESH, FILE_COUNT = 64, 200
_OPS = ("gated_gnn", "expand_params", "shortest_distances", "collate_edges")


class SkippedError(Exception):
    """A case cannot run on this machine; the message says why."""


def problem_of(case: Case) -> str | None:
    """Why a case cannot run here, or ``None`` if it can."""
    if case.device == "cuda" and not torch.cuda.is_available():
        return "there is no CUDA device here"
    if case.backend == "straightforward":
        return None
    if case.path in _OPS:
        # An op is known once its module has been imported.
        importlib.import_module(f"ghn_fast.ops.{case.path}")
        return backend.problem_of(case.path, case.backend, case.device)
    # Revisions before it had all in one part.
    library = getattr(backend, "library_problem", backend.extension_problem)
    return library() or backend.extension_problem()


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
    is_plain = case.backend == "straightforward"
    with ghn_fast.backend("reference" if is_plain else case.backend):
        if is_plain:
            from suite.peers.plain import PLAIN as setups
        else:
            setups = SETUPS
        run = setups[case.path](case)
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


def stack(layers: int, width: int = 8192, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Build ``layers`` linear layers of ``width`` squared parameters, norms between, and a head."""
    torch.set_default_dtype(dtype)
    try:
        modules: list[nn.Module] = [nn.Linear(64, width)]
        for _ in range(layers):
            modules += [nn.LayerNorm(width), nn.ReLU(), nn.utils.skip_init(nn.Linear, width, width)]
        network = nn.Sequential(*modules, nn.Linear(width, CLASSES))
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.5)
    return network


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
    ghn, decode = hypernetwork(case), find("decode")
    plan = find("plan_decoding")(graphs, ghn.config)
    nodes = sum(graph.num_nodes for graph in graphs)
    x = torch.randn(nodes, case.hid).to(case.device).requires_grad_()
    if case.part == "backward":
        inputs = [x, *ghn.blocks.parameters(), *ghn.vectors.parameters()]
        return _gradient(decode(x, plan, ghn.blocks, ghn.vectors), inputs)
    return lambda: decode(x, plan, ghn.blocks, ghn.vectors)


def hypernetwork(case: Case) -> ghn_fast.GHN:
    """Build the hypernetwork of a case, with random weights."""
    return ghn_fast.GHN(ghn_fast.GHNConfig(hid=case.hid, num_classes=CLASSES)).to(case.device)


def _graph_attention(case: Case) -> Run:
    graph_attention = find("graph_attention")
    batch = find("GraphBatch")(graphs_of(case.graph, case.meta_batch)).to(case.device)
    pairs, heads = batch.pairs, 8  # those of GHN-3-T
    shape = (batch.num_nodes, 3, heads, case.hid // heads)
    qkv = torch.randn(shape).to(case.device).requires_grad_()
    table = torch.randn(2 * pairs.cutoff + 1, heads).to(case.device).requires_grad_()
    given = (qkv, pairs.codes, pairs.offsets, table)
    if case.part == "backward":
        return _gradient(graph_attention(*given), [qkv, table])
    return lambda: graph_attention(*given)


def _activation(case: Case) -> Tensor:
    """Activations of a candidate network at 16 pixels, as they are stored."""
    x = torch.randn(IMAGES, case.hid, 16, 16, dtype=getattr(torch, case.dtype))
    return x.to(case.device, memory_format=torch.channels_last).requires_grad_()


def _depthwise_conv2d(case: Case) -> Run:
    depthwise_conv2d, size = find("depthwise_conv2d"), int(case.graph[0])
    x = _activation(case)
    weight = torch.randn(case.hid, 1, size, size, dtype=x.dtype, device=x.device).requires_grad_()
    if case.part == "backward":
        return _gradient(depthwise_conv2d(x, weight, 1, size // 2), [x, weight])
    return lambda: depthwise_conv2d(x, weight, 1, size // 2)


def _batch_norm_act(case: Case) -> Run:
    batch_norm_act, x = find("batch_norm_act"), _activation(case)
    weight, bias = (torch.rand(case.hid, device=x.device).requires_grad_() for _ in range(2))
    if case.part == "backward":
        return _gradient(batch_norm_act(x, weight, bias, relu=True), [x, weight, bias])
    return lambda: batch_norm_act(x, weight, bias, relu=True)


def _capture(case: Case) -> Run:
    network = network_of(case.graph)
    return lambda: ghn_fast.capture(network)


def _predict_warm(case: Case) -> Run:
    network, ghn = network_of(case.graph).to(case.device), hypernetwork(case)
    return lambda: ghn.predict(network)


def _predict_cold(case: Case) -> Run:
    network, ghn = network_of(case.graph).to(case.device), hypernetwork(case)

    def run() -> None:
        clear_cache()
        ghn.predict(network)

    return run


def _compile_plan(case: Case) -> Run:
    network, ghn = network_of(case.graph).to(case.device), hypernetwork(case)
    if case.part == "build":
        return lambda: ghn.compile_plan(network)
    return ghn.compile_plan(network)


def _predict_large(case: Case) -> Run:
    network, ghn = stack(4, dtype=getattr(torch, case.dtype)), hypernetwork(case)
    return lambda: ghn.predict(network, input_shape=(64,))


@cache
def packed() -> DeepNets:
    """A packed file of architectures, in a folder that goes with the process."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    find("generate")("train", 500, folder.name, format="packed")
    return DeepNets(folder.name, "train")


def _loader(case: Case) -> Run:
    nets = packed() if case.graph == "packed" else SampledNets("train", 10**4, seed=1)
    # The same few steps again and again, whatever number of calls a measurement makes: step 0 is
    # a function of the seed.

    def run() -> list[ArchGraph]:
        items = next(meta_batches(nets, case.meta_batch, seed=0))
        return [item.graph for item in items]

    return run


def _generator(case: Case) -> Run:
    if case.part == "record":
        make_record = find("make_record")
        return lambda: [make_record(case.graph, index, seed=1) for index in range(2)]
    generate = find("generate")

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            generate(case.graph, FILE_COUNT, folder, format="packed")

    return run


def architectures(case: Case) -> Iterator[list[Any]]:
    """Yield the meta-batches of the steps of a case: always one, or ever new ones (``fresh``)."""
    nets = SampledNets("train", 10**4, seed=1)
    batches = meta_batches(nets, case.meta_batch, seed=3)
    if case.graph != "fresh":
        return itertools.repeat(next(batches))
    made = list(itertools.islice(batches, max(FRESH // case.meta_batch, 12)))
    for item in itertools.chain.from_iterable(made):
        # A loader has made the graphs before a step begins.
        item.graph  # noqa: B018
    return itertools.cycle(made)


def images_for(case: Case) -> tuple[Tensor, Tensor]:
    """Make the images and targets of a step."""
    images = torch.randn(IMAGES, 3, IMAGE_SIZE, IMAGE_SIZE, device=case.device)
    return images, torch.arange(IMAGES, device=case.device) % CLASSES


def _meta_step(case: Case) -> Run:
    steps, (images, targets) = architectures(case), images_for(case)
    ghn = hypernetwork(case).train()
    # One thread, so that the work is that of one process on one core.
    trainer = find("MetaTrainer")(
        ghn,
        torch.optim.Adam(ghn.parameters(), 1e-3),
        meta_batch=case.meta_batch,
        grad_clip=5.0,
        executor=find("Executor")(torch.device(case.device), parallel=1),
    )
    return lambda: trainer.step(next(steps), images, targets)


SETUPS: dict[str, Callable[[Case], Run]] = {
    "gated_gnn": _gated_gnn,
    "expand_params": _expand_params,
    "shortest_distances": _shortest_distances,
    "collate_edges": _collate_edges,
    "decode": _decode,
    "graph_attention": _graph_attention,
    "depthwise_conv2d": _depthwise_conv2d,
    "batch_norm_act": _batch_norm_act,
    "capture": _capture,
    "predict_cold": _predict_cold,
    "predict_warm": _predict_warm,
    "compile_plan": _compile_plan,
    "predict_large": _predict_large,
    "loader": _loader,
    "generator": _generator,
    "meta_step": _meta_step,
}
