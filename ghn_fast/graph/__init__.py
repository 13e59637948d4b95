"""Architecture graphs: their data, batches of them, properties."""

from __future__ import annotations

import importlib
from typing import Any

from ghn_fast.graph.arch_graph import ArchGraph, Target
from ghn_fast.graph.node_types import NODE_TYPE_INDEX, NODE_TYPES
from ghn_fast.graph.properties import GraphProperties, graph_properties

# Names that users know from here and that live in rooms above this one.
_ABOVE = {
    "CacheInfo": "ghn_fast.capturing",
    "CaptureError": "ghn_fast.capturing",
    "cache_info": "ghn_fast.capturing",
    "capture": "ghn_fast.capturing",
    "clear_cache": "ghn_fast.capturing",
    "draw_graph": "ghn_fast.drawing",
}

__all__ = [
    "NODE_TYPES",
    "NODE_TYPE_INDEX",
    "ArchGraph",
    "GraphProperties",
    "Target",
    "graph_properties",
]


def __getattr__(name: str) -> Any:
    if name in _ABOVE:
        return getattr(importlib.import_module(_ABOVE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ABOVE})
