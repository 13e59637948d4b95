"""Gradients of the hypernetwork in one flat buffer, added up over processes in one message."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ghn_fast.utils import distributed


class GradientBuffer:
    """The gradients of parameters as views of one buffer, with room for statistics at its end.

    Args:
        parameters: The parameters, of one floating-point type on one device.
        extra: Number of statistics.
        reduce: Whether to add up over all processes.

    Attributes:
        stats: The statistics (extra,), added up over all processes by :meth:`finish`.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], extra: int = 0, *, reduce: bool = True
    ) -> None:
        # The last bit of the norm, and with it a clipped run, depends on the order.
        self._parameters = list(reversed(parameters))
        sizes = [parameter.numel() for parameter in self._parameters]
        first = self._parameters[0]
        self._flat = torch.zeros(sum(sizes) + extra, device=first.device, dtype=first.dtype)
        *pieces, self.stats = self._flat.split([*sizes, extra])
        self._gradient = self._flat[: sum(sizes)]
        self._views = [
            piece.view(parameter.shape)
            for piece, parameter in zip(pieces, self._parameters, strict=True)
        ]
        self._reduce = reduce and distributed.world_size() > 1

    def start(self) -> None:
        """Set all gradients and statistics to zero, before the backward pass."""
        self._flat.zero_()
        for parameter, view in zip(self._parameters, self._views, strict=True):
            parameter.grad = view

    def clear(self) -> None:
        """Set all gradients to zero, and leave the statistics as they are."""
        self._gradient.zero_()

    def finish(self) -> None:
        """Add up over all processes, after the backward pass.

        In one message: for a hypernetwork of 1.6 million weights, sending buckets while the
        backward pass goes on was not faster.
        """
        if self._reduce:
            distributed.all_reduce(self._flat)

    def clip(self, largest: float) -> Tensor:
        """Scale the gradients down to a norm of at most ``largest``; their norm before, ()."""
        norm = torch.linalg.vector_norm(self._gradient)
        self._gradient.mul_((largest / (norm + 1e-6)).clamp(max=1.0))
        return norm
