"""Batch normalisation of channels-last activations on a CPU, with exact statistics.

torch's kernel for this layout adds up all values of a channel one after the other in single
precision. Its errors in mean and variance are some hundred times those of a sum in blocks, and a
deep network with ReLUs enlarges them: where a sign flips, a whole path of the gradient goes. Here
means are taken image by image, and over the images in double precision.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Normalise (B, C, H, W) by the statistics of the batch, then scale and shift by (C,)."""
    if (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.ndim == 4
        and x.is_contiguous(memory_format=torch.channels_last)
    ):
        result: Tensor = _BatchNorm.apply(x, weight, bias, eps)
        return result
    return F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        count, channels, height, width = x.shape
        pixels = x.permute(0, 2, 3, 1).reshape(count, height * width, channels)
        mean = pixels.mean(1).double().mean(0).float()
        centred = pixels - mean
        variance = centred.mul_(centred).mean(1).double().mean(0).float()
        result = torch.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, eps)[0]
        ctx.save_for_backward(x, weight, mean, (variance.double() + eps).rsqrt().float())
        ctx.eps = eps
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, invstd = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        found = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, weight, None, None, mean, invstd, True, ctx.eps, wanted
        )
        return (*found, None)
