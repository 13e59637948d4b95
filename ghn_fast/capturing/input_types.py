"""What a caller says of the inputs of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

InputShape = Sequence[int] | Sequence[Sequence[int]]
"""Shape of one input without the batch dimension, or a sequence of shapes for several inputs."""

ExampleInputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
"""A tensor, a tuple or list of positional arguments, or a dict of keyword arguments."""
