from __future__ import annotations

from collections import deque

import pytest
import torch
from torch import Tensor

import ghn_fast
import naive
from ghn_fast.ops import backend
from ghn_fast.ops.shortest_distances import shortest_distances
from randomised import given, settings, st

BACKENDS = ["reference", pytest.param("cpu", marks=pytest.mark.library)]
# Both sides of what distances are kept in: bytes up to 253, two bytes beyond.
CUTOFFS = (1, 2, 5, 50, 253, 254, 1000, 10**12)


def table(edges: list[tuple[int, int]]) -> Tensor:
    return torch.tensor(edges, dtype=torch.int64).reshape(-1, 2)


def search(edges: list[tuple[int, int]], num_nodes: int, cutoff: int) -> Tensor:
    """The rows by a breadth-first search from every node."""
    follow: list[list[int]] = [[] for _ in range(num_nodes)]
    for source, target in edges:
        follow[source].append(target)
    rows = []
    for start in range(num_nodes):
        distance = {start: 0}
        queue = deque([start])
        while queue:
            node = queue.popleft()
            if distance[node] == cutoff:
                break
            for other in follow[node]:
                if other not in distance:
                    distance[other] = distance[node] + 1
                    queue.append(other)
        rows += [(start, end, far) for end, far in sorted(distance.items()) if far]
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)


def chain(num_nodes: int, shortcuts: int, seed: int = 0) -> list[tuple[int, int]]:
    """A chain with shortcuts, like the graphs of deep networks."""
    generator = torch.Generator().manual_seed(seed)
    edges = [(v, v + 1) for v in range(num_nodes - 1)]
    for v, step in torch.randint(2, num_nodes, (shortcuts, 2), generator=generator).tolist():
        edges.append((max(0, v - 2 - step % 9), v))
    return edges


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=60, deadline=None)
@given(
    num_nodes=st.integers(0, 40),
    density=st.sampled_from((0.0, 0.03, 0.1, 0.4, 1.0)),
    cutoff=st.sampled_from(CUTOFFS),
    seed=st.integers(0, 10_000),
)
def test_equals_networkx(name: str, num_nodes: int, density: float, cutoff: int, seed: int) -> None:
    edges = naive.random_dag(num_nodes, density, seed)
    with ghn_fast.backend(name):
        rows = shortest_distances(table(edges), num_nodes, cutoff)
    assert rows.dtype == torch.int64
    expected = sorted(naive.distances(edges, num_nodes, min(cutoff, 10**6)))
    assert [tuple(row) for row in rows.tolist()] == expected


@pytest.mark.library
@settings(max_examples=25, deadline=None)
@given(
    # Around the number of targets that are worked on together.
    num_nodes=st.one_of(st.integers(126, 130), st.integers(255, 258), st.integers(300, 520)),
    density=st.sampled_from((0.002, 0.01, 0.1)),
    cutoff=st.sampled_from(CUTOFFS),
    seed=st.integers(0, 10_000),
)
def test_graphs_of_several_tiles(num_nodes: int, density: float, cutoff: int, seed: int) -> None:
    edges = naive.random_dag(num_nodes, density, seed)
    with ghn_fast.backend("cpu"):
        actual = shortest_distances(table(edges), num_nodes, cutoff)
    assert torch.equal(actual, search(edges, num_nodes, cutoff))


@pytest.mark.library
@pytest.mark.parametrize("cutoff", [1, 2, 50, 400])
def test_two_thousand_nodes(cutoff: int) -> None:
    edges = chain(2000, 500)
    with ghn_fast.backend("cpu"):
        actual = shortest_distances(table(edges), 2000, cutoff)
    assert torch.equal(actual, search(edges, 2000, cutoff))


@pytest.mark.library
def test_a_cutoff_beyond_two_bytes() -> None:
    last = 33_000
    star = torch.stack([torch.zeros(last, dtype=torch.int64), torch.arange(1, last + 1)], 1)
    with ghn_fast.backend("cpu"):
        rows = shortest_distances(star, last + 1, 10**9)
    assert torch.equal(rows[:, :2], star)
    assert (rows[:, 2] == 1).all()


@pytest.mark.library
def test_graphs_too_large_for_a_matrix_of_distances() -> None:
    num_nodes, cutoff = 20_000, 10
    edges = chain(num_nodes, 4000)
    with ghn_fast.backend("cpu"):
        actual = shortest_distances(table(edges), num_nodes, cutoff)
    assert torch.equal(actual, search(edges, num_nodes, cutoff))


@pytest.mark.library
def test_isolated_nodes_cost_nothing() -> None:
    most = 2**31 - 1
    edges = torch.tensor([[5, most - 1], [0, 5], [7, 8]])
    with ghn_fast.backend("cpu"):
        rows = shortest_distances(edges, most, 50).tolist()
    assert rows == [[0, 5, 1], [0, most - 1, 2], [5, most - 1, 1], [7, 8, 1]]


@pytest.mark.parametrize("name", BACKENDS)
def test_long_chain_is_cut_off(name: str) -> None:
    with ghn_fast.backend(name):
        rows = shortest_distances(table([(i, i + 1) for i in range(299)]), 300, 50)
    assert int(rows[:, 2].max()) == 50
    assert len(rows) == sum(300 - distance for distance in range(1, 51))


@pytest.mark.parametrize("name", BACKENDS)
def test_neither_order_nor_repetition_nor_layout_of_the_edges_matters(name: str) -> None:
    edges = table(naive.random_dag(150, 0.02, 3))
    with ghn_fast.backend(name):
        expected = shortest_distances(edges, 150, 9)
        for variant in (
            edges.flip(0),
            torch.cat([edges, edges[::3]]),
            edges.T.contiguous().T,
            torch.cat([edges, edges], 1)[:, 1:3].flip(1),
            edges.int(),
            edges.int().T.contiguous().T,
        ):
            assert torch.equal(shortest_distances(variant, 150, 9), expected)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("num_nodes", [0, 1, 7, 2**31 - 1])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_no_edges(name: str, num_nodes: int, dtype: torch.dtype) -> None:
    with ghn_fast.backend(name):
        rows = shortest_distances(torch.zeros(0, 2, dtype=dtype), num_nodes, 50)
    assert rows.shape == (0, 3)
    assert rows.dtype == torch.int64


@pytest.mark.library
@pytest.mark.usefixtures("nan_empty")
def test_bits_do_not_depend_on_threads_or_repetition() -> None:
    edges = table(chain(3500, 900))
    before = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3, 8, 2):
            torch.set_num_threads(count)
            with ghn_fast.backend("cpu"):
                found.append(shortest_distances(edges, 3500, 50))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(rows, found[0]) for rows in found)


def test_the_result_is_where_the_edges_are(device: torch.device) -> None:
    edges = table(chain(200, 30))
    expected = shortest_distances(edges, 200, 20)
    for name in ("auto", "reference", *(["cuda"] if device.type == "cuda" else [])):
        with ghn_fast.backend(name):
            rows = shortest_distances(edges.to(device), 200, 20)
        assert rows.device.type == device.type
        assert torch.equal(rows.cpu(), expected)


@pytest.mark.library
def test_opcheck() -> None:
    op = torch.ops.ghn_fast.shortest_distances.default
    for edges in (table(chain(30, 5)), table([]), table(chain(30, 5)).int()):
        torch.library.opcheck(op, (edges, 30, 7))


@pytest.mark.library
def test_compiles_into_one_graph() -> None:
    edges = table(chain(40, 8))

    def run(edges: Tensor) -> Tensor:
        return shortest_distances(edges, 40, 7) * 2

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(edges), run(edges))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(
    ("edges", "num_nodes", "cutoff", "message"),
    [
        ([[0, 1], [1, 0]], 2, 5, "edges: row 1 leads from node 1 to node 0.*topological order"),
        ([[1, 1]], 2, 5, "topological order.*cycle"),
        ([[0, 2]], 2, 5, "edges: got indices from 0 to 2, needs indices from 0 to 1"),
        ([[-1, 1]], 2, 5, "indices from -1 to 1"),
        ([[0, 2**40]], 2, 5, f"to {2**40}, needs"),
        ([[0, 1]], 0, 5, "indices from 0 to -1"),
        ([[0, 1]], 2, 0, "cutoff: got 0, needs at least 1"),
        ([[0, 1]], 2, -7, "cutoff: got -7"),
        ([[0, 1, 1]], 2, 5, r"edges: got shape \(1, 3\), needs \(E, 2\)"),
        ([0, 1], 2, 5, r"edges: got shape \(2,\), needs \(E, 2\)"),
        ([[0, 1]], -1, 5, "num_nodes: got -1, needs 0 to 2147483647"),
        ([[0, 1]], 2**31, 5, "num_nodes: got 2147483648"),
    ],
)
def test_bad_input_is_named(
    name: str, edges: list[list[int]], num_nodes: int, cutoff: int, message: str
) -> None:
    with ghn_fast.backend(name), pytest.raises(ValueError, match=message):
        shortest_distances(torch.tensor(edges), num_nodes, cutoff)


@pytest.mark.parametrize("name", BACKENDS)
def test_wrong_dtype_is_named(name: str) -> None:
    with ghn_fast.backend(name):
        with pytest.raises(TypeError, match=r"edges: got torch\.float32"):
            shortest_distances(torch.zeros(1, 2), 2, 5)
        with pytest.raises(TypeError, match="edges: got list"):
            shortest_distances([[0, 1]], 2, 5)  # type: ignore[arg-type]


@pytest.mark.library
def test_the_op_itself_refuses_bad_input() -> None:
    op = torch.ops.ghn_fast.shortest_distances
    edges = torch.tensor([[0, 1]])
    for bad, error in (
        ((edges.float(), 2, 5), ValueError),
        ((edges[0], 2, 5), ValueError),
        ((edges, -1, 5), ValueError),
        ((edges, 2**31, 5), ValueError),
        ((edges, 2, 0), ValueError),
        ((edges, 1, 5), ValueError),
        ((edges.flip(1), 2, 5), ValueError),
    ):
        with pytest.raises(error, match=r"got|leads"):
            op(*bad)


def test_back_ends_of_other_devices_do_not_concern_it(monkeypatch: pytest.MonkeyPatch) -> None:
    edges = table(chain(20, 4))
    expected = shortest_distances(edges, 20, 50)
    for name in ("cuda", "triton"):
        with ghn_fast.backend(name):
            assert torch.equal(shortest_distances(edges, 20, 50), expected)
    monkeypatch.setattr(
        backend, "_implementations", {"shortest_distances": {"cpu": lambda: "not compiled"}}
    )
    with (
        ghn_fast.backend("cpu"),
        pytest.raises(ValueError, match=r"cannot run shortest_distances on cpu.*not compiled"),
    ):
        shortest_distances(edges, 20, 50)
