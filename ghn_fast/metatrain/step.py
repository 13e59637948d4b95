"""One step of meta-training: predict, run the candidate networks, update the hypernetwork."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ghn_fast.graph.arch_graph import ArchGraph
from ghn_fast.hypernet.batchnorm import use_batch_statistics
from ghn_fast.hypernet.ghn import GHN


class Architecture(Protocol):
    """What a step needs of an architecture."""

    def graph_for(self, *, num_classes: int, image_size: int) -> ArchGraph:
        """Its architecture graph."""

    def build(self, *, num_classes: int, image_size: int) -> nn.Module:
        """Its network."""


@dataclass(frozen=True)
class StepResult:
    """Outcome of a step.

    Attributes:
        loss: Mean cross-entropy over the architectures that had a finite one; NaN if none had.
        top1: Mean accuracy of them, in percent.
        skipped: Number of architectures left out because their loss was not finite.
    """

    loss: float
    top1: float
    skipped: int


def meta_step(
    ghn: GHN,
    optimizer: torch.optim.Optimizer,
    architectures: Sequence[Architecture],
    images: Tensor,
    targets: Tensor,
    *,
    grad_clip: float,
) -> StepResult:
    """Update the hypernetwork on a meta-batch of architectures and a batch of images.

    The loss is the mean cross-entropy over the architectures (arXiv 2110.13100, Eq. 2). Each
    network runs forward and backward by itself, on views of its part of the flat buffer of
    predicted parameters, so that one network's activations are in memory at a time; the gradients
    of all parts then pass through the hypernetwork together.

    Args:
        ghn: The hypernetwork, in training mode.
        optimizer: Of its weights.
        architectures: The meta-batch.
        images: Images (B, 3, S, S).
        targets: Class of each image (B,).
        grad_clip: Largest norm of the gradient.
    """
    num_classes, size = ghn.config.num_classes, images.shape[-1]
    graphs = [
        architecture.graph_for(num_classes=num_classes, image_size=size)
        for architecture in architectures
    ]
    optimizer.zero_grad(set_to_none=True)
    flat, plan = ghn.predict_flat(graphs)
    spans = plan.spans()
    sizes = [end - begin for begin, end in spans]
    parts = [part.requires_grad_() for part in flat.detach().split(sizes)]

    losses: list[float] = []
    correct = 0
    for architecture, part, ranges, (begin, _) in zip(
        architectures, parts, plan.ranges, spans, strict=True
    ):
        with torch.device("meta"):
            network = architecture.build(num_classes=num_classes, image_size=size).train()
        use_batch_statistics(network)
        logits = torch.func.functional_call(network, _views(part, ranges, begin), (images,))
        loss = F.cross_entropy(logits, targets)
        if not math.isfinite(float(loss.detach())):
            continue
        (loss / len(architectures)).backward()
        if part.grad is None or not bool(part.grad.isfinite().all()):
            part.grad = None
            continue
        losses.append(float(loss.detach()))
        correct += int((logits.detach().argmax(1) == targets).sum())

    if losses:
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parts]
        flat.backward(torch.cat(gradients))
        norm = nn.utils.clip_grad_norm_(ghn.parameters(), grad_clip)
        if bool(norm.isfinite()):
            optimizer.step()
        else:
            # Clipping by an infinite norm would turn every weight into NaN.
            losses, correct = [], 0
    count = max(len(losses), 1)
    return StepResult(
        loss=sum(losses) / count if losses else math.nan,
        top1=100.0 * correct / (count * len(targets)),
        skipped=len(architectures) - len(losses),
    )


def _views(
    part: Tensor, ranges: dict[str, tuple[int, tuple[int, ...]]], begin: int
) -> dict[str, Tensor]:
    # Each piece with the gap behind it: one split, whose backward pass fills one buffer.
    offsets = [offset - begin for offset, _ in ranges.values()] + [len(part)]
    pieces = part.split([after - before for before, after in pairwise(offsets)])
    return {
        name: piece[: math.prod(shape)].view(shape)
        for piece, (name, (_, shape)) in zip(pieces, ranges.items(), strict=True)
    }
