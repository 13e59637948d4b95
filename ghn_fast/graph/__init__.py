"""Architecture graphs: capture from modules, and batches of them."""

from ghn_fast.graph.arch_graph import ArchGraph, Target, graph_from_nodes
from ghn_fast.graph.cache import CacheInfo, cache_info, clear_cache
from ghn_fast.graph.capture import CaptureError, capture
from ghn_fast.graph.draw import draw_graph
from ghn_fast.graph.node_types import NODE_TYPE_INDEX, NODE_TYPES
from ghn_fast.graph.properties import GraphProperties, graph_properties

__all__ = [
    "NODE_TYPES",
    "NODE_TYPE_INDEX",
    "ArchGraph",
    "CacheInfo",
    "CaptureError",
    "GraphProperties",
    "Target",
    "cache_info",
    "capture",
    "clear_cache",
    "draw_graph",
    "graph_from_nodes",
    "graph_properties",
]
