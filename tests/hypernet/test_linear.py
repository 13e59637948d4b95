from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ghn_fast.hypernet.linear import sliced_linears
from tolerances import assert_close

SIZES = [(3, 4), (16, 12), (1, 12), (16, 1), (2, 2)]


def plain(
    inputs: list[Tensor], weight: Tensor, bias: Tensor, sizes: list[tuple[int, int]], relu: bool
) -> list[Tensor]:
    result = []
    for x, (a, b) in zip(inputs, sizes, strict=True):
        y = torch.einsum("ni,abi->nab", x, weight[:a, :b]) + bias[:a, :b]
        result.append((F.relu(y) if relu else y).flatten(1))
    return result


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 9, 700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_equal_einsum(relu: bool, rows: int, dtype: torch.dtype) -> None:
    weight = torch.randn(16, 12, 40, dtype=dtype).requires_grad_()
    bias = torch.randn(16, 12, dtype=dtype).requires_grad_()
    inputs = [torch.randn(rows, 40, dtype=dtype).requires_grad_() for _ in SIZES]
    want = plain(inputs, weight, bias, SIZES, relu)
    got = sliced_linears(inputs, weight, bias, SIZES, relu=relu)
    probes = [torch.randn_like(y) for y in want]
    leaves = [weight, bias, *inputs]
    expected = torch.autograd.grad(want, leaves, probes)
    found = torch.autograd.grad(got, leaves, probes)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, context="gradient")


def test_gradcheck_with_unused_outputs() -> None:
    weight = torch.randn(3, 2, 4, dtype=torch.float64).requires_grad_()
    bias = torch.randn(3, 2, dtype=torch.float64).requires_grad_()
    x = torch.randn(5, 4, dtype=torch.float64).requires_grad_()

    def run(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        return sliced_linears([x, x * 2], weight, bias, [(3, 2), (2, 1)])[1]

    assert torch.autograd.gradcheck(run, [weight, bias, x])


def test_no_inputs() -> None:
    assert sliced_linears([], torch.zeros(2, 3), torch.zeros(2), []) == []
