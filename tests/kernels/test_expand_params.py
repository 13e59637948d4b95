"""The Triton kernels of expand_params against the reference."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ghn_fast
from ghn_fast.ops import backend, expand_params_triton, triton_kernels
from ghn_fast.ops.expand_params import (
    Kind,
    ParamPlan,
    PlanRow,
    expand_params,
    expand_params_into,
)
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

# Block and parameter: equal, sliced, repeated, both; linear or not; more than one tile of each
# pass, with many copies and with few; no elements.
SHAPES = [
    ((2, 2, 1, 1), (0, 2, 1, 1)),
    ((8, 8, 3, 3), (8, 8, 3, 3)),
    ((8, 8, 3, 3), (5, 3, 1, 2)),
    ((8, 8, 3, 3), (20, 9, 3, 3)),
    ((4, 4, 2, 2), (9, 2, 5, 3)),
    ((1, 3, 1, 1), (17, 7, 2, 3)),
    ((6, 1, 1, 1), (13, 1, 1, 1)),
    ((12, 100, 1, 1), (12, 101, 1, 1)),
    ((2, 1, 1, 1), (0, 1, 1, 1)),
]


@pytest.fixture
def triton_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with on_triton("expand_params", monkeypatch):
        yield


def make_plan(
    dtype: torch.dtype, *, shapes: Any = SHAPES, gap: int = 5
) -> tuple[list[Tensor], ParamPlan]:
    """Every shape in two kinds, from the same block or, where odd, from two that overlap."""
    blocks, rows, end = [], [], 0
    for index, (block_shape, shape) in enumerate(shapes):
        size = math.prod(block_shape)
        blocks.append(torch.randn(2 * size + 7, dtype=torch.float64).mul(2).to(DEVICE, dtype))
        for part in range(2):
            source, kind = 3 + part * (index % 2) * (size // 2), Kind((index + part) % 4)
            rows.append(PlanRow(index, source, block_shape, shape, kind, 0.3 + index, end))
            end += math.prod(shape) + gap
    return blocks, ParamPlan(rows, end)


def compare(blocks: list[Tensor], plan: ParamPlan) -> None:
    """Values and gradients, with what the reference computes from the same blocks in float64."""
    dtype = blocks[0].dtype
    blocks = [block.detach().requires_grad_() for block in blocks]
    wide = [block.detach().double().requires_grad_() for block in blocks]
    with ghn_fast.backend("reference"):
        expected = expand_params(wide, plan)
    actual = expand_params(blocks, plan)
    assert actual.dtype == dtype
    assert_close(actual, expected.to(dtype))
    probe = torch.randn(plan.numel, dtype=torch.float64).to(DEVICE, dtype)
    want = torch.autograd.grad(expected, wide, probe.double())
    got = torch.autograd.grad(actual, blocks, probe)
    for index in range(len(blocks)):
        assert_close(got[index], want[index].to(dtype), context="gradient", name=f"block {index}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
class TestValues:
    # NumPy warns of a division by zero, in the interpreter, too.
    pytestmark = [*runs_kernels, pytest.mark.filterwarnings("error::RuntimeWarning")]  # noqa: RUF012

    def test_values_and_gradients_equal_the_reference(
        self, dtype: torch.dtype, nan_empty: None
    ) -> None:
        compare(*make_plan(dtype))

    def test_places_in_large_parameters(
        self, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(kernels("expand_params_plan"), "LARGE", 1)
        blocks, plan = make_plan(dtype, shapes=SHAPES[2:6], gap=0)
        assert plan.work(blocks)[1]
        compare(blocks, plan)


@pytest.mark.cuda
@pytest.mark.usefixtures("triton_backend")
def test_many_tiles() -> None:
    shapes = [
        ((64, 64, 3, 3), (512, 512, 3, 3)),
        ((64, 64, 3, 3), (512, 64, 3, 3)),
        ((64, 64, 1, 1), (2048, 1000, 1, 1)),
        ((64, 4, 7, 7), (96, 3, 7, 7)),
        ((64, 4, 5, 5), (500, 99, 7, 7)),
        ((64, 1, 1, 1), (4000, 1, 1, 1)),
    ]
    compare(*make_plan(torch.float32, shapes=shapes))


class TestCalls:
    pytestmark = runs_kernels

    def test_rows_may_read_the_same_elements_in_any_order(self) -> None:
        rows, end = [], 0
        for source, size in ((50, 10), (0, 100), (10, 7), (150, 20), (165, 30), (90, 5), (96, 4)):
            block_shape, shape = (size, 1, 1, 1), (2 * size + 1, 1, 1, 1)
            rows.append(PlanRow(0, source, block_shape, shape, Kind.SHIFT, 1.0, end))
            end += shape[0]
        compare([torch.randn(200, device=DEVICE)], ParamPlan(rows, end))

    def test_tanh_keeps_its_relative_accuracy(self) -> None:
        for dtype in (torch.float32, torch.float64):
            x = torch.logspace(-30, 2, 513, dtype=torch.float64)
            x = torch.cat([x, -x, torch.zeros(1)]).to(DEVICE, dtype)
            shape = (len(x), 1, 1, 1)
            plan = ParamPlan([PlanRow(0, 0, shape, shape, Kind.SHIFT, 1.0, 0)], len(x))
            assert_close(expand_params([x], plan), torch.tanh(x.double() / 5).to(dtype), scale=0.0)

    def test_values_that_are_not_finite_stay_where_they_are(self) -> None:
        special = torch.tensor([math.nan, math.inf, -math.inf, 0.0, 1.0, -200.0], device=DEVICE)
        shape = (6, 1, 1, 1)
        rows = [PlanRow(0, 0, shape, shape, kind, 2.0, 6 * kind) for kind in Kind]
        plan = ParamPlan(rows, 24)
        results = []
        for name in ("reference", "triton"):
            block = special.clone().requires_grad_()
            with ghn_fast.backend(name):
                flat = expand_params([block], plan)
                grad = [torch.autograd.grad(flat[6 * k], block, retain_graph=True) for k in Kind]
            results.append([flat, *(g for (g,) in grad)])
        for want, got in zip(*results, strict=True):
            # compared by hand: NaN has to meet NaN.
            torch.testing.assert_close(got, want, equal_nan=True)

    def test_only_empty_parameters(self) -> None:
        shapes = [SHAPES[0]]
        blocks, plan = make_plan(torch.float32, shapes=shapes, gap=0)
        blocks[0].requires_grad_()
        flat = expand_params(blocks, plan)
        assert flat.shape == (0,)
        blocks, plan = make_plan(torch.float32, shapes=shapes, gap=3)
        blocks[0].requires_grad_()
        flat = expand_params(blocks, plan)
        assert torch.equal(flat, torch.zeros(6, device=DEVICE))
        (grad,) = torch.autograd.grad(flat.sum(), blocks)
        assert torch.equal(grad, torch.zeros_like(grad))

    def test_blocks_may_be_views(self) -> None:
        blocks, plan = make_plan(torch.float32, shapes=SHAPES[2:4])
        strided = [torch.stack((b, b), dim=-1)[..., 0] for b in blocks]
        assert not strided[0].is_contiguous()
        assert torch.equal(expand_params(strided, plan), expand_params(blocks, plan))

    def test_gradients_may_be_views(self) -> None:
        blocks, plan = make_plan(torch.float32, shapes=SHAPES[2:4])
        blocks = [block.requires_grad_() for block in blocks]
        flat = expand_params(blocks, plan)
        probe = torch.randn(2, device=DEVICE).expand(plan.numel // 2, 2).t()[0]
        probe = torch.cat([probe, probe.new_zeros(plan.numel - len(probe))])[:, None].expand(-1, 3)
        want = torch.autograd.grad(flat, blocks, probe[:, 0].contiguous(), retain_graph=True)
        got = torch.autograd.grad(flat, blocks, probe[:, 1])
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))

    def test_a_plan_is_packed_once_for_blocks_of_the_same_sizes(self) -> None:
        blocks, plan = make_plan(torch.float32, shapes=SHAPES[2:4])
        first = plan.work(blocks)
        assert plan.work([b.double() for b in blocks]) is first
        longer = [torch.cat((b, b[:1])) for b in blocks]
        assert plan.work(longer) is not first
        assert torch.equal(expand_params(longer, plan), expand_params(blocks, plan))

    def test_work_is_aligned(self) -> None:
        blocks, plan = make_plan(torch.float32, shapes=SHAPES[2:4])
        work, _ = ParamPlan(plan.rows[:3], plan.numel).work(blocks)
        assert all(tensor.data_ptr() % 16 == 0 for tensor in work)

    def test_destinations(self) -> None:
        blocks, plan = make_plan(torch.float32, shapes=SHAPES[1:4], gap=0)
        out = [torch.full(row.shape, math.nan, device=DEVICE) for row in plan.rows]
        expand_params_into(blocks, plan, out)
        assert torch.equal(torch.cat([o.flatten() for o in out]), expand_params(blocks, plan))

    def test_opcheck(self) -> None:
        blocks, plan = make_plan(torch.float32, shapes=SHAPES[4:5])
        work, large = plan.work(blocks)
        op = torch.ops.ghn_fast
        block = blocks[0].requires_grad_()
        forward = (block, work, large, plan.numel)
        torch.library.opcheck(op.expand_params_triton.default, forward)
        grad = torch.randn(plan.numel, device=DEVICE)
        backward = (grad, block.detach(), work, large)
        torch.library.opcheck(op.expand_params_triton_backward.default, backward)

    def test_compiles_as_one_graph(self) -> None:
        blocks, plan = make_plan(torch.float32, shapes=SHAPES[3:5])
        work = plan.work(blocks)

        def run(*blocks: Tensor) -> Tensor:
            return expand_params_triton.expand(blocks, work, plan.numel) * 2

        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        inputs = [b.requires_grad_() for b in blocks]
        assert torch.equal(compiled(*inputs), run(*inputs))
        got = torch.autograd.grad(compiled(*inputs).sum(), inputs)
        want = torch.autograd.grad(run(*inputs).sum(), inputs)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))

    def test_bad_arguments_are_named(self) -> None:
        block = torch.zeros(8, device=DEVICE)
        good = PlanRow(0, 0, (8, 1, 1, 1), (4, 1, 1, 1), Kind.COPY, 1.0, 0)
        plan = ParamPlan([good], 4)
        assert expand_params([block], plan).shape == (4,)
        with pytest.raises(ValueError, match=r"rows\[0\]: reads elements 0 to 8 of blocks\[0\]"):
            expand_params([block[:7]], plan)
        with pytest.raises(ValueError, match=r"rows\[0\].offset: got 2, needs 0"):
            expand_params([block], ParamPlan([good._replace(offset=2)], 6))
        with pytest.raises(TypeError, match=r"blocks\[0\]: got torch.int64"):
            expand_params([block.long()], plan)
        with pytest.raises(TypeError, match=r"blocks\[1\]: got torch.float64"):
            expand_params([block, block.double()], plan)
        with pytest.raises(ValueError, match=r"blocks\[1\]: got a tensor on meta"):
            expand_params([block, block.to("meta")], plan)
        with pytest.raises(TypeError, match=r"blocks\[0\]: got torch.float8_e5m2, needs float32"):
            expand_params([block.to(torch.float8_e5m2)], plan)


@only_once
def test_the_kernels_run_in_the_interpreter() -> None:
    """All tests above that a machine without a GPU can run."""
    run_in_interpreter(__file__, 11)


@only_once
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_the_kernels_compile_for_a_gpu(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Down to machine code for sm_90, which needs no GPU."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    module = kernels("expand_params")
    types = {torch.float32: "*fp32", torch.float64: "*fp64", torch.float16: "*fp16"}
    signature = dict.fromkeys(("blocks_ptr", "out_ptr", "grad_ptr"), types.get(dtype, "*bf16"))
    constants = {
        **{name: getattr(module, name) for name in ("TILE", "PARTS", "NARROW", "WIDE")},
        "INDEX": module.tl.int64 if dtype == torch.bfloat16 else module.tl.int32,
        "COMPUTE": module._TYPES[dtype],
    }
    for kernel, warps in ((module._expand_kernel, 4), (module._expand_backward_kernel, 8)):
        pointers = dict.fromkeys(kernel.arg_names, "*i64") | signature
        code = machine_code(kernel, pointers, constants, warps)
        assert ".target sm_90" in code.ptx
        assert "st.global" in code.ptx
        assert code.spilled == 0
        if kernel is module._expand_backward_kernel:
            assert_loads_in_flight(code.ptx, 4)


def assert_loads_in_flight(ptx: str, least: int) -> None:
    """Each innermost loop issues so many loads of gradients before it branches."""
    found = 0
    for block in re.split(r"^\$L__BB.*$", ptx, flags=re.M):
        loads = len(re.findall(r"^\s*@%p\d+ ld\.global", block, re.M))
        if loads > 1:
            found += 1
            assert loads >= least, block
    # Of many copies and of few, each in a linear parameter and in any.
    assert found >= 4


@only_once
def test_it_is_the_second_choice_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    there = backend._implementations["expand_params"]
    assert list(there) == ["reference", "cpu", "cuda", "triton"]
    monkeypatch.setitem(there, "triton", lambda: None)
    monkeypatch.setitem(there, "cuda", lambda: "compiled without it")
    assert backend.automatic("expand_params", "cuda") == ("triton", None)
    monkeypatch.setitem(there, "cuda", lambda: None)
    assert backend.automatic("expand_params", "cuda") == ("cuda", None)
    block, shape = torch.zeros(1), (1, 1, 1, 1)
    plan = ParamPlan([PlanRow(0, 0, shape, shape, Kind.COPY, 1.0, 0)], 1)
    with ghn_fast.backend("triton"), pytest.raises(ValueError, match="it is for other devices"):
        expand_params([block], plan)


@only_once
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:

    def problem() -> str | None:
        triton_kernels._missing.cache_clear()
        return expand_params_triton.problem()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert problem() == "CUDA finds no device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)
    found: dict[str, Any] = {"triton": True, "ghn_fast.kernels.expand_params": True}
    monkeypatch.setattr(triton_kernels, "_find_package", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", found.get)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setenv("CC", "cc")
    assert problem() is None
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "")
    assert "C compiler" in (problem() or "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 1))
    assert "capability 7.0" in (problem() or "")
    del found["ghn_fast.kernels.expand_params"]
    assert "without its Triton kernels" in (problem() or "")
    del found["triton"]
    assert problem() == "Triton is not installed"
    triton_kernels._missing.cache_clear()
