"""The Triton kernels of graph_attention against the reference, and beside the other back ends."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ghn_fast.ops import graph_attention_triton
from ghn_fast.ops.graph_attention import graph_attention, reference
from tolerances import assert_close
from triton_runs import (
    DEVICE,
    RUNS_KERNELS,
    kernels,
    machine_code,
    on_triton,
    only_once,
    run_in_interpreter,
)

pytest.importorskip("triton", reason="Triton is not installed")

runs_kernels = [pytest.mark.usefixtures("triton_backend"), *RUNS_KERNELS]


@pytest.fixture
def triton_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with on_triton("graph_attention", monkeypatch):
        yield


def inputs(
    sizes: list[int], heads: int, width: int, rows: int
) -> tuple[Tensor, Tensor, list[int], Tensor]:
    offsets = [0]
    for size in sizes:
        offsets.append(offsets[-1] + size)
    codes = torch.randint(0, rows, (sum(size * size for size in sizes),))
    return (
        torch.randn(offsets[-1], 3, heads, width).to(DEVICE).requires_grad_(),
        codes.to(DEVICE, torch.uint8 if rows <= 256 else torch.int16),
        offsets,
        torch.randn(rows, heads).to(DEVICE).requires_grad_(),
    )


class TestValues:
    pytestmark = runs_kernels

    @pytest.mark.parametrize(
        ("sizes", "heads", "width", "rows"),
        [
            ([5, 1, 33], 2, 8, 101),
            ([40, 0, 32], 1, 5, 3),
            ([34], 3, 24, 101),
            ([3, 4], 1, 20, 300),
        ],
    )
    def test_values_and_gradients_equal_the_reference(
        self, sizes: list[int], heads: int, width: int, rows: int, nan_empty: None
    ) -> None:
        qkv, codes, offsets, table = inputs(sizes, heads, width, rows)
        wide = [t.detach().double().requires_grad_() for t in (qkv, table)]
        got = graph_attention(qkv, codes, offsets, table)
        want = reference(wide[0], codes, offsets, wide[1])
        assert got.is_contiguous()
        assert_close(got, want.float())
        probe = torch.randn_like(got)
        found = torch.autograd.grad(got, (qkv, table), probe)
        expected = torch.autograd.grad(want, wide, probe.double())
        for name, have, need in zip(("qkv", "table"), found, expected, strict=True):
            assert_close(have, need.float(), context="gradient", name=name)

    def test_a_graph_gets_the_same_numbers_in_every_batch_and_each_time(self) -> None:
        qkv, codes, offsets, table = inputs([5, 33], 2, 8, 101)
        together = graph_attention(qkv, codes, offsets, table)
        assert torch.equal(together, graph_attention(qkv, codes, offsets, table))
        start = 0
        for first, last in pairwise(offsets):
            pairs = (last - first) ** 2
            own = codes[start : start + pairs]
            alone = graph_attention(qkv[first:last], own, [0, last - first], table)
            assert torch.equal(alone, together[first:last])
            start += pairs
        found = [
            torch.autograd.grad(graph_attention(qkv, codes, offsets, table).sum(), (qkv, table))
            for _ in range(2)
        ]
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))

    def test_inputs_may_be_views(self) -> None:
        _, codes, offsets, table = inputs([6, 3], 2, 4, 9)
        wide = torch.randn(9, 3, 2, 8).to(DEVICE)[..., ::2]
        given = (wide, codes.repeat_interleave(2)[::2], offsets, table.t().contiguous().t())
        assert_close(graph_attention(*given), reference(*given))

    def test_codes_outside_of_the_table_make_nan(self) -> None:
        qkv, codes, offsets, table = inputs([3, 4], 2, 3, 5)
        codes[7] = 5
        found = graph_attention(qkv, codes, offsets, table)
        assert found[2].isnan().all() and found[[0, 1, 3, 4, 5, 6]].isfinite().all()

    def test_without_nodes(self) -> None:
        qkv, codes, offsets, table = inputs([], 2, 3, 5)
        out = graph_attention(qkv, codes, offsets, table)
        assert out.shape == (0, 6)
        grads = torch.autograd.grad(out.sum(), (qkv, table))
        assert [grad.shape for grad in grads] == [(0, 3, 2, 3), (5, 2)] and not grads[1].any()

    def test_wide_heads_run_on_the_reference(self) -> None:
        given = inputs([3], 1, 33, 5)
        assert torch.equal(graph_attention(*given), reference(*given))

    def test_opcheck(self) -> None:
        qkv, codes, offsets, table = inputs([4, 3], 2, 8, 5)
        op = torch.ops.ghn_fast
        torch.library.opcheck(op.graph_attention_triton.default, (qkv, codes, offsets, table))
        plain = (qkv.detach(), codes, offsets, table.detach())
        results = op.graph_attention_triton(*plain)
        arguments = (torch.randn_like(results[0]), *plain, *results)
        torch.library.opcheck(op.graph_attention_triton_backward.default, arguments)


@only_once
def test_the_kernels_run_in_the_interpreter() -> None:
    """All tests above that a machine without a GPU can run."""
    run_in_interpreter(__file__, 10)


@only_once
@pytest.mark.parametrize(("heads", "width"), [(8, 8), (16, 24), (2, 32)])
@pytest.mark.parametrize("name", ["_forward_kernel", "_grad_queries_kernel", "_grad_keys_kernel"])
def test_the_kernels_compile_for_a_gpu_without_spills(
    name: str,
    heads: int,
    width: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    record_property: Any,
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    module = kernels("graph_attention")
    kernel = getattr(module, name)
    signature = {n: "*fp32" if n.endswith("_ptr") else "fp32" for n in kernel.arg_names}
    signature |= {"codes_ptr": "*u8", "tiles_ptr": "*i64"}
    code = machine_code(kernel, signature, module.constants(heads, width, 101), module.WARPS)
    for attribute in ("registers", "spilled", "shared"):
        record_property(attribute, getattr(code, attribute))
    assert code.spilled == 0
    assert code.shared <= 48 * 1024


@only_once
def test_the_widths_that_the_op_asks_for_are_those_of_the_kernels() -> None:
    assert kernels("graph_attention").LARGEST == graph_attention_triton._LARGEST
    assert graph_attention_triton.has_instance(32, 1024)
    assert not graph_attention_triton.has_instance(33, 5)
    assert not graph_attention_triton.has_instance(8, 1025)
