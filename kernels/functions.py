"""Functions of elements that kernels share."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """tanh x to the last few bits: near 0 by its continued fraction, x / (1 + x^2 / (3 + ...)).

    There is no tanh that every version of Triton and its interpreter have.
    """
    a = tl.abs(x)
    z = tl.minimum(a, 0.625)
    z = z * z
    near = (((z + 378.0) * z + 17325.0) * z + 135135.0) / (
        ((28.0 * z + 3150.0) * z + 62370.0) * z + 135135.0
    )
    far = 1.0 - 2.0 / (tl.exp(2.0 * a) + 1.0)
    return tl.where(a < 0.625, x * near, tl.where(x < 0.0, -far, far))


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + tl.exp(-x))
