"""What a capture says of each parameter, in the form that the tests of roles compare."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from ghn_fast.capturing import capture
from ghn_fast.graph import NODE_TYPES

Role = tuple[str, int | None]


def roles(model: nn.Module, **inputs: Any) -> dict[str, Any]:
    """Name to (node type, fan-in), or to the reason for which a parameter is skipped."""
    graph = capture(model, **inputs)
    found: dict[str, Any] = dict(graph.skipped)
    for target in graph.targets:
        assert target.name not in found
        kind = NODE_TYPES[int(graph.op_types[target.node])]
        if graph.shift_names.get(target.node) == target.name:
            kind = "shift"
        shape = target.predicted_shape
        found[target.name] = (
            kind,
            target.fan_in or (math.prod(shape[1:]) if len(shape) > 1 else None),
        )
    assert set(found) == {name for name, _ in model.named_parameters()}
    return found
