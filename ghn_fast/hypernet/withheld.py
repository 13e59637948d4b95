"""Which parameters are left out of a prediction although the graph predicts them.

Those are frozen parameters, and those whose memory is not theirs alone. They are found before
anything is written, so that a prediction writes all that it reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from ghn_fast.hypernet.bind import Destinations
from ghn_fast.hypernet.named import named_parameters

_FROZEN = (
    "frozen (requires_grad=False, other parameters are trainable): its values are meant to stay; "
    "frozen='predict' predicts it as well"
)


def check_frozen(frozen: str) -> None:
    """Check what a caller wants to be done with frozen parameters.

    Raises:
        ValueError: If it is neither ``"keep"`` nor ``"predict"``.
    """
    if frozen not in ("keep", "predict"):
        raise ValueError(f"frozen: got {frozen!r}, needs 'keep' or 'predict'")


def withhold(model: nn.Module, found: Destinations, frozen: str) -> Destinations:
    """Leave out what has to keep its values.

    Args:
        model: The network.
        found: Where predictions would go.
        frozen: ``"keep"``: a parameter with ``requires_grad=False`` in a network that has trainable
            ones is fixed by design (Sobel filters, the integral weights of YOLO) and keeps its
            values; in a wholly frozen network nothing is special. ``"predict"``: it is predicted.

    Returns:
        ``found``, or one in which those have no tensor and are among the skipped.
    """
    fixed = frozen == "keep" and not all(t is None or t.requires_grad for t in found.tensors)
    if not fixed and _are_apart(found.tensors):
        return found
    named = named_parameters(model)
    rows = {id(tensor): row for row, tensor in enumerate(found.tensors) if tensor is not None}
    reasons: dict[int, str] = {}
    if fixed and any(parameter.requires_grad for _, parameter in named):
        for row, tensor in enumerate(found.tensors):
            if tensor is not None and not tensor.requires_grad:
                reasons[row] = _FROZEN
    written: list[tuple[str, Tensor]] = []
    for name, parameter in named:
        row = rows.get(id(parameter), -1)
        if row < 0 or row in reasons:
            continue
        if _overlaps_itself(parameter):
            reasons[row] = "several of its elements are one place in memory (an expanded view)"
            continue
        other = next((n for n, t in written if _overlap(t, parameter)), None)
        if other is not None:
            reasons[row] = f"its memory is partly that of '{other}', which is predicted"
            continue
        written.append((name, parameter))
    if not reasons:
        return found
    skipped = dict(found.skipped)
    for name, parameter in named:
        reason = reasons.get(rows.get(id(parameter), -1))
        if reason is not None:
            skipped[name] = reason
    return replace(
        found,
        tensors=[None if row in reasons else t for row, t in enumerate(found.tensors)],
        predicted=[name for name in found.predicted if name not in skipped],
        skipped=skipped,
    )


def _are_apart(tensors: Sequence[Tensor | None]) -> bool:
    """Whether no two elements of all tensors share memory; in doubt they might."""
    spans = []
    for tensor in tensors:
        if tensor is not None and tensor.numel():
            if not (tensor.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense(tensor)):
                return False
            begin = tensor.data_ptr()
            spans.append((begin, begin + tensor.nbytes))
    spans.sort()
    return all(a[1] <= b[0] for a, b in pairwise(spans))


def _overlaps_itself(tensor: Tensor) -> bool:
    """Whether several elements of a tensor share memory, as far as its strides tell."""
    least = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= least:
                return True
            least += stride * (size - 1)
    return False


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors, neither of which overlaps itself, share an element's memory."""
    if not (a.numel() and b.numel()) or a.device != b.device:
        return False
    first, last = sorted((a, b), key=Tensor.data_ptr)
    if first.data_ptr() + _extent(first) <= last.data_ptr():
        return False
    if a.is_contiguous() and b.is_contiguous():
        return True
    # Two views of one matrix may interleave without sharing an element.
    return not set(_places(a)).isdisjoint(_places(b))


def _extent(tensor: Tensor) -> int:
    """Bytes from the first to behind the last element of a tensor."""
    steps = sum(s * (n - 1) for s, n in zip(tensor.stride(), tensor.shape, strict=True))
    return (steps + 1) * tensor.element_size()


def _places(tensor: Tensor) -> list[int]:
    """Addresses of all bytes of a tensor."""
    steps = torch.zeros((), dtype=torch.int64)
    for stride, size in zip(tensor.stride(), tensor.shape, strict=True):
        steps = steps[..., None] + stride * torch.arange(size)
    width = tensor.element_size()
    places = tensor.data_ptr() + width * steps[..., None] + torch.arange(width)
    return places.flatten().tolist()
