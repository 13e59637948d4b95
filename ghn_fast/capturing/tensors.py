"""Tensors among the values of a forward pass, and where the record says that they come from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

STAND_IN = "_ghn_stand_in"
"""Attribute by which modules of a stand-in are told from the network's own."""


def edge(tensor: Any) -> Any:
    """What an operation that reads ``tensor`` points to (``None`` for what has no gradient)."""
    if isinstance(tensor, Tensor) and tensor.requires_grad:
        node = tensor.grad_fn
        return tensor if node is None else node
    return None


def is_mask(tensor: Tensor) -> bool:
    """Whether a floating-point input is added to attention weights: it has infinite elements."""
    plain = tensor.is_floating_point() and not tensor.is_meta and tensor.layout is torch.strided
    return plain and tensor.numel() > 0 and float(tensor.detach().amin()) == -math.inf


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists, mappings and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))
