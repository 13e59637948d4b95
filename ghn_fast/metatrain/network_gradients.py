"""How much each candidate network of a meta-batch contributes to a step.

Gradients of different architectures differ in size by orders of magnitude: the largest of eight
often holds most of the sum of their norms, takes the step for itself, and clipping the sum then
shrinks the others. Here the gradient of each network with respect to its predicted parameters is
compared with the median norm of networks before it, and made smaller, or brought to that size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from statistics import median
from typing import Any

import torch
from torch import Tensor

RULES = ("summed", "clipped", "scaled")
# Norms that the median is taken over: that of the weights of today, but steady.
WINDOW = 512


class NetworkGradients:
    """Rescales the gradient of each network by the median norm of those before it.

    A step reads norms of earlier steps alone, so that networks of one step can be on several
    processes, and a run that is continued goes on exactly.

    Args:
        rule: ``summed`` leaves gradients as they are (arXiv 2110.13100, Eq. 2); ``clipped`` shrinks
            those above ``limit`` times the median norm to that; ``scaled`` gives each the median
            norm.
        limit: Multiple of the median at which ``clipped`` begins.
    """

    def __init__(self, rule: str = "summed", limit: float = 2.0) -> None:
        self.rule = rule
        self.limit = limit
        self._norms: deque[float] = deque(maxlen=WINDOW)

    def rescale(self, regions: Iterable[Tensor]) -> list[Tensor]:
        """Rescale gradients in place.

        Args:
            regions: Per network its gradient (p,), for the parameters predicted for it.

        Returns:
            The norm of each before that, a tensor (), on its device; zeros where nothing depends on
            them. Nothing waits for the device.
        """
        if self.rule == "summed":
            return [region.new_zeros(()) for region in regions]
        typical = median(self._norms) if self._norms else None
        norms = []
        for region in regions:
            norm = torch.linalg.vector_norm(region)
            norms.append(norm)
            if typical is None:
                continue
            # A gradient of zeros, that of a skipped network, stays one.
            least = torch.finfo(region.dtype).tiny
            if self.rule == "clipped":
                region.mul_((self.limit * typical / norm.clamp(min=least)).clamp(max=1.0))
            else:
                region.mul_((typical / norm.clamp(min=least)).clamp(max=1 / least))
        return norms

    def observe(self, norms: Iterable[float]) -> None:
        """Take up the norms of networks that were not skipped, on all processes the same."""
        self._norms.extend(norm for norm in norms if norm > 0)

    def state_dict(self) -> dict[str, Any]:
        """The norms that the median is taken over, from old to new."""
        return {"norms": list(self._norms)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self._norms = deque((float(norm) for norm in state["norms"]), maxlen=WINDOW)
