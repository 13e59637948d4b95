"""A penalty on the norms of predicted parameters (arXiv 2303.04143, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ghn_fast.metatrain.candidate_run import Ranges


def add_norm_penalty(
    flat: Tensor, gradient: Tensor, ranges: Sequence[Ranges], factors: Tensor
) -> None:
    """Add the gradient of ``sum over networks of factor * sum over tensors of ||p||`` in place.

    The norm is the Euclidean one of each tensor, not its square; where it is zero its gradient
    counts as zero. All norms are one reduction over the tensors of the buffer.

    Args:
        flat: Flat buffer of parameters (P,).
        gradient: Its gradient so far (P,).
        ranges: Per network where its parameters lie.
        factors: Factor of each network, on the device of ``flat``; 0 for one that was skipped.
    """
    places = [
        (offset, math.prod(shape), network)
        for network, of_network in enumerate(ranges)
        for offset, shape in of_network.values()
        if math.prod(shape)
    ]
    if not places:
        return
    with torch.no_grad():
        parameters = [flat[offset : offset + size] for offset, size, _ in places]
        into = [gradient[offset : offset + size] for offset, size, _ in places]
        norms = torch._foreach_norm(parameters)
        networks = torch.tensor([network for *_, network in places]).to(flat.device)
        scale = factors.to(flat.dtype)[networks]
        lengths = torch.stack(list(norms))
        scale = torch.where(lengths > 0, scale / lengths, 0.0)
        torch._foreach_add_(into, torch._foreach_mul(parameters, list(scale.unbind())))
