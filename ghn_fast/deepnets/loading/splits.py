"""Splits of DeepNets-1M as sequences of architectures: from files, sampled, and predefined."""

from __future__ import annotations

import operator
import os
from abc import abstractmethod
from collections.abc import Collection, Sequence
from functools import partial
from typing import Final, overload

import numpy as np
import numpy.typing as npt

from ghn_fast.deepnets.architectures.genotype import VIT_CONFIG
from ghn_fast.deepnets.architectures.record import decode
from ghn_fast.deepnets.files.formats import open_split
from ghn_fast.deepnets.files.hdf5 import SplitFile
from ghn_fast.deepnets.files.packed import PackFile
from ghn_fast.deepnets.loading.items import ArchItem
from ghn_fast.deepnets.loading.predefined import PredefinedItem, ResNet50Item
from ghn_fast.deepnets.sampling.held_out import left_out
from ghn_fast.deepnets.sampling.sampler import sample_config
from ghn_fast.deepnets.sampling.splits import SPACES, check_split
from ghn_fast.graph.rules import GraphRules

SPLITS: Final[tuple[str, ...]] = (*SPACES, "predefined")
"""Names of all splits."""

_WIDE = (4, 2)


class ArchSequence(Sequence[ArchItem]):
    """Architectures with the same settings for their graphs.

    Args:
        virtual_edges: Largest shortest-path distance that gets a virtual edge in the graphs
            (arXiv 2110.13100, Eq. 4); 1 means none. GHN-2 uses 50.
        rules: The rules that the graphs are made by.

    Raises:
        ValueError: If ``virtual_edges`` is below 1.
    """

    def __init__(self, split: str, virtual_edges: int, rules: GraphRules = GraphRules.GHN2) -> None:
        if not isinstance(virtual_edges, int) or virtual_edges < 1:
            raise ValueError(
                f"virtual_edges: got {virtual_edges!r}, needs at least 1 (1 means none)"
            )
        self.split = split
        self.virtual_edges = virtual_edges
        self.rules = rules

    @abstractmethod
    def _item(self, index: int) -> ArchItem: ...

    @overload
    def __getitem__(self, index: int) -> ArchItem: ...

    @overload
    def __getitem__(self, index: slice) -> list[ArchItem]: ...

    def __getitem__(self, index: int | slice) -> ArchItem | list[ArchItem]:
        count = len(self)
        if isinstance(index, slice):
            return [self._item(i) for i in range(*index.indices(count))]
        position = operator.index(index)
        if not -count <= position < count:
            raise IndexError(
                f"index: got {position}, needs one from {-count} to {count - 1}: there are {count} "
                f"architectures of the split {self.split!r}"
            )
        return self._item(position % count)

    def num_nodes(self, index: int) -> int | None:
        """Number of nodes of an architecture, ``None`` where only its graph could tell."""
        return None

    def all_nodes(self) -> npt.NDArray[np.integer] | None:
        """Number of nodes of every architecture, ``None`` where only the graphs could tell."""
        return None


class DeepNets(ArchSequence):
    """A split of DeepNets-1M from files, packed or in the published format; or ``predefined``.

    Files are opened when they are needed, in each process anew; objects can be pickled.

    The graphs are those that the published loader makes of the files. Files of the published
    generator list nodes in another order than edges, and published predictions are for graphs read
    in this way (:mod:`ghn_fast.deepnets.files.node_table` has the details); ``reorder`` gives the
    true graphs of the networks. It makes no difference for files written by this package.

    Args:
        path: Folder with the files, a packed file or an HDF5 file; not used for ``predefined``,
            where it may be ``None``. In a folder with both formats, the packed file is read.
        split: One of :data:`SPLITS`.
        virtual_edges, rules: See :class:`ArchSequence`.
        reorder: Whether to put the nodes of a file in the order of the graph.

    Attributes:
        file: The open file, ``None`` for ``predefined``.

    Raises:
        ValueError: If ``split`` is unknown, or a file is not valid; the message says which and why.
        FileNotFoundError: If there are no files of the split; the message lists where they could
            be.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        split: str,
        virtual_edges: int = 50,
        *,
        reorder: bool = False,
        rules: GraphRules = GraphRules.GHN2,
    ) -> None:
        check_split(split, SPLITS)
        self.reorder = reorder
        super().__init__(split, virtual_edges, rules)
        self.file: SplitFile | PackFile | None = None
        if split != "predefined":
            if path is None:
                raise ValueError(f"path: got None, needs the folder with the split {split!r}")
            self.file = open_split(path, split)

    def __len__(self) -> int:
        return 2 if self.file is None else len(self.file)

    def num_nodes(self, index: int) -> int | None:
        return None if self.file is None else self.file.num_nodes(index)

    def all_nodes(self) -> npt.NDArray[np.integer] | None:
        if self.file is None:
            return None
        if isinstance(self.file, PackFile):
            return self.file.nodes
        return np.array([self.file.num_nodes(index) for index in range(len(self))])

    def _item(self, index: int) -> ArchItem:
        if self.file is None:
            if index == 0:
                return ResNet50Item(0, "resnet50", None, self.virtual_edges, rules=self.rules)
            return PredefinedItem(1, "ViT", VIT_CONFIG, self.virtual_edges, rules=self.rules)
        record = self.file.record(index) if isinstance(self.file, PackFile) else None
        return ArchItem(
            index,
            f"{self.split}-{index}",
            self.file.config(index) if record is None else partial(decode, record),
            self.virtual_edges,
            widening=_widening(self.split),
            file=self.file,
            reorder=self.reorder,
            record=record,
            rules=self.rules,
        )


class SampledNets(ArchSequence):
    """The first architectures of a split, sampled when they are asked for; there are no files.

    Args:
        split: One of :data:`SPLITS` except ``predefined``.
        count: Number of architectures.
        seed: Seed of the data set; see :func:`ghn_fast.deepnets.sample_config`.
        virtual_edges, rules: See :class:`ArchSequence`.
        exclude: Keys of architectures that must not come up; see
            :func:`ghn_fast.deepnets.architecture_key`. If not set, ``train`` is sampled without
            :func:`ghn_fast.deepnets.held_out_keys`, and nothing is left out of other splits.

    Raises:
        ValueError: If an argument is not valid.
    """

    def __init__(
        self,
        split: str,
        count: int,
        seed: int,
        virtual_edges: int = 50,
        *,
        exclude: Collection[str] | None = None,
        rules: GraphRules = GraphRules.GHN2,
    ) -> None:
        check_split(split)
        super().__init__(split, virtual_edges, rules)
        for name, value, least in (("count", count, 1), ("seed", seed, 0)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: got {value!r}, needs an integer of at least {least}")
        self._count = count
        self.seed = seed
        self.exclude = left_out(split, exclude)

    def __len__(self) -> int:
        return self._count

    def _item(self, index: int) -> ArchItem:
        config = sample_config(self.split, index, self.seed, exclude=self.exclude)
        name = f"{self.split}-{index}"
        return ArchItem(
            index,
            name,
            config,
            self.virtual_edges,
            widening=_widening(self.split),
            rules=self.rules,
        )


def _widening(split: str) -> tuple[int, int]:
    return _WIDE if split == "wide" else (1, 1)
