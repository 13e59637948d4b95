from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import naive
from ghn_fast.ops.shortest_distances import shortest_distances


def rows_of(edges: list[tuple[int, int]], num_nodes: int, cutoff: int) -> list[tuple[int, ...]]:
    tensor = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2)
    return [tuple(row) for row in shortest_distances(tensor, num_nodes, cutoff).tolist()]


@settings(max_examples=60, deadline=None)
@given(
    num_nodes=st.integers(0, 40),
    density=st.sampled_from((0.0, 0.03, 0.1, 0.4)),
    cutoff=st.sampled_from((1, 2, 5, 50)),
    seed=st.integers(0, 10_000),
)
def test_equals_networkx(num_nodes: int, density: float, cutoff: int, seed: int) -> None:
    edges = naive.random_dag(num_nodes, density, seed)
    rows = rows_of(edges, num_nodes, cutoff)
    assert rows == sorted(naive.distances(edges, num_nodes, cutoff))


def test_long_chain_is_cut_off() -> None:
    rows = rows_of([(i, i + 1) for i in range(299)], 300, 50)
    assert max(distance for *_, distance in rows) == 50
    assert len(rows) == sum(300 - distance for distance in range(1, 51))


def test_order_of_the_edges_does_not_matter() -> None:
    edges = naive.random_dag(30, 0.2, 3)
    assert rows_of(edges[::-1], 30, 9) == rows_of(edges, 30, 9)


@pytest.mark.parametrize(
    ("edges", "num_nodes", "cutoff", "message"),
    [
        ([[0, 1], [1, 0]], 2, 5, "topological order"),
        ([[1, 1]], 2, 5, "topological order"),
        ([[0, 2]], 2, 5, "indices from 0 to 1"),
        ([[-1, 1]], 2, 5, "indices from -1"),
        ([[0, 1]], 2, 0, "cutoff: got 0"),
        ([[0, 1, 1]], 2, 5, r"needs \(E, 2\)"),
        ([[0, 1]], -1, 5, "num_nodes: got -1"),
    ],
)
def test_bad_input_is_named(
    edges: list[list[int]], num_nodes: int, cutoff: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        shortest_distances(torch.tensor(edges), num_nodes, cutoff)


def test_wrong_dtype_is_named() -> None:
    with pytest.raises(TypeError, match=r"edges: got torch\.float32"):
        shortest_distances(torch.zeros(1, 2), 2, 5)
