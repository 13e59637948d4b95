"""What cases are measured against computes the same: message passing, prediction, a step."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from suite.peers.node_by_node import Baseline
from suite.peers.prediction import Predictor
from suite.peers.training import straightforward_step
from suite.setups import graphs_of
from torch import nn

import ghn_fast
from ghn_fast.deepnets import SampledNets, meta_batches
from ghn_fast.graph.batch import GraphBatch
from ghn_fast.hypernet.propagate import GatedGNN
from ghn_fast.metatrain.candidate_run import Job
from ghn_fast.metatrain.executor import Executor
from ghn_fast.metatrain.step import MetaTrainer
from ghn_fast.ops import network_program
from tolerances import assert_close


def test_message_passing_node_by_node() -> None:
    batch = GraphBatch(graphs_of("train", 2))
    gnn = GatedGNN(ghn_fast.GHNConfig(hid=16))
    x = torch.randn(batch.num_nodes, 16, requires_grad=True)
    walk = Baseline(batch.edges, batch.offsets)
    found, wanted = gnn(x, batch), walk(x, gnn.message, gnn.virtual_message, gnn.update)
    assert_close(found, wanted, context="ghn")
    direction = torch.randn_like(x)
    inputs = [x, *gnn.parameters()]
    for a, b in zip(
        torch.autograd.grad(found, inputs, direction),
        torch.autograd.grad(wanted, inputs, direction),
        strict=True,
    ):
        assert_close(a, b, context="ghn")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_prediction(name: str) -> None:
    import torchvision

    network = torchvision.models.get_model(name, num_classes=10)
    ghn = ghn_fast.GHN(ghn_fast.GHNConfig(num_classes=10))
    slow = Predictor(ghn)(copy.deepcopy(network))
    ghn.predict(network)
    wanted = dict(slow.named_parameters())
    for name, parameter in network.named_parameters():
        assert_close(parameter, wanted[name], context="ghn", name=name)


def test_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    # Both ways draw different masks, so results are compared without any.
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, x: x)
    monkeypatch.setattr(network_program, "dropout", lambda x, p, generator: x)
    monkeypatch.setattr(Job, "compiled", False)
    items = next(meta_batches(SampledNets("train", 100, seed=1), 2, seed=1))
    graphs = [item.graph for item in items]
    batch = GraphBatch(graphs)
    images, targets = torch.randn(4, 3, 32, 32), torch.arange(4)
    slow = ghn_fast.GHN(ghn_fast.GHNConfig(hid=16, max_shape=(32, 32, 11, 11))).train()
    fast = copy.deepcopy(slow)
    step = straightforward_step(
        slow, torch.optim.Adam(slow.parameters(), 1e-3), items, graphs,
        Baseline(batch.edges, batch.offsets), images, targets, 5.0,
    )  # fmt: skip
    trainer = MetaTrainer(
        fast, torch.optim.Adam(fast.parameters(), 1e-3), meta_batch=2, grad_clip=5.0,
        executor=Executor(torch.device("cpu"), parallel=1),
    )  # fmt: skip
    assert_close(trainer.step(items, images, targets).loss, step.loss, context="ghn")
    pairs = itertools.zip_longest(fast.parameters(), slow.parameters())
    # In deep networks with ReLUs the gradient depends on the signs of values near zero: the worst
    # element differs by more than one op's rounding.
    scales = [(a.grad, b.grad) for a, b in pairs if a.grad is not None and b.grad is not None]
    assert len(scales) > 10
    worst = max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in scales)
    assert worst < 3e-2 and not math.isnan(worst)  # compared by hand: signs near zero differ
