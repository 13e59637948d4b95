from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import ghn_fast
import naive
from ghn_fast.ops import backend, expand_params_plan
from ghn_fast.ops import expand_params as module
from ghn_fast.ops.expand_params import (
    Kind,
    ParamPlan,
    PlanRow,
    expand_params,
    expand_params_into,
)
from randomised import given, settings, st
from tolerances import assert_close

# Back ends with the device that they are tested on.
PLACES = [
    pytest.param("reference", "cpu", id="reference"),
    pytest.param("cpu", "cpu", marks=pytest.mark.library, id="cpu"),
    pytest.param("reference", "cuda", marks=pytest.mark.cuda, id="reference-cuda"),
    pytest.param("cuda", "cuda", marks=pytest.mark.cuda, id="cuda"),
]
COMPILED = PLACES[1::2]

SHAPES = [
    ((8, 8, 3, 3), (8, 8, 3, 3)),
    ((8, 8, 3, 3), (5, 3, 1, 2)),
    ((8, 8, 3, 3), (20, 9, 3, 3)),
    ((8, 4, 1, 1), (3, 17, 1, 1)),
    ((4, 4, 2, 2), (9, 2, 5, 3)),
    ((6, 1, 1, 1), (13, 1, 1, 1)),
    ((2, 2, 1, 1), (0, 2, 1, 1)),
    ((16, 16, 3, 3), (40, 16, 3, 3)),
    ((16, 16, 1, 1), (48, 64, 1, 1)),
    ((64, 1, 1, 1), (3000, 1, 1, 1)),
    ((10, 64, 1, 1), (10, 200, 1, 1)),
]


def normalise(x: Tensor, kind: Kind, scale: float) -> Tensor:
    if kind is Kind.WEIGHT:
        return x * scale
    if kind is Kind.SCALE:
        return 2 / (1 + torch.exp(-x / 2))
    if kind is Kind.SHIFT:
        e = torch.exp(2 * x / 5)
        return (e - 1) / (e + 1)
    return x


def make_plan(
    kind: Kind, *, align: int = 1, dtype: torch.dtype = torch.float64, shapes: Any = SHAPES
) -> tuple[list[Tensor], ParamPlan]:
    """All shapes in one plan; two blocks share a tensor, the second at an offset, read twice."""
    blocks, rows, end = [], [], 0
    for index, (block_shape, shape) in enumerate(shapes):
        size = math.prod(block_shape)
        blocks.append(torch.randn(2, size, dtype=dtype))
        scale = 0.5 + index
        for half in (index % 2, 1):
            end = -(-end // align) * align
            rows.append(PlanRow(index, size * half, block_shape, shape, kind, scale, end))
            end += math.prod(shape)
    return blocks, ParamPlan(rows, end + align - 1)


def by_indexing(blocks: list[Tensor], plan: ParamPlan) -> Tensor:
    """The flat buffer, element by element; gaps are zero."""
    flat = blocks[0].new_zeros(plan.numel)
    for row in plan.rows:
        block = blocks[row.block].flatten()[row.source :][: math.prod(row.block_shape)]
        tiled = naive.tile(block.view(row.block_shape), row.shape)
        values = normalise(tiled, row.kind, row.scale).flatten()
        flat = flat.index_add(0, row.offset + torch.arange(len(values)), values)
    return flat


@pytest.mark.parametrize(("name", "device"), PLACES)
@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("align", [1, 16])
def test_values_and_gradients_equal_indexing(
    name: str, device: str, kind: Kind, dtype: torch.dtype, align: int
) -> None:
    blocks, plan = make_plan(kind, align=align, dtype=dtype)
    wide = [b.double().requires_grad_() for b in blocks]
    expected = by_indexing(wide, plan)
    blocks = [b.to(device).requires_grad_() for b in blocks]
    with ghn_fast.backend(name):
        actual = expand_params(blocks, plan)
        assert actual.dtype == dtype
        assert_close(actual.cpu(), expected.to(dtype))
        probe = torch.randn_like(expected)
        want = torch.autograd.grad((expected * probe).sum(), wide)
        got = torch.autograd.grad((actual * probe.to(actual)).sum(), blocks)
    for index in range(len(blocks)):
        assert_close(
            got[index].cpu(), want[index].to(dtype), context="gradient", name=f"block {index}"
        )


@pytest.mark.parametrize(("name", "device"), COMPILED)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_blocks_are_computed_in_float32(name: str, device: str, dtype: torch.dtype) -> None:
    for kind in Kind:
        blocks, plan = make_plan(kind, dtype=torch.float32)
        blocks = [b.to(device, dtype).requires_grad_() for b in blocks]
        wide = [b.detach().float().requires_grad_() for b in blocks]
        with ghn_fast.backend("reference"):
            expected = expand_params(wide, plan)
        with ghn_fast.backend(name):
            actual = expand_params(blocks, plan)
        assert actual.dtype == dtype
        assert_close(actual, expected.to(dtype))
        probe = torch.randn(plan.numel, device=device).to(dtype)
        want = torch.autograd.grad(expected, wide, probe.float())
        got = torch.autograd.grad(actual, blocks, probe)
        for index in range(len(blocks)):
            assert_close(got[index], want[index].to(dtype), context="gradient")


@pytest.mark.parametrize(("name", "device"), COMPILED)
def test_a_large_plan_equals_the_reference(name: str, device: str) -> None:
    """More tiles than a launch has blocks of threads, and every path of the writers."""
    shapes = [
        ((64, 64, 3, 3), (512, 512, 3, 3)),
        ((64, 64, 3, 3), (512, 64, 3, 3)),
        ((64, 64, 1, 1), (2048, 1000, 1, 1)),
        ((64, 4, 7, 7), (96, 3, 7, 7)),
        ((64, 64, 1, 1), (64, 2050, 1, 1)),
    ] * 3
    blocks, plan = make_plan(Kind.WEIGHT, shapes=shapes, dtype=torch.float32)
    blocks = [b.to(device).requires_grad_() for b in blocks]
    probe = torch.randn(plan.numel, device=device)
    results = []
    for chosen in ("reference", name):
        with ghn_fast.backend(chosen):
            flat = expand_params(blocks, plan)
            results.append((flat, *torch.autograd.grad(flat, blocks, probe)))
    assert torch.equal(results[0][0], results[1][0])
    for want, got in zip(results[0][1:], results[1][1:], strict=True):
        assert_close(got, want, context="gradient")


@pytest.mark.library
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    shapes = [((64, 64, 3, 3), (300, 200, 3, 3)), ((64, 1, 1, 1), (999, 1, 1, 1)), *SHAPES] * 2
    blocks, plan = make_plan(Kind.SCALE, shapes=shapes, dtype=torch.float32)
    blocks = [b.requires_grad_() for b in blocks]
    probe = torch.randn(plan.numel)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            flat = expand_params(blocks, plan)
            results.append([flat, *torch.autograd.grad(flat, blocks, probe)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(("name", "device"), COMPILED)
def test_random_plans_equal_the_reference(name: str, device: str) -> None:
    @settings(max_examples=40, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.tuples(*[st.integers(1, limit) for limit in (9, 9, 3, 3)]),
                st.tuples(*[st.integers(0, limit) for limit in (40, 20, 5, 5)]),
            ),
            max_size=6,
        ),
        st.sampled_from(list(Kind)),
        st.sampled_from([1, 4, 16]),
    )
    def check(shapes: Any, kind: Kind, align: int) -> None:
        blocks, plan = make_plan(kind, shapes=shapes, align=align)
        if not shapes:
            plan = ParamPlan([], 0)
        blocks = [b.to(device).requires_grad_() for b in blocks]
        with ghn_fast.backend(name):
            actual = expand_params(blocks, plan)
        with ghn_fast.backend("reference"):
            expected = expand_params(blocks, plan)
        assert_close(actual, expected)
        if blocks and plan.numel:
            probe = torch.randn(plan.numel).to(actual)
            want = torch.autograd.grad(expected, blocks, probe, allow_unused=True)
            got = torch.autograd.grad(actual, blocks, probe)
            for a, b in zip(got, want, strict=True):
                assert_close(a, torch.zeros_like(a) if b is None else b, context="gradient")

    check()


@pytest.mark.parametrize(("name", "device"), COMPILED)
def test_opcheck(name: str, device: str) -> None:
    blocks, plan = make_plan(Kind.SHIFT, shapes=SHAPES[:4])
    blocks = [b.to(device).requires_grad_() for b in blocks]
    packed = plan.packed(blocks) if device == "cuda" else None
    op = torch.ops.ghn_fast
    torch.library.opcheck(op.expand_params.default, (blocks, plan.table, packed, plan.numel))
    detached = [b.detach() for b in blocks]
    grad = torch.randn(plan.numel, dtype=torch.float64, device=device)
    torch.library.opcheck(op.expand_params_backward.default, (grad, detached, plan.table, packed))
    if device == "cpu":
        out = [torch.empty(row.shape, dtype=torch.float64) for row in plan.rows]
        torch.library.opcheck(op.expand_params_into.default, (detached, plan.table, out))


@pytest.mark.library
def test_compiles_as_one_graph() -> None:
    blocks, plan = make_plan(Kind.SCALE, shapes=SHAPES[:4], dtype=torch.float32)
    table = plan.table

    def run(*blocks: Tensor) -> Tensor:
        return torch.ops.ghn_fast.expand_params(list(blocks), table, None, plan.numel) * 2

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    inputs = [b.requires_grad_() for b in blocks]
    assert_close(compiled(*inputs), run(*inputs))
    for got, want in zip(
        torch.autograd.grad(compiled(*inputs).sum(), inputs),
        torch.autograd.grad(run(*inputs).sum(), inputs),
        strict=True,
    ):
        assert_close(got, want, context="gradient")


@pytest.mark.parametrize(("name", "device"), PLACES)
def test_destinations_of_every_type_and_order(name: str, device: str) -> None:
    blocks, plan = make_plan(Kind.SCALE, dtype=torch.float32)
    blocks = [b.to(device) for b in blocks]
    with ghn_fast.backend("reference"):
        flat = expand_params(blocks, plan)
    types = [torch.float32, torch.float16, torch.float64, torch.bfloat16]
    out: list[Tensor | None] = []
    for index, row in enumerate(plan.rows):
        tensor = torch.full(row.shape, math.nan, dtype=types[index % 4], device=device)
        if index % 3 == 0:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        out.append(None if index == 5 else tensor)
    with ghn_fast.backend(name):
        expand_params_into(blocks, plan, out)
    for row, tensor in zip(plan.rows, out, strict=True):
        if tensor is not None:
            want = flat[row.offset :][: tensor.numel()].view(row.shape)
            # Doubles hold what was computed in single precision.
            dtype = torch.float32 if tensor.dtype == torch.float64 else tensor.dtype
            assert_close(tensor.to(dtype), want.to(dtype))


@pytest.mark.parametrize(("name", "device"), PLACES)
def test_autograd_notices_overwritten_values(name: str, device: str) -> None:
    blocks, plan = make_plan(Kind.COPY, shapes=SHAPES[:1], dtype=torch.float32)
    blocks = [b.to(device) for b in blocks]
    out = [torch.rand(r.shape, device=device).requires_grad_() for r in plan.rows]
    loss = sum(tensor.square().sum() for tensor in out)
    with ghn_fast.backend(name):
        expand_params_into(blocks, plan, out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    with torch.inference_mode():
        expand_params_into(blocks, plan, [torch.empty(r.shape) for r in plan.rows])


@pytest.mark.parametrize("whole", [False, True])
def test_large_parameters_are_expanded_in_parts(
    monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    blocks, plan = make_plan(Kind.SCALE, dtype=torch.float32)
    monkeypatch.setattr(expand_params_plan, "_PIECE", 700)
    if whole:  # in an order that no view takes apart
        out = [torch.zeros(math.prod(r.shape), 2)[:, 0].view(-1, 1) for r in plan.rows]
        monkeypatch.setattr(module, "has_parts", lambda row, tensor: False)
    else:
        out = [torch.zeros(r.shape) for r in plan.rows]
    with ghn_fast.backend("reference"):
        flat = expand_params(blocks, plan)
        found = []
        for _ in range(2):
            expand_params_into(blocks, plan, out)
            assert plan._pieces is not None
            found.append(plan._pieces[1])
    assert found[0] is found[1]
    assert len(found[0]) > 3
    for row, tensor in zip(plan.rows, out, strict=True):
        want = flat[row.offset : row.offset + tensor.numel()]
        assert torch.equal(tensor.reshape(-1), want)


def test_bad_destinations_are_named() -> None:
    blocks, plan = make_plan(Kind.COPY, shapes=SHAPES[:1])
    good = [torch.zeros(row.shape) for row in plan.rows]
    with pytest.raises(ValueError, match="out: got 1 tensors, needs 2"):
        expand_params_into(blocks, plan, good[:1])
    with pytest.raises(ValueError, match=r"out\[1\]: got a tensor of shape \(3,\), needs 576"):
        expand_params_into(blocks, plan, [good[0], torch.zeros(3)])
    with pytest.raises(TypeError, match=r"out\[0\]: got torch.int64"):
        expand_params_into(blocks, plan, [good[0].long(), good[1]])
    if backend.library_problem() is None:
        with pytest.raises(ValueError, match="out: got 1 tensors, needs 2"):
            torch.ops.ghn_fast.expand_params_into(blocks, plan.table, good[:1])


def test_many_blocks_are_joined() -> None:
    blocks, plan = make_plan(Kind.SCALE, dtype=torch.float32)
    joined, other = module._joined(blocks, plan)
    assert len(joined) == 1
    assert torch.equal(expand_params(joined, other), expand_params(blocks, plan))


@pytest.mark.parametrize(("name", "device"), PLACES)
@pytest.mark.parametrize("kind", list(Kind))
def test_gradcheck(name: str, device: str, kind: Kind) -> None:
    shapes = [
        ((4, 3, 2, 2), (6, 5, 2, 2)),
        ((3, 2, 2, 2), (2, 5, 3, 1)),
        ((5, 1, 1, 1), (12, 1, 1, 1)),
    ]
    blocks, plan = make_plan(kind, shapes=shapes)
    inputs = [b.to(device).requires_grad_() for b in blocks]
    with ghn_fast.backend(name):
        assert torch.autograd.gradcheck(lambda *b: expand_params(b, plan), inputs)


@pytest.mark.parametrize(("name", "device"), PLACES)
def test_every_element_is_written(name: str, device: str, nan_empty: None) -> None:
    blocks, plan = make_plan(Kind.SCALE, align=16)
    blocks = [b.to(device).requires_grad_() for b in blocks]
    # An element that no row reads: its gradient is zero.
    blocks.append(torch.ones(3, dtype=torch.float64, device=device).requires_grad_())
    with ghn_fast.backend(name):
        flat = expand_params(blocks, plan)
        assert flat.isfinite().all()
        grads = torch.autograd.grad(flat.sum(), blocks, allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in grads)


@pytest.mark.parametrize(("name", "device"), PLACES)
def test_blocks_may_be_views(name: str, device: str) -> None:
    blocks, plan = make_plan(Kind.WEIGHT)
    blocks = [b.to(device) for b in blocks]
    strided = [torch.stack((b, b), dim=-1)[..., 0] for b in blocks]
    assert not strided[0].is_contiguous()
    with ghn_fast.backend(name):
        assert torch.equal(expand_params(strided, plan), expand_params(blocks, plan))


@pytest.mark.parametrize(("name", "device"), PLACES)
def test_a_plan_that_inference_used_first_can_be_trained_with(name: str, device: str) -> None:
    blocks, plan = make_plan(Kind.SCALE, dtype=torch.float32)
    blocks = [block.to(device) for block in blocks]
    with ghn_fast.backend(name):
        with torch.inference_mode():
            expected = expand_params(blocks, plan)
        leaves = [block.clone().requires_grad_() for block in blocks]
        found = expand_params(leaves, plan)
        assert torch.equal(found, expected)
        found.sum().backward()
    assert all(leaf.grad is not None for leaf in leaves)


@pytest.mark.cuda
def test_blocks_elsewhere_than_the_plan_are_named() -> None:
    blocks, plan = make_plan(Kind.COPY, dtype=torch.float32)
    packed = plan.packed([block.cuda() for block in blocks])
    with pytest.raises(ValueError, match="blocks: got tensors on cpu, needs them on a GPU"):
        torch.ops.ghn_fast.expand_params(blocks, plan.table, packed, plan.numel)


def test_empty_plan() -> None:
    assert expand_params([], ParamPlan([], 0)).shape == (0,)


@pytest.mark.parametrize(("name", "device"), PLACES)
def test_bad_plans_are_named(name: str, device: str) -> None:
    block = torch.zeros(8, device=device)
    good = PlanRow(0, 0, (8, 1, 1, 1), (4, 1, 1, 1), Kind.COPY, 1.0, 0)

    def run(rows: list[PlanRow], numel: int, *blocks: Tensor) -> Tensor:
        return expand_params([block, *blocks], ParamPlan(rows, numel))

    with ghn_fast.backend(name):
        assert run([good], 4).shape == (4,)
        with pytest.raises(ValueError, match=r"rows\[0\]: reads elements 1 to 9"):
            run([good._replace(source=1)], 4)
        with pytest.raises(ValueError, match=r"rows\[0\]: reads elements -1 to 7"):
            run([good._replace(source=-1)], 4)
        with pytest.raises(ValueError, match=r"rows\[0\].block: got 1"):
            run([good._replace(block=1)], 4)
        with pytest.raises(ValueError, match=r"rows\[0\].offset: got 2, needs 0"):
            run([good._replace(offset=2)], 6)
        with pytest.raises(ValueError, match=r"rows\[1\].offset: got 3, needs at least 4"):
            run([good, good._replace(offset=3)], 8)
        with pytest.raises(ValueError, match=r"plan\.numel: got 3, needs at least 4"):
            run([good], 3)
        with pytest.raises(ValueError, match=r"plan\.numel: got 7, needs at least 8"):
            run([good, good._replace(offset=4)], 7)
        with pytest.raises(ValueError, match=r"rows\[0\]: got shapes"):
            run([good._replace(shape=(4, -1, 1, 1))], 4)
        with pytest.raises(ValueError, match=r"rows\[0\]: got shapes"):
            run([good._replace(block_shape=(0, 1, 1, 1))], 4)
        with pytest.raises(ValueError, match=r"kind: got 9"):
            run([good._replace(kind=9)], 4)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"blocks\[1\]: got (torch\.float64|Double)"):
            run([good], 4, block.double())
        with pytest.raises(TypeError, match=r"blocks\[1\]: got (torch\.int64|Long)"):
            run([good], 4, block.long())
        with pytest.raises(ValueError, match=r"blocks\[1\]: got a tensor on meta"):
            run([good], 4, block.to("meta"))
    with pytest.raises(ValueError, match=r"plan\.numel: got 5, needs 0"):
        expand_params([block], ParamPlan([], 5))


@pytest.mark.library
def test_bad_arguments_of_the_compiled_ops_are_named() -> None:
    op = torch.ops.ghn_fast
    blocks, plan = make_plan(Kind.COPY, shapes=SHAPES[:1])
    table, numel = plan.table, plan.numel
    grad = torch.zeros(numel, dtype=torch.float64)
    for call, error, message in (
        (lambda: op.expand_params(blocks, table.int(), None, numel), ValueError, "table: got Int"),
        (lambda: op.expand_params(blocks, table[:, :5], None, numel), ValueError, "table: got sha"),
        (lambda: op.expand_params(blocks, table, None, -1), ValueError, "numel: got -1"),
        (lambda: op.expand_params(blocks, table, None, numel - 1), ValueError, "plan.numel: got"),
        (lambda: op.expand_params_backward(grad[1:], blocks, table, None), ValueError, "numel"),
        (lambda: op.expand_params_backward(grad.float(), blocks, table, None), ValueError, "grad"),
        (lambda: op.expand_params_backward(grad[None], blocks, table, None), ValueError, "grad"),
    ):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.cuda
def test_a_plan_packed_from_another_table_gives_nan() -> None:
    blocks, plan = make_plan(Kind.COPY, shapes=SHAPES[:3], dtype=torch.float32)
    blocks = [b.cuda() for b in blocks]
    other = ParamPlan([row._replace(kind=Kind.SCALE) for row in plan.rows], plan.numel)
    op = torch.ops.ghn_fast
    packed = other.packed(blocks)
    assert op.expand_params(blocks, plan.table, packed, plan.numel).isnan().all()
    grads = op.expand_params_backward(
        torch.ones(plan.numel, device="cuda"), blocks, plan.table, packed
    )
    assert all(g.isnan().all() for g in grads)
    with pytest.raises(ValueError, match="packed: got None"):
        op.expand_params(blocks, plan.table, None, plan.numel)
    with pytest.raises(ValueError, match="packed: got shape"):
        op.expand_params(blocks, plan.table, packed[:-8], plan.numel)
