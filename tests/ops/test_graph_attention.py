from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import ghn_fast
from ghn_fast.ops.backend import problem_of
from ghn_fast.ops.graph_attention import graph_attention, reference
from tolerances import assert_close


def inputs(
    sizes: list[int], heads: int, width: int, rows: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, list[int], Tensor]:
    offsets = [0]
    for size in sizes:
        offsets.append(offsets[-1] + size)
    qkv = torch.randn(offsets[-1], 3, heads, width, dtype=dtype, requires_grad=True)
    table = torch.randn(rows, heads, dtype=dtype, requires_grad=True)
    codes = torch.randint(0, rows, (sum(size * size for size in sizes),))
    return qkv, codes.to(torch.uint8 if rows <= 256 else torch.int16), offsets, table


def naive(qkv: Tensor, codes: Tensor, offsets: list[int], table: Tensor) -> Tensor:
    """Node by node and head by head."""
    rows, start = [], 0
    for first, last in pairwise(offsets):
        size = last - first
        for i in range(size):
            heads = []
            for h in range(qkv.shape[2]):
                q, k, v = qkv[first + i, 0, h], qkv[first:last, 1, h], qkv[first:last, 2, h]
                code = codes[start + i * size : start + (i + 1) * size].long()
                weights = (k @ q / math.sqrt(qkv.shape[3]) + table[code, h]).exp()
                heads.append((weights / weights.sum()) @ v)
            rows.append(torch.cat(heads))
        start += size * size
    return torch.stack(rows)


@pytest.fixture(params=["reference", pytest.param("cpu", marks=pytest.mark.library)])
def name_of_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each back end in turn, for the whole test."""
    if request.param == "cpu" and problem_of("graph_attention", "cpu", "cpu") is not None:
        pytest.skip(str(problem_of("graph_attention", "cpu", "cpu")))
    with ghn_fast.backend(request.param):
        yield request.param


each_backend = pytest.mark.usefixtures("name_of_backend")


@each_backend
@pytest.mark.usefixtures("nan_empty")
@pytest.mark.parametrize(("heads", "width", "rows"), [(1, 4, 3), (3, 5, 101), (2, 8, 501)])
def test_numbers_and_gradients(heads: int, width: int, rows: int) -> None:
    given = inputs([5, 1, 17, 70], heads, width, rows)
    out = graph_attention(*given)
    expected = naive(*given)
    assert_close(out, expected)
    weight = torch.randn_like(out)
    grads = torch.autograd.grad(out, (given[0], given[3]), weight)
    wanted = torch.autograd.grad(expected, (given[0], given[3]), weight)
    for got, want in zip(grads, wanted, strict=True):
        assert_close(got, want, context="gradient")


@pytest.mark.cuda
@pytest.mark.parametrize(("heads", "width", "rows"), [(1, 5, 3), (8, 8, 101), (2, 24, 256)])
def test_on_a_gpu(heads: int, width: int, rows: int) -> None:
    qkv, codes, offsets, table = inputs([5, 1, 0, 70], heads, width, rows)
    leaves = [t.detach().cuda().requires_grad_() for t in (qkv, table)]
    wide = [t.detach().double().requires_grad_() for t in leaves]
    with ghn_fast.backend("cuda"):
        out = graph_attention(leaves[0], codes.cuda(), offsets, leaves[1])
        again = graph_attention(leaves[0], codes.cuda(), offsets, leaves[1])
    assert torch.equal(out, again)
    expected = reference(wide[0], codes.cuda(), offsets, wide[1])
    assert_close(out, expected.float())
    weight = torch.randn_like(out)
    grads = torch.autograd.grad(out, leaves, weight)
    wanted = torch.autograd.grad(expected, wide, weight.double())
    for got, want in zip(grads, wanted, strict=True):
        assert_close(got, want.float(), context="gradient")


def test_gradcheck() -> None:
    qkv, codes, offsets, table = inputs([3, 4], 2, 3, 5, torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, t: graph_attention(x, codes, offsets, t), (qkv, table)
    )


@each_backend
def test_a_graph_gets_the_same_numbers_in_every_batch() -> None:
    sizes = [5, 33, 64]
    qkv, codes, offsets, table = inputs(sizes, 2, 8, 101)
    with torch.no_grad():
        together = graph_attention(qkv, codes, offsets, table)
        start = 0
        for first, last in pairwise(offsets):
            size = last - first
            own = codes[start : start + size * size].clone()
            alone = graph_attention(qkv[first:last].clone(), own, [0, size], table)
            assert torch.equal(alone, together[first:last])
            start += size * size


@pytest.mark.library
def test_threads_change_nothing() -> None:
    if problem_of("graph_attention", "cpu", "cpu") is not None:
        pytest.skip(str(problem_of("graph_attention", "cpu", "cpu")))
    given = inputs([60, 61], 4, 8, 101)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            out = graph_attention(*given)
            grads = torch.autograd.grad(out.square().sum(), (given[0], given[3]))
            found.append((out, *grads))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.library
def test_codes_outside_of_the_table_are_refused() -> None:
    if problem_of("graph_attention", "cpu", "cpu") is not None:
        pytest.skip(str(problem_of("graph_attention", "cpu", "cpu")))
    qkv, codes, offsets, table = inputs([3, 4], 2, 3, 5)
    codes[7] = 5
    with pytest.raises(ValueError, match="codes: got codes from 0 to 5, needs codes from 0 to 4"):
        graph_attention(qkv, codes, offsets, table)


@pytest.mark.library
def test_opcheck_and_compile() -> None:
    if problem_of("graph_attention", "cpu", "cpu") is not None:
        pytest.skip(str(problem_of("graph_attention", "cpu", "cpu")))
    given = inputs([9, 20], 2, 8, 21)
    torch.library.opcheck(torch.ops.ghn_fast.graph_attention_forward.default, given)


@each_backend
def test_without_nodes() -> None:
    qkv, codes, offsets, table = inputs([], 2, 3, 5)
    assert graph_attention(qkv, codes, offsets, table).shape == (0, 6)
    qkv, codes, offsets, table = inputs([0, 2], 2, 3, 5)
    assert graph_attention(qkv, codes, offsets, table).shape == (2, 6)


def test_wrong_arguments_are_named() -> None:
    qkv, codes, offsets, table = inputs([3, 4], 2, 3, 5)
    for change, error, message in (
        ({"qkv": qkv.long()}, TypeError, "qkv: got torch.int64"),
        ({"qkv": qkv[:, :2]}, ValueError, r"qkv: got shape \[7, 2, 2, 3\]"),
        ({"table": table.double()}, TypeError, "table: got torch.float64"),
        ({"table": table[:, :1]}, ValueError, r"table: got shape \[5, 1\], needs \(R, 2\)"),
        ({"codes": codes.long()}, TypeError, "codes: got torch.int64, needs uint8 or int16"),
        ({"codes": codes[:-1]}, ValueError, r"codes: got shape \[24\], needs \(25,\)"),
        ({"offsets": [0, 3]}, ValueError, r"offsets: got \[0, 3\]"),
    ):
        given = {"qkv": qkv, "codes": codes, "offsets": offsets, "table": table, **change}
        with pytest.raises(error, match=message):
            graph_attention(**given)  # type: ignore[arg-type]
