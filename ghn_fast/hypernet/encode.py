"""Initial node embeddings: type of the operation plus shape of its parameter.

h0 = E_op[type] + concat(E_c[out], E_c[in], E_s[h], E_s[w])  (arXiv 2110.13100, section 4.1), each
part of the concatenation C/4 wide. Sizes are mapped to the nearest known one.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ghn_fast.graph.arch_graph import ArchGraph
from ghn_fast.graph.node_types import LANGUAGE_NODE_TYPES, NODE_TYPES

_SMALLEST_CHANNELS = 8
# Of Llama 2, GPT-2 and Llama 3.
_VOCABULARIES = (32000, 50257, 128256)
# From 4 channels on, anything below the smallest regular width is treated like it.
_ROUNDED_UP_FROM = 4


# Rows of the embeddings by graph, for as long as it exists, and by what decides about them.
_known: WeakKeyDictionary[ArchGraph, dict[tuple[int, int, bool], Tensor]] = WeakKeyDictionary()


class NodeEncoder(nn.Module):
    """Embed node types and parameter shapes.

    Args:
        hid: Width C of the embedding.
        num_classes: Known as a channel count, too.
        max_kernel: Largest kernel size that is decoded.
        language: Whether node types of language models and sizes of their vocabularies are known.
    """

    def __init__(
        self, hid: int, num_classes: int, max_kernel: int, *, language: bool = False
    ) -> None:
        super().__init__()
        self._sizes = num_classes, max_kernel, language
        self._channels = channel_table(num_classes, *(_VOCABULARIES if language else ()))
        self._kernels = kernel_table(max_kernel)
        # Both tables end with a row for nodes without a shape.
        self.op = nn.Embedding(len(LANGUAGE_NODE_TYPES if language else NODE_TYPES), hid)
        self.kernel = nn.Embedding(int(self._kernels.max()) + 2, hid // 4)
        self.channel = nn.Embedding(int(self._channels.max()) + 2, hid // 4)

    def forward(self, op_types: Tensor, shapes: Tensor) -> Tensor:
        """Embed N nodes.

        Args:
            op_types: Long tensor (N,) of node types.
            shapes: Long tensor (N, 4), the :meth:`shape_index` of the nodes' shapes.

        Returns:
            Node features (N, C).
        """
        channels = self.channel(shapes[:, :2]).flatten(1)
        kernels = self.kernel(shapes[:, 2:]).flatten(1)
        return self.op(op_types) + torch.cat([channels, kernels], dim=1)

    def shape_index_of(self, graphs: Sequence[ArchGraph]) -> Tensor:
        """The :meth:`shape_index` of the nodes of graphs; found once for each graph.

        Returns:
            Long tensor (N, 4) on the CPU.
        """
        found = []
        for graph in graphs:
            known = _known.setdefault(graph, {})
            if self._sizes not in known:
                # Kept for runs that need gradients, too, which take no inference tensors.
                with torch.inference_mode(False):
                    known[self._sizes] = self.shape_index(graph.shapes)
            found.append(known[self._sizes])
        return found[0] if len(found) == 1 else torch.cat(found)

    def shape_index(self, shapes: Sequence[tuple[int, ...] | None]) -> Tensor:
        """Rows of the embeddings for the shape of each node.

        Args:
            shapes: Shape of the parameter of each of N nodes, ``None`` for a node without one.

        Returns:
            Long tensor (N, 4) on the CPU: rows of ``channel`` for out and in, of ``kernel`` for
            height and width.
        """
        last_channel, last_kernel = self.channel.num_embeddings - 1, self.kernel.num_embeddings - 1
        channels, kernels = len(self._channels) - 1, len(self._kernels) - 1
        # Many nodes have the same shape.
        rows: dict[tuple[int, ...] | None, tuple[int, ...]] = {
            None: (last_channel, last_channel, last_kernel, last_kernel)
        }
        for shape in shapes:
            if shape not in rows and shape is not None:
                out, in_, height, width = shape_4d(shape)
                rows[shape] = (
                    *(self._channels[min(size, channels)] for size in (out, in_)),
                    *(self._kernels[min(size, kernels)] for size in (height, width)),
                )
        return torch.from_numpy(
            np.array([rows[shape] for shape in shapes], np.int64).reshape(-1, 4)
        )


def shape_4d(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """A parameter shape as (out, in, height, width).

    A position table (1, n, c) counts as c channels on a square grid of n positions; of more than
    four dimensions the last ones are multiplied.
    """
    if len(shape) == 3 and shape[0] == 1 and min(shape[1:]) > 1:
        side = int(shape[1] ** 0.5)
        return 1, shape[2], side, side
    if len(shape) > 4:
        rest = 1
        for size in shape[3:]:
            rest *= size
        return shape[0], shape[1], shape[2], rest
    out, in_, height, width = (*shape, 1, 1, 1, 1)[:4]
    return out, in_, height, width


def channel_table(*further: int) -> npt.NDArray[np.int64]:
    """Row of the channel embedding for every channel count up to the largest known one.

    Known are those of DeepNets-1M up to 8192, and ``further`` ones.
    """
    known = np.unique(
        [1, 3, *further, *range(8, 64, 8), *range(64, 4096, 16), *range(4096, 8193, 32)]
    )
    table = _nearest(known)
    small = slice(_ROUNDED_UP_FROM, _SMALLEST_CHANNELS)
    table[small] = table[_SMALLEST_CHANNELS]
    return table


def kernel_table(max_kernel: int) -> npt.NDArray[np.int64]:
    """Row of the kernel embedding for every kernel size up to 16; larger ones use the last."""
    known = np.unique([*range(1, max(12, max_kernel), 2), 14, 16])
    table = _nearest(known)
    table[2] = table[3]
    return table


def _nearest(known: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Index of the known value nearest to each of 0..max(known), the smaller one where two tie."""
    between = (known[:-1] + known[1:]) / 2
    return np.searchsorted(between, np.arange(known[-1] + 1), side="left")
