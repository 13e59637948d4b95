"""Plans of decoding: what a graph adds is found once, and put behind that of others."""

from __future__ import annotations

import gc
from math import prod

import pytest
import torch

import ghn_fast
from ghn_fast.deepnets import SampledNets
from ghn_fast.hypernet import decode_plan
from ghn_fast.hypernet.decode_plan import plan_decoding
from ghn_fast.hypernet.encode import NodeEncoder
from ghn_fast.ops.decode_blocks import Decoder
from ghn_fast.ops.expand_params import ParamPlan

CONFIG = ghn_fast.GHNConfig(hid=8, max_shape=(16, 16, 5, 5))


@pytest.fixture(scope="module")
def graphs() -> list[ghn_fast.ArchGraph]:
    nets = SampledNets("train", 12, seed=1)
    found = sorted((nets[index].graph for index in range(12)), key=lambda g: g.num_nodes)
    return found[:3]


def test_a_batch_is_its_graphs_one_behind_the_other(graphs: list[ghn_fast.ArchGraph]) -> None:
    batch = [graphs[0], graphs[2], graphs[0], graphs[1]]
    joined = plan_decoding(batch, CONFIG)
    groups = list(joined.groups)
    first_node = first_row = end = 0
    met: dict[int, int] = dict.fromkeys(range(len(groups)), 0)
    for graph, places in zip(batch, joined.ranges, strict=True):
        alone = plan_decoding([graph], CONFIG)
        own_groups = list(alone.groups)
        for group, nodes in alone.groups.items():
            number = groups.index(group)
            begin = met[number]
            found = joined.groups[group][begin : begin + len(nodes)]
            assert found == [first_node + node for node in nodes]
        for row, own in zip(
            joined.params.rows[first_row:], alone.params.rows, strict=False
        ):  # those of the graphs behind it are left
            group = own_groups[own.block]
            number = groups.index(group)
            per_node = prod(own.block_shape) * (2 if group.decoder == Decoder.VECTOR else 1)
            assert row.block == number
            assert row.source == own.source + met[number] * per_node
            assert row == own._replace(block=row.block, source=row.source, offset=end + own.offset)
        for (name, (offset, shape)), (own_name, (own_offset, own_shape)) in zip(
            places.items(), alone.ranges[0].items(), strict=True
        ):
            assert (name, offset, shape) == (own_name, end + own_offset, own_shape)
        for group, nodes in alone.groups.items():
            met[groups.index(group)] += len(nodes)
        first_node += graph.num_nodes
        first_row += alone.params.num_rows
        end += alone.params.numel
    assert first_row == joined.params.num_rows == len(joined.params.rows)
    assert end == joined.params.numel
    every = [node for nodes in joined.groups.values() for node in nodes]
    assert joined.nodes(torch.device("cpu")).tolist() == every


def test_a_plan_from_its_table_is_the_plan(graphs: list[ghn_fast.ArchGraph]) -> None:
    plan = plan_decoding(graphs[:1], CONFIG).params
    again = ParamPlan(plan.rows, plan.numel)
    assert torch.equal(plan.table, again.table)
    assert plan.rows == again.rows and plan.num_rows == again.num_rows
    assert plan_decoding([], CONFIG).params.num_rows == 0


def test_what_is_kept_of_a_graph_goes_with_it() -> None:
    before = len(decode_plan._parts)
    nets = SampledNets("train", 3, seed=2)
    graph = nets[0].graph_for(num_classes=10, image_size=32)
    encoder = NodeEncoder(8, 10, 5)
    rows = encoder.shape_index_of([graph, graph])
    assert torch.equal(rows, encoder.shape_index([*graph.shapes, *graph.shapes]))
    other = NodeEncoder(8, 100, 11)
    assert torch.equal(other.shape_index_of([graph]), other.shape_index(graph.shapes))
    plan_decoding([graph], CONFIG)
    plan_decoding([graph], CONFIG, head=False)
    assert len(decode_plan._parts) == before + 1
    del graph, nets
    gc.collect()
    assert len(decode_plan._parts) == before
