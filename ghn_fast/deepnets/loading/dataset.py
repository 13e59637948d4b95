"""Splits of DeepNets-1M as sequences of architectures: from files, sampled, and predefined."""

from __future__ import annotations

import operator
import os
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ghn_fast.capturing.capture import capture
from ghn_fast.deepnets.architectures.genotype import VIT_CONFIG, NetworkConfig
from ghn_fast.deepnets.architectures.network import Network
from ghn_fast.deepnets.architectures.spec import LARGE_IMAGE, check_sizes
from ghn_fast.deepnets.files.formats import open_split
from ghn_fast.deepnets.files.hdf5 import SplitFile
from ghn_fast.deepnets.files.node_table import (
    NodeRow,
    graph_from_rows,
    in_order,
    rows_in_graph_order,
    with_shapes,
)
from ghn_fast.deepnets.files.packed import PackFile
from ghn_fast.deepnets.graphs.build import (
    build_graph,
    count_for_sizes,
    count_parameters,
    parameter_shapes,
    stored_node_order,
)
from ghn_fast.deepnets.graphs.derive import derive_graph, derive_sizes
from ghn_fast.deepnets.sampler import (
    IMAGE_SIZES,
    SPACES,
    SPLIT_SIZES,
    architecture_key,
    check_split,
    sample_config,
)
from ghn_fast.graph.arch_graph import ArchGraph

SPLITS: Final[tuple[str, ...]] = (*SPACES, "predefined")
"""Names of all splits."""

_WIDE = (4, 2)

# What an item makes of what it has, and need not carry along.
_DERIVED = frozenset(("graph", "num_params"))


@dataclass(frozen=True, eq=False)
class ArchItem:
    """An architecture of a split.

    Attributes:
        index: Its number in the split.
        name: Its name, for example ``test-12``.
        config: Its configuration as stored; ``None`` for networks that are not made of cells.
        virtual_edges: Largest distance that gets a virtual edge in its graph.
        num_classes: Number of classes that :attr:`graph` and :meth:`build` assume.
        image_size: Height and width of the images that they assume.
        widening: Factors on ``C`` when it is built for small and for large images.
        file: The file that holds its graph or its configuration, if there is one.
        reorder: Whether to put the nodes of the file in the order of the graph.
    """

    index: int
    name: str
    config: NetworkConfig | None
    virtual_edges: int = 50
    num_classes: int = 10
    image_size: int = 32
    widening: tuple[int, int] = (1, 1)
    file: SplitFile | PackFile | None = None
    reorder: bool = False

    @cached_property
    def graph(self) -> ArchGraph:
        """The architecture graph for the item's number of classes and image size."""
        return self._graph_for(self.num_classes, self.image_size)

    def graph_for(self, num_classes: int, image_size: int) -> ArchGraph:
        """The architecture graph with the shapes for a number of classes and an image size.

        Nodes and edges are those of the file, if it holds them, and else those of the network for
        small images.

        Raises:
            ValueError: If what the file holds is not valid; the message names the file.
        """
        if (num_classes, image_size) == (self.num_classes, self.image_size):
            return self.graph
        return self._graph_for(num_classes, image_size)

    def build(self, num_classes: int | None = None, image_size: int | None = None) -> nn.Module:
        """The network.

        Args:
            num_classes: Number of classes, that of the item if not given.
            image_size: Height and width of the images, that of the item if not given.
        """
        num_classes, image_size = self._defaults(num_classes, image_size)
        return Network(self.config_for(image_size), num_classes, image_size)

    def config_for(self, image_size: int) -> NetworkConfig:
        """The configuration that is built for an image size: in ``wide`` it has more channels.

        Raises:
            ValueError: If the network is not made of cells.
        """
        if self.config is None:
            raise ValueError(f"{self.name} has no configuration: it is not made of cells")
        factor = self.widening[image_size >= LARGE_IMAGE]
        return self.config if factor == 1 else replace(self.config, C=self.config.C * factor)

    @cached_property
    def num_nodes(self) -> int:
        """Number of nodes of the graph."""
        if self.file is not None:
            return self.file.num_nodes(self.index)
        if "graph" in self.__dict__:
            return self.graph.num_nodes
        sizes = derive_sizes(self._small_config, 10, (IMAGE_SIZES["cifar10"],), nodes=True)
        return self._structure.num_nodes if sizes is None else sizes[0]

    @cached_property
    def num_params(self) -> int:
        """Number of parameters of the network that :meth:`build` makes without arguments."""
        config = self.config_for(self.image_size)
        return count_parameters(config, self.num_classes, self.image_size)

    @cached_property
    def base_params(self) -> Mapping[str, int]:
        """Number of parameters by the names ``cifar10`` (32 pixels) and ``imagenet`` (224 pixels).

        As files list it: for 10 classes, 32 channels, and 256 hidden units in the classifier.
        """
        stored = None if self.file is None else self.file.num_params(self.index)
        if stored is not None and set(stored) >= set(IMAGE_SIZES):
            return stored
        base = replace(self.config_for(IMAGE_SIZES["cifar10"]), C=32, fc_dim=256)
        counts = count_for_sizes(base, 10, list(IMAGE_SIZES.values()))
        return dict(zip(IMAGE_SIZES, counts, strict=True))

    def with_config(self, config: NetworkConfig, **changes: Any) -> ArchItem:
        """The same architecture with other widths.

        Args:
            config: A configuration that differs in ``C`` and ``fc_dim`` only.
            changes: Other fields to change, ``num_classes`` or ``image_size``.
        """
        item = replace(self, config=config, **changes)
        for name in ("_structure", "num_nodes", "_by_cell"):
            if name in self.__dict__:
                # The widths do not matter for it.
                item.__dict__[name] = self.__dict__[name]
        return item

    def __getstate__(self) -> dict[str, Any]:
        # What the file says travels instead of the file, which knows all architectures of the
        # split: an HDF5 file the graph, a packed file what the graph follows from.
        state = {name: value for name, value in self.__dict__.items() if name not in _DERIVED}
        if self.file is not None:
            names = ["num_nodes", "base_params", "_by_cell"]
            names += ["_structure"] if isinstance(self.file, SplitFile) else []
            state |= {name: getattr(self, name) for name in names}
        return {**state, "file": None}

    def _defaults(self, num_classes: int | None, image_size: int | None) -> tuple[int, int]:
        return (
            self.num_classes if num_classes is None else num_classes,
            self.image_size if image_size is None else image_size,
        )

    @property
    def _where(self) -> str:
        if self.file is None:
            return self.name
        return f"{self.file.data_path}: {self.file.split}/{self.index}"

    @property
    def _small_config(self) -> NetworkConfig:
        return self.config_for(IMAGE_SIZES["cifar10"])

    @cached_property
    def _by_cell(self) -> bool:
        """Whether a packed file lists the nodes cell by cell."""
        return isinstance(self.file, PackFile) and self.file.by_cell(self.index)

    def _graph_for(self, num_classes: int, image_size: int) -> ArchGraph:
        config = self.config_for(image_size)
        stored = isinstance(self.file, SplitFile) or "_structure" in self.__dict__
        if not stored and not (self._by_cell and not self.reorder):
            check_sizes(num_classes, image_size)
            derived = derive_graph(
                config, num_classes, image_size, self.virtual_edges, IMAGE_SIZES["cifar10"]
            )
            if derived is not None:
                return derived
        parameters = parameter_shapes(config, num_classes, image_size)
        try:
            return with_shapes(self._structure, parameters)
        except ValueError as error:
            raise ValueError(f"{self._where}: {error}") from error

    @cached_property
    def _structure(self) -> ArchGraph:
        """The graph; shapes are valid only after :func:`with_shapes`."""
        config = self._small_config
        if not isinstance(self.file, SplitFile):
            graph = build_graph(config, virtual_edges=self.virtual_edges)
            if self._by_cell and not self.reorder:
                graph = in_order(graph, stored_node_order(graph, config.n_cells))
            return graph
        rows: Sequence[NodeRow]
        rows, matrix = self.file.read(self.index)
        try:
            if self.reorder:
                rows = rows_in_graph_order(config, rows, matrix)
            return graph_from_rows(rows, matrix, self.virtual_edges)
        except ValueError as error:
            raise ValueError(f"{self._where}: {error}") from error


class PredefinedItem(ArchItem):
    """A predefined network; its numbers of parameters are those of the network as it is built."""

    @cached_property
    def base_params(self) -> Mapping[str, int]:
        return {name: self._count(10, size) for name, size in IMAGE_SIZES.items()}

    @cached_property
    def num_params(self) -> int:
        return self._count(self.num_classes, self.image_size)

    def _count(self, num_classes: int, image_size: int) -> int:
        with torch.device("meta"):
            network = self.build(num_classes, image_size)
        return sum(parameter.numel() for parameter in network.parameters())


class ResNet50Item(PredefinedItem):
    """ResNet-50 of torchvision; for small images with a 3x3 convolution and no pooling first."""

    def _graph_for(self, num_classes: int, image_size: int) -> ArchGraph:
        with torch.device("meta"):
            network = self.build(num_classes, image_size)
        return capture(network, (3, image_size, image_size), self.virtual_edges)

    def build(self, num_classes: int | None = None, image_size: int | None = None) -> nn.Module:
        from torchvision.models import resnet50

        num_classes, image_size = self._defaults(num_classes, image_size)
        network = resnet50(num_classes=num_classes)
        network.input_shape = (3, image_size, image_size)
        if image_size < LARGE_IMAGE:
            network.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
            nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
            network.maxpool = nn.Identity()
        return network

    @cached_property
    def num_nodes(self) -> int:
        return self.graph.num_nodes


class ArchSequence(Sequence[ArchItem]):
    """Architectures with the same settings for their graphs.

    Args:
        virtual_edges: Largest shortest-path distance that gets a virtual edge in the graphs
            (arXiv 2110.13100, Eq. 4); 1 means none. GHN-2 uses 50.

    Raises:
        ValueError: If ``virtual_edges`` is below 1.
    """

    def __init__(self, split: str, virtual_edges: int) -> None:
        if not isinstance(virtual_edges, int) or virtual_edges < 1:
            raise ValueError(
                f"virtual_edges: got {virtual_edges!r}, needs at least 1 (1 means none)"
            )
        self.split = split
        self.virtual_edges = virtual_edges

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
    """A split of DeepNets-1M from files, packed or in the published layout; or ``predefined``.

    Files are opened when they are needed, in each process anew; objects can be pickled.

    The graphs are those that the published loader makes of the files. Files of the published
    generator list nodes in another order than edges, and published predictions are for graphs read
    in this way (:mod:`ghn_fast.deepnets.files.node_table` has the details); ``reorder`` gives the
    true graphs of the networks. It makes no difference for files written by this package.

    Args:
        path: Folder with the files, a packed file or an HDF5 file; not used for ``predefined``,
            where it may be ``None``. In a folder with both layouts, the packed file is read.
        split: One of :data:`SPLITS`.
        virtual_edges: See :class:`ArchSequence`.
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
    ) -> None:
        check_split(split, SPLITS)
        self.reorder = reorder
        super().__init__(split, virtual_edges)
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
                return ResNet50Item(0, "resnet50", None, self.virtual_edges)
            return PredefinedItem(1, "ViT", VIT_CONFIG, self.virtual_edges)
        return ArchItem(
            index,
            f"{self.split}-{index}",
            self.file.config(index),
            self.virtual_edges,
            widening=_widening(self.split),
            file=self.file,
            reorder=self.reorder,
        )


class SampledNets(ArchSequence):
    """The first architectures of a split, sampled when they are asked for; there are no files.

    Args:
        split: One of :data:`SPLITS` except ``predefined``.
        count: Number of architectures.
        seed: Seed of the data set; see :func:`ghn_fast.deepnets.sampler.sample_config`.
        virtual_edges: See :class:`ArchSequence`.
        exclude: Keys of architectures that must not come up; see
            :func:`ghn_fast.deepnets.sampler.architecture_key`.

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
        exclude: Collection[str] = frozenset(),
    ) -> None:
        check_split(split)
        super().__init__(split, virtual_edges)
        for name, value, least in (("count", count, 1), ("seed", seed, 0)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: got {value!r}, needs an integer of at least {least}")
        self._count = count
        self.seed = seed
        self.exclude = frozenset(exclude)

    def __len__(self) -> int:
        return self._count

    def _item(self, index: int) -> ArchItem:
        config = sample_config(self.split, index, self.seed, exclude=self.exclude)
        name = f"{self.split}-{index}"
        return ArchItem(index, name, config, self.virtual_edges, widening=_widening(self.split))


def held_out_keys(seed: int = 0) -> frozenset[str]:
    """Keys of all architectures of the splits for testing, of the published sizes, for a seed.

    Small architectures can come up in two splits by chance. Sampling for training excludes these,
    so that the test architectures that ``ghn-fast evaluate`` samples by default have never been
    trained on. (``wide`` has the structures of ``test``.)
    """
    return frozenset(
        architecture_key(sample_config(split, index, seed))
        for split in ("test", "deep", "dense", "bnfree")
        for index in range(SPLIT_SIZES[split])
    )


def _widening(split: str) -> tuple[int, int]:
    return _WIDE if split == "wide" else (1, 1)
