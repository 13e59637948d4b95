"""Linear layers on the fastest library for them.

Prediction spends much of its time in one product of (nodes x positions, 8C) with (8C, 64 * 64). On
CPUs with AVX-512 that are not Intel's, oneDNN is twice as fast at it in float32 as the BLAS that
torch calls (240 against 110 GFLOP/s on one core of an AMD EPYC, ``benchmarks/linear.py``). torch
offers it through an op for inference alone, so gradients and other devices take the usual way.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

# Below, the setting up of a call outweighs the gain.
_LEAST_PRODUCTS = 1 << 20


def linear(x: Tensor, weight: Tensor, bias: Tensor, *, relu: bool = False) -> Tensor:
    """x W^T + b, optionally followed by a ReLU.

    Args:
        x: (..., in).
        weight: (out, in).
        bias: (out,).
        relu: Whether to apply max(0, .).

    Returns:
        (..., out).
    """
    differentiated = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (x, weight, bias)
    )
    if (
        not differentiated
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.numel() * len(weight) >= _LEAST_PRODUCTS
        and not torch.compiler.is_compiling()
        and _has_onednn()
    ):
        after = "relu" if relu else "none"
        # Strided weights would take oneDNN's slow reference path.
        return torch.ops.mkldnn._linear_pointwise(
            x.contiguous(), weight.contiguous(), bias.contiguous(), after, [], ""
        )
    result = F.linear(x, weight, bias)
    return F.relu(result) if relu else result


@cache
def _has_onednn() -> bool:
    """Whether torch has the op, as it is called here, and the CPU gains from it."""
    if not torch.backends.mkldnn.is_available():
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or _is_intel():
        return False
    try:
        x, weight, bias = torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)
        found = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "relu", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.equal(found, torch.full((2, 4), 4.0))


def _is_intel() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            return "GenuineIntel" in file.read(2000)
    except OSError:
        return True
