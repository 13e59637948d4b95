"""Plans of message passing: joined, unpacked, refused."""

from __future__ import annotations

import pytest
import torch

import naive
from ghn_fast.ops.gated_gnn_plan import GraphPlan


def rows(*triples: tuple[int, int, int]) -> torch.Tensor:
    return torch.tensor(triples, dtype=torch.int64).reshape(-1, 3)


PARTS = [
    (rows((0, 1, 1), (0, 2, 2), (1, 2, 1)), [0, 3]),
    (rows(), [0, 1]),
    (rows((0, 1, 1), (0, 2, 1), (1, 3, 1), (2, 3, 1), (0, 3, 2), (4, 5, 1)), [0, 4, 6]),
    (rows(), [0, 0]),
]


def shifted() -> tuple[torch.Tensor, list[int]]:
    """All parts in one table, and where each graph begins."""
    tables, offsets = [], [0]
    for edges, own in PARTS:
        tables.append(edges + torch.tensor([offsets[-1], offsets[-1], 0]))
        offsets += [offsets[-1] + end for end in own[1:]]
    return torch.cat(tables), offsets


@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=pytest.mark.library)])
def test_joined_plans_are_the_plan_of_all(packed: bool, nan_empty: None) -> None:
    plans = [GraphPlan(edges, offsets) for edges, offsets in PARTS]
    if not packed:
        for plan in plans:
            plan.packed = None
    edges, offsets = shifted()
    whole, joined = GraphPlan(edges, offsets), GraphPlan.join(plans)
    assert joined.num_nodes == whole.num_nodes == offsets[-1]
    assert joined.num_edges == whole.num_edges == len(edges)
    if packed:
        assert whole.packed is not None
        assert joined.packed is not None
        assert torch.equal(joined.packed, whole.packed)
    assert sorted(joined.edges.tolist()) == sorted(edges.tolist())
    for one, other in zip(joined.sweeps, whole.sweeps, strict=True):
        assert torch.equal(one.order, other.order)
        assert one.level_sizes == other.level_sizes
        assert torch.equal(one.hop_target, other.hop_target)
    assert GraphPlan.join(plans[:1]) is plans[0]
    with pytest.raises(ValueError, match="plans: got none"):
        GraphPlan.join([])


@pytest.mark.library
def test_edges_come_back_in_order(nan_empty: None) -> None:
    edges, offsets = shifted()
    packed = GraphPlan(edges, offsets).packed
    assert packed is not None
    plan = GraphPlan.of_packed(packed, offsets[-1])
    ordered = sorted(edges.tolist())
    assert plan.edges.tolist() == ordered
    assert plan.num_edges == len(ordered)
    assert plan.to("cpu").edges.tolist() == ordered


@pytest.mark.library
def test_what_is_no_plan_is_refused() -> None:
    plan = GraphPlan(*PARTS[0]).packed
    assert plan is not None
    join, edges = torch.ops.ghn_fast.gated_gnn_join, torch.ops.ghn_fast.gated_gnn_plan_edges
    for bad in (plan[:-1], plan[:3], plan.clone().fill_(-1), plan.repeat_interleave(2)[::2]):
        for op in (join, edges):
            with pytest.raises(ValueError, match=r"no plan of this version|needs a contiguous"):
                op([plan, bad] if op is join else bad)
    with pytest.raises(ValueError, match="got Long"):
        edges(plan.long())
    # Numbers in the right place that lead out of the plan.
    for position in range(8, 12):
        broken = plan.clone()
        broken[position] = 1 << 20
        if not torch.equal(broken, plan) and position < 10:
            with pytest.raises(ValueError, match="its edges are not in order"):
                edges(broken)
    for position in range(8, len(plan)):
        broken = plan.clone()
        broken[position] = 1 << 30
        try:
            assert edges(broken).shape == (3, 3)
        except ValueError as error:
            assert "not in order" in str(error)


@pytest.mark.cuda
def test_pinned_plans_move_without_waiting() -> None:
    edges, offsets = shifted()
    plan = GraphPlan(edges, offsets).pin_memory()
    assert plan.packed is not None
    assert plan.packed.is_pinned()
    moved = plan.to("cuda")
    torch.cuda.synchronize()
    assert moved.packed is not None
    assert torch.equal(moved.packed.cpu(), plan.packed)


@pytest.mark.library
def test_page_locked_memory_is_the_hosts() -> None:
    packed = GraphPlan(torch.tensor([[0, 1, 1]]), [0, 2]).packed
    with pytest.raises(ValueError, match="pin: got true for meta, needs false"):
        torch.ops.ghn_fast.gated_gnn_plan_to(packed, torch.device("meta"), True)


@pytest.mark.library
@pytest.mark.parametrize("sizes", [[], [1], [0, 3, 0], [7, 1, 12, 5]])
def test_the_packed_plan_without_the_extension_is_the_same(sizes: list[int]) -> None:
    rows, offsets = [torch.zeros(0, 3, dtype=torch.int64)], [0]
    for size in sizes:
        edges = naive.random_dag(size, 0.4, seed=size)
        found = torch.tensor(sorted(naive.distances(edges, size, 9)), dtype=torch.int64)
        rows.append(found.reshape(-1, 3) + torch.tensor([offsets[-1], offsets[-1], 0]))
        offsets.append(offsets[-1] + size)
    plan = GraphPlan(torch.cat(rows), offsets)
    compiled, plan.packed = plan.packed, None
    assert compiled is not None
    assert torch.equal(plan.packed_here(), compiled)
    assert plan.num_graphs == len(sizes) == GraphPlan.of_packed(compiled, offsets[-1]).num_graphs
