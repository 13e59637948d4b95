"""Pairs of nodes of a batch of graphs: what attention over all nodes reads of the edges.

The distance between two nodes of a directed acyclic graph is positive in one direction at most, so
one code tells both: 0 for nodes without a path, d where the second is d edges behind the first, and
c + d where it is d edges before it, c being the largest distance that is listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """Codes of all pairs of nodes of each graph, and what follows from edges for single nodes.

    Attributes:
        codes: For each graph a matrix (n, n) of codes, row by row, all in one tensor; uint8 where
            codes fit into it, int16 otherwise.
        offsets: Number of the first node of each graph, and the number of nodes N at the end.
        cutoff: Largest distance c; there are 2 c + 1 codes.
        in_degrees, out_degrees: Number of edges that end and begin in each node, int64 (N,).
        input_distances: Distance of each node from the first of its graph, 0 where it is above c or
            there is no path, int64 (N,).
    """

    codes: Tensor
    offsets: tuple[int, ...]
    cutoff: int
    in_degrees: Tensor
    out_degrees: Tensor
    input_distances: Tensor

    @classmethod
    def of(cls, edges: Tensor, offsets: Sequence[int], cutoff: int) -> Pairs:
        """The pairs of a batch of graphs.

        Args:
            edges: Long tensor (M, 3) of rows (from, to, distance), nodes numbered through.
            offsets: See above.
            cutoff: Largest distance in ``edges``, or a larger number.
        """
        source, target, distance = edges.unbind(1)
        first = torch.tensor(offsets[:-1], dtype=torch.int64)
        sizes = torch.tensor(offsets[1:], dtype=torch.int64) - first
        ends = (sizes * sizes).cumsum(0)
        nodes = offsets[-1]
        graph_of = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        # Of a node: its place in its graph, and where its row of codes begins.
        place = torch.arange(nodes) - first[graph_of]
        begin = (ends - sizes * sizes)[graph_of] + place * sizes[graph_of]
        codes = torch.zeros(
            int(ends[-1]) if len(ends) else 0,
            dtype=torch.uint8 if 2 * cutoff < 256 else torch.int16,
        )
        codes[begin[source] + place[target]] = distance.to(codes.dtype)
        codes[begin[target] + place[source]] = (distance + cutoff).to(codes.dtype)
        hops = distance == 1
        from_input = place[source] == 0
        input_distances = torch.zeros(nodes, dtype=torch.int64)
        input_distances[target[from_input]] = distance[from_input]
        return cls(
            codes,
            tuple(offsets),
            cutoff,
            torch.bincount(target[hops], minlength=nodes),
            torch.bincount(source[hops], minlength=nodes),
            input_distances,
        )

    def to(self, device: torch.device | str) -> Pairs:
        """The pairs with their tensors on a device."""
        return replace(
            self,
            codes=self.codes.to(device),
            in_degrees=self.in_degrees.to(device),
            out_degrees=self.out_degrees.to(device),
            input_distances=self.input_distances.to(device),
        )

    def each(self) -> list[Pairs]:
        """The pairs of each graph by itself."""
        result, start = [], 0
        for first, last in zip(self.offsets, self.offsets[1:], strict=False):
            size = last - first
            result.append(
                Pairs(
                    self.codes[start : start + size * size],
                    (0, size),
                    self.cutoff,
                    self.in_degrees[first:last],
                    self.out_degrees[first:last],
                    self.input_distances[first:last],
                )
            )
            start += size * size
        return result
