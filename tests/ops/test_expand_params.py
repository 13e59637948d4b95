from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import naive
from ghn_fast.ops.expand_params import Kind, ParamPlan, PlanRow, expand_params
from tolerances import assert_close

SHAPES = [
    ((8, 8, 3, 3), (8, 8, 3, 3)),
    ((8, 8, 3, 3), (5, 3, 1, 2)),
    ((8, 8, 3, 3), (20, 9, 3, 3)),
    ((8, 4, 1, 1), (3, 17, 1, 1)),
    ((4, 4, 2, 2), (9, 2, 5, 3)),
    ((6, 1, 1, 1), (13, 1, 1, 1)),
    ((2, 2, 1, 1), (0, 2, 1, 1)),
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


def make_plan(kind: Kind) -> tuple[list[Tensor], ParamPlan]:
    """All shapes in one plan; two blocks share a tensor, the second at an offset."""
    blocks, rows, end = [], [], 0
    for index, (block_shape, shape) in enumerate(SHAPES):
        size = math.prod(block_shape)
        blocks.append(torch.randn(2, size, dtype=torch.float64))
        scale = 0.5 + index
        rows.append(PlanRow(index, size * (index % 2), block_shape, shape, kind, scale, end))
        end += math.prod(shape)
    return blocks, ParamPlan(rows, end)


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_equal_indexing(kind: Kind, dtype: torch.dtype) -> None:
    blocks, plan = make_plan(kind)
    blocks = [b.to(dtype).requires_grad_() for b in blocks]
    expected = torch.cat(
        [
            normalise(
                naive.tile(blocks[r.block][int(r.source > 0)].view(r.block_shape), r.shape),
                kind,
                r.scale,
            ).flatten()
            for r in plan.rows
        ]
    )
    actual = expand_params(blocks, plan)
    assert_close(actual, expected)
    probe = torch.randn_like(expected)
    want = torch.autograd.grad((expected * probe).sum(), blocks)
    got = torch.autograd.grad((actual * probe).sum(), blocks)
    for index in range(len(blocks)):
        assert_close(got[index], want[index], context="gradient", name=f"block {index}")


@pytest.mark.parametrize("kind", list(Kind))
def test_gradcheck(kind: Kind) -> None:
    blocks, plan = make_plan(kind)
    inputs = [b.requires_grad_() for b in blocks]
    assert torch.autograd.gradcheck(lambda *b: expand_params(b, plan), inputs)


def test_every_element_is_written(nan_empty: None) -> None:
    blocks, plan = make_plan(Kind.SCALE)
    assert expand_params(blocks, plan).isfinite().all()


def test_empty_plan() -> None:
    assert expand_params([], ParamPlan([], 0)).shape == (0,)


def test_bad_plans_are_named() -> None:
    block = torch.zeros(8)
    good = PlanRow(0, 0, (8, 1, 1, 1), (4, 1, 1, 1), Kind.COPY, 1.0, 0)
    assert expand_params([block], ParamPlan([good], 4)).shape == (4,)
    with pytest.raises(ValueError, match=r"rows\[0\]: reads elements 1 to 9"):
        expand_params([block], ParamPlan([good._replace(source=1)], 4))
    with pytest.raises(ValueError, match=r"rows\[0\].block: got 1"):
        expand_params([block], ParamPlan([good._replace(block=1)], 4))
    with pytest.raises(ValueError, match=r"rows\[0\].offset: got 2"):
        expand_params([block], ParamPlan([good._replace(offset=2)], 6))
    with pytest.raises(ValueError, match=r"plan\.numel: got 5"):
        expand_params([block], ParamPlan([good], 5))
    with pytest.raises(TypeError, match=r"blocks\[1\]: got torch.float64"):
        expand_params([block, block.double()], ParamPlan([good], 4))
