"""Gradients of the hypernetwork in one flat buffer, added up over processes during backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ghn_fast.utils import distributed

# Smaller messages cost their latency anyway, so a bucket waits for this many elements.
BUCKET = 2**19


class GradientBuffer:
    """The gradients of parameters as views of one buffer, with room for statistics at its end.

    With several processes, the buffer is added up over them in buckets. A bucket starts when all
    its gradients are there, while the backward pass is still busy with others; parameters are in
    reverse order, because those used last have their gradients first. The statistics travel with
    the last bucket.

    Args:
        parameters: The parameters, of one floating-point type on one device.
        extra: Number of statistics.
        bucket: Least number of elements of a bucket.
        reduce: Whether to add up at all.

    Attributes:
        stats: The statistics (extra,), added up over all processes by :meth:`finish`.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        extra: int = 0,
        bucket: int = BUCKET,
        *,
        reduce: bool = True,
    ) -> None:
        self._parameters = list(reversed(parameters))
        sizes = [parameter.numel() for parameter in self._parameters]
        first = self._parameters[0]
        self._flat = torch.zeros(sum(sizes) + extra, device=first.device, dtype=first.dtype)
        self._numel = sum(sizes)
        self.stats = self._flat[self._numel :]
        pieces = self._flat[: self._numel].split(sizes)
        self._views = [
            piece.view(parameter.shape)
            for piece, parameter in zip(pieces, self._parameters, strict=True)
        ]
        self._buckets, owner = _buckets(sizes, bucket)
        # The last bucket also takes the statistics.
        self._buckets[-1] = (self._buckets[-1][0], self._numel + extra)
        self._members = [owner.count(index) for index in range(len(self._buckets))]
        self._missing = list(self._members)
        self._next = 0
        self._pending: list[Any] = []
        self._handles = []
        self._reduce = reduce and distributed.world_size() > 1
        if self._reduce:
            for parameter, index in zip(self._parameters, owner, strict=True):
                self._handles.append(
                    parameter.register_post_accumulate_grad_hook(self._hook(index))
                )

    def start(self) -> None:
        """Set all gradients and statistics to zero, before the backward pass."""
        self._flat.zero_()
        for parameter, view in zip(self._parameters, self._views, strict=True):
            parameter.grad = view
        self._missing = list(self._members)
        self._next = 0
        self._pending = []

    def finish(self) -> None:
        """Add up what is not on its way yet, and wait for everything."""
        while self._reduce and self._next < len(self._buckets):
            self._send()
        for pending in self._pending:
            if pending is not None:
                pending.wait()
        self._pending = []

    def clip(self, largest: float) -> Tensor:
        """Scale the gradients down to a norm of at most ``largest``; their norm before, ()."""
        gradient = self._flat[: self._numel]
        norm = torch.linalg.vector_norm(gradient)
        gradient.mul_((largest / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def detach(self) -> None:
        """Take the hooks off the parameters."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, index: int) -> Any:
        def arrived(parameter: Tensor) -> None:
            self._missing[index] -= 1
            # In the same order everywhere; the statistics are known before the backward pass.
            while self._next < len(self._buckets) and self._missing[self._next] <= 0:
                self._send()

        return arrived

    def _send(self) -> None:
        first, last = self._buckets[self._next]
        self._pending.append(distributed.all_reduce(self._flat[first:last]))
        self._next += 1


def _buckets(sizes: Sequence[int], least: int) -> tuple[list[tuple[int, int]], list[int]]:
    """Ranges of the buckets, and the bucket of each parameter."""
    buckets: list[tuple[int, int]] = []
    owner: list[int] = []
    first = last = 0
    for size in sizes:
        owner.append(len(buckets))
        last += size
        if last - first >= least:
            buckets.append((first, last))
            first = last
    if last > first or not buckets:
        buckets.append((first, last))
    return buckets, owner
