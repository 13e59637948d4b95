"""How much the weights of different networks differ."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ghn_fast.studies.initialisation import weight_tensors


class WeightDiversity:
    """Mean cosine distance between weights of equal shape in different networks.

    A hypernetwork that predicts nearly the same for every network has a value near 0, independent
    weights one near 1 (arXiv 2110.13100, appendix C: 0.98 for SGD, 0.17 for GHN-2).

    Args:
        most: Networks whose weights of one shape are kept.
    """

    def __init__(self, most: int = 50) -> None:
        self._most = most
        self._weights: dict[tuple[int, ...], list[Tensor]] = {}

    def add(self, model: nn.Module) -> None:
        """Take the weights of a network: of each shape the first one, the classifier left out."""
        seen = set()
        for _, weight in weight_tensors(model)[:-1]:
            shape = tuple(weight.shape)
            kept = self._weights.setdefault(shape, [])
            if shape in seen or len(kept) >= self._most or weight.numel() < 9:
                continue
            seen.add(shape)
            values = weight.detach().flatten().float().cpu()
            kept.append(values / values.norm().clamp(min=1e-12))

    @property
    def distance(self) -> float | None:
        """Mean of 1 - cosine over all pairs; ``None`` if no shape occurs in two networks."""
        total, pairs = 0.0, 0
        for weights in self._weights.values():
            count = len(weights)
            if count < 2:
                continue
            summed = torch.stack(weights).sum(dim=0)
            # The squared norm of the sum has every pair twice, and each with itself once.
            cosines = (float(summed @ summed) - sum(float(w @ w) for w in weights)) / 2
            pairs += count * (count - 1) // 2
            total += count * (count - 1) / 2 - cosines
        return total / pairs if pairs else None
