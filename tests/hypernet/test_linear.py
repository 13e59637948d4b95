from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ghn_fast.hypernet.linear import linear
from tolerances import assert_close


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(0, 8), (1, 8), (3000, 8), (2, 1500, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torch_with_and_without_gradients(
    relu: bool, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = torch.randn(shape, dtype=dtype)
    weight, bias = torch.randn(65, 8, dtype=dtype), torch.randn(65, dtype=dtype)
    want = F.linear(x, weight, bias)
    want = F.relu(want) if relu else want
    assert_close(linear(x, weight, bias, relu=relu), want)
    # Views of larger weights, as the decoder takes them.
    wide = torch.cat([weight, weight], dim=1)[:, :8]
    assert_close(linear(x, wide, bias, relu=relu), want)
    weight.requires_grad_()
    found = linear(x, weight, bias, relu=relu)
    (got,) = torch.autograd.grad(found.sum(), weight)
    (expected,) = torch.autograd.grad(
        (F.relu(F.linear(x, weight, bias)) if relu else F.linear(x, weight, bias)).sum(), weight
    )
    assert_close(got, expected, context="gradient")
