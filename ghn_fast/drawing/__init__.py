"""Pictures of architecture graphs."""

from ghn_fast.drawing.draw import draw_graph

__all__ = ["draw_graph"]
