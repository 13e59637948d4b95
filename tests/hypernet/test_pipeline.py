"""What is prepared of a graph, for how long it is kept, and that all calls take one way."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

import ghn_fast
from ghn_fast.capturing import clear_cache
from ghn_fast.graph import ArchGraph
from ghn_fast.hypernet import pipeline
from ghn_fast.hypernet.decode import decode
from networks import SmallCNN

CONFIG = ghn_fast.GHNConfig(hid=8, max_shape=(16, 16, 5, 5))


@pytest.fixture
def ghn() -> ghn_fast.GHN:
    clear_cache()
    pipeline._kept.clear()
    return ghn_fast.GHN(CONFIG).eval()


def live_graphs() -> int:
    gc.collect()
    return sum(type(item) is ArchGraph for item in gc.get_objects())


def distinct(number: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 2 + number, 1), nn.Flatten(), nn.Linear(2 + number, 10))


def test_graphs_of_many_architectures_do_not_stay(ghn: ghn_fast.GHN) -> None:
    before, most = live_graphs(), pipeline._kept.capacity
    count = 2 * most
    for number in range(count):
        ghn(distinct(number), input_shape=(3, 1, 1))
    assert len(pipeline._kept) == most
    assert live_graphs() - before <= most
    clear_cache()
    pipeline._kept.clear()
    assert live_graphs() <= before


def test_a_network_without_a_key_leaves_nothing(ghn: ghn_fast.GHN) -> None:
    model = SmallCNN()
    model.anything = object()
    before = live_graphs()
    for _ in range(3):
        ghn(model)
    assert live_graphs() == before
    assert len(pipeline._kept) == 0


def test_networks_and_hypernetworks_go_with_their_last_user(ghn: ghn_fast.GHN) -> None:
    other, model = ghn_fast.GHN(CONFIG), SmallCNN()
    other(model)
    gone = weakref.ref(other), weakref.ref(model)
    del other, model
    gc.collect()
    assert [reference() for reference in gone] == [None, None]


def test_prepared_graphs_are_shared_by_what_they_depend_on(ghn: ghn_fast.GHN) -> None:
    graph = ghn_fast.capture(SmallCNN())
    prepared = pipeline.prepare(ghn, [graph], keep=True)
    assert pipeline.prepare(ghn, [graph], keep=True) is prepared
    # The weights do not count, the configuration does.
    assert pipeline.prepare(ghn_fast.GHN(CONFIG), [graph], keep=True) is prepared
    larger = ghn_fast.GHN(ghn_fast.GHNConfig(hid=16, max_shape=(16, 16, 5, 5)))
    assert pipeline.prepare(larger, [graph], keep=True) is not prepared
    without_head = pipeline.prepare(ghn, [graph], head=False, keep=True)
    assert len(without_head.plan.params.rows) == len(prepared.plan.params.rows) - 2
    assert pipeline.prepare(ghn, [graph]) is not prepared


def test_a_forward_pass_is_the_arrows_in_their_order(ghn: ghn_fast.GHN) -> None:
    graphs = [ghn_fast.capture(SmallCNN()), ghn_fast.capture(SmallCNN(width=8))]
    batch, shapes = pipeline.collate(ghn, graphs)
    x = ghn.norm(ghn.propagator(ghn.encoder(batch.op_types, shapes), batch))
    assert torch.equal(ghn.embed(graphs), x)
    prepared = pipeline.prepare(ghn, graphs)
    want = decode(x, prepared.plan, ghn.blocks, ghn.vectors)
    got = pipeline.forward(ghn, prepared)
    assert len(want) == len(prepared.plan.groups)
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))
