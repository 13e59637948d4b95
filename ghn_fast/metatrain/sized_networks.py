"""Networks to train on that are drawn by a few sizes, and captured once for each of them."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ghn_fast.capturing.capture import capture
from ghn_fast.graph.arch_graph import ArchGraph
from ghn_fast.graph.rules import GraphRules
from ghn_fast.utils.cache import BoundedCache

# Sizes come again: there are about a hundred of each kind.
_graphs: BoundedCache[Hashable, ArchGraph] = BoundedCache(512)


class SizedNetwork:
    """What is alike in such networks.

    Attributes:
        num_classes, image_size: Of the data that ``graph`` is for.
        virtual_edges, rules: Of its graph.
    """

    num_classes: int
    image_size: int
    virtual_edges: int
    rules: GraphRules

    def size(self, num_classes: int, image_size: int) -> Hashable:
        """All that its graph depends on beside virtual edges and rules."""
        raise NotImplementedError

    def build(self, num_classes: int, image_size: int) -> nn.Module:
        """The network."""
        raise NotImplementedError

    def example(self, image_size: int) -> dict[str, Any]:
        """What it is captured with: arguments of :func:`ghn_fast.capturing.capture.capture`."""
        raise NotImplementedError

    @cached_property
    def graph(self) -> ArchGraph:
        """Its architecture graph."""
        return self.graph_for(self.num_classes, self.image_size)

    @property
    def num_nodes(self) -> int:
        """Number of nodes of its graph."""
        return self.graph.num_nodes

    def graph_for(self, num_classes: int, image_size: int) -> ArchGraph:
        """Its architecture graph."""
        sizes = self.size(num_classes, image_size)
        key = (type(self), sizes, self.virtual_edges, self.rules)
        graph = _graphs.get(key)
        if graph is not None:
            return graph
        with torch.device("meta"):
            network = self.build(num_classes, image_size)
        graph = capture(
            network,
            virtual_edges=self.virtual_edges,
            rules=self.rules,
            **self.example(image_size),
        )
        return _graphs.keep(key, graph)


def draw_width(
    published: tuple[int, int],
    within: tuple[int, int],
    *,
    step: int,
    smallest: int,
    generator: torch.Generator,
) -> int:
    """Draw a width.

    Args:
        published: Smallest and largest width for the number of layers.
        within: Those that are asked for; the published ones are cut to them.
        step: What widths are multiples of.
        smallest: The smallest width that there can be.
        generator: Source of the random number.
    """
    low, high = (max(width, smallest) for width in within)
    least, most = (min(max(width, low), high) // step for width in published)
    return step * int(torch.randint(least, most + 1, (), generator=generator))
