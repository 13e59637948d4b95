from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ghn_fast
import naive
from ghn_fast.ops.collate_edges import collate_edges
from randomised import given, settings, st

BACKENDS = ["reference", pytest.param("cpu", marks=pytest.mark.library)]


def graph(num_nodes: int, seed: int = 0) -> Tensor:
    edges = naive.random_dag(num_nodes, 0.2, seed)
    rows = sorted(naive.distances(edges, num_nodes, 50))
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)


def first_nodes(sizes: list[int]) -> list[int]:
    return [sum(sizes[:count]) for count in range(len(sizes) + 1)]


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 20), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_equals_a_loop_over_the_rows(name: str, sizes: list[int], seed: int) -> None:
    edges = [graph(size, seed + index) for index, size in enumerate(sizes)]
    offsets = first_nodes(sizes)
    expected = [
        (source + offset, target + offset, distance)
        for rows, offset in zip(edges, offsets, strict=False)
        for source, target, distance in rows.tolist()
    ]
    with ghn_fast.backend(name):
        found = collate_edges(edges, offsets)
    assert found.shape == (len(expected), 3)
    assert found.dtype == torch.int64
    assert [tuple(row) for row in found.tolist()] == expected


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.usefixtures("nan_empty")
def test_layout_and_threads_do_not_matter(name: str) -> None:
    edges = [graph(size) for size in (12, 1, 30, 0, 7)]
    offsets = first_nodes([12, 1, 30, 0, 7])
    before = torch.get_num_threads()
    with ghn_fast.backend(name):
        expected = collate_edges(edges, offsets)
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                strided = [rows.T.contiguous().T for rows in edges]
                assert torch.equal(collate_edges(strided, offsets), expected)
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize("name", BACKENDS)
def test_the_inputs_stay_as_they_are(name: str) -> None:
    edges = [graph(9), graph(9)]
    with ghn_fast.backend(name):
        collate_edges(edges, [0, 9, 18])
    assert torch.equal(edges[0], edges[1])


@pytest.mark.library
def test_opcheck() -> None:
    op = torch.ops.ghn_fast.collate_edges.default
    torch.library.opcheck(op, ([graph(9), graph(0), graph(4)], [0, 9, 9, 13]))


@pytest.mark.library
def test_compiles_into_one_graph() -> None:
    edges = [graph(9), graph(4)]
    run = torch.compile(
        lambda edges: collate_edges(edges, [0, 9, 13]) * 2, fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(run(edges), collate_edges(edges, [0, 9, 13]) * 2)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((1, 0, 1), r"edges\[1\]: row 1 leads from node 1 to node 0.*topological order.*cycle"),
        ((2, 2, 1), r"edges\[1\]: row 1 leads from node 2 to node 2"),
        ((0, 3, 1), r"edges\[1\]: row 1 joins nodes 0 and 3, needs nodes from 0 to 2"),
        ((-1, 1, 1), r"edges\[1\]: row 1 joins nodes -1 and 1, needs nodes from 0 to 2"),
        ((0, 2**40, 1), r"edges\[1\]: row 1 joins nodes 0 and 1099511627776"),
        ((0, 1, 0), r"edges\[1\]: row 1 has distance 0, needs 1 to 2"),
        ((0, 1, 3), r"edges\[1\]: row 1 has distance 3, needs 1 to 2"),
    ],
)
def test_bad_rows_are_named(name: str, row: tuple[int, int, int], message: str) -> None:
    with ghn_fast.backend(name), pytest.raises(ValueError, match=message):
        collate_edges([torch.zeros(0, 3).long(), torch.tensor([(0, 1, 1), row])], [0, 4, 7])


@pytest.mark.parametrize("name", BACKENDS)
def test_bad_arguments_are_named(name: str) -> None:
    with ghn_fast.backend(name):
        with pytest.raises(ValueError, match="edges: got no tensors"):
            collate_edges([], [0])
        with pytest.raises(TypeError, match=r"edges\[1\]: got torch.int32, needs an int64"):
            collate_edges([graph(3), graph(3).int()], [0, 3, 6])
        with pytest.raises(TypeError, match=r"edges\[0\]: got list"):
            collate_edges([[(0, 1, 1)]], [0, 3])  # type: ignore[list-item]
        with pytest.raises(ValueError, match=r"edges\[0\]: got shape \(2, 2\), needs \(M, 3\)"):
            collate_edges([torch.zeros(2, 2).long()], [0, 3])
        with pytest.raises(ValueError, match=r"edges\[0\]: got a tensor on meta"):
            collate_edges([torch.zeros(2, 3, device="meta").long()], [0, 3])
        with pytest.raises(ValueError, match="offsets: got 3 numbers, needs 2"):
            collate_edges([graph(3)], [0, 3, 6])
        for offsets in ([1, 4], [0, -3]):
            with pytest.raises(ValueError, match=r"offsets: got .*, needs numbers that ascend"):
                collate_edges([graph(3)], offsets)


@pytest.mark.library
def test_the_op_itself_refuses_bad_input() -> None:
    op = torch.ops.ghn_fast.collate_edges
    rows = torch.tensor([[0, 1, 1]])
    for bad, error in (
        (([rows], [0]), ValueError),
        (([rows], [3, 1]), ValueError),
        (([rows], [-2, 1]), ValueError),
        (([rows.int()], [0, 2]), ValueError),
        (([rows[0]], [0, 2]), ValueError),
        (([rows], [0, 1]), ValueError),
    ):
        with pytest.raises(error, match=r"edges|offsets"):
            op(*bad)
