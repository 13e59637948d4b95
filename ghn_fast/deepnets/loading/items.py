"""An architecture of a split: its graph, its network and its sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import nn

from ghn_fast.deepnets.architectures.genotype import NetworkConfig
from ghn_fast.deepnets.architectures.network import Network
from ghn_fast.deepnets.architectures.spec import LARGE_IMAGE, check_sizes
from ghn_fast.deepnets.files.hdf5 import SplitFile
from ghn_fast.deepnets.files.node_table import in_order, stored_node_order, with_shapes
from ghn_fast.deepnets.files.packed import PackFile
from ghn_fast.deepnets.graphs.build import build_graph
from ghn_fast.deepnets.graphs.correct import by_rules
from ghn_fast.deepnets.graphs.derive import compiled, derive_graph, record_of
from ghn_fast.deepnets.graphs.sizes import count_parameters, network_sizes, parameter_shapes
from ghn_fast.deepnets.sampling.sampler import base_params
from ghn_fast.deepnets.sampling.splits import IMAGE_SIZES
from ghn_fast.graph.arch_graph import ArchGraph
from ghn_fast.graph.rules import GraphRules
from ghn_fast.utils.deferred import Deferred

# What an item makes of what it has, and need not carry along.
_DERIVED = frozenset(("graph", "num_params"))


@dataclass(frozen=True, eq=False)
class ArchItem:
    """An architecture of a split.

    Attributes:
        index: Its number in the split.
        name: Its name, for example ``test-12``.
        config: Its configuration as stored; ``None`` for networks that are not made of cells. May
            be given as a function, which makes it when it is first read.
        virtual_edges: Largest distance that gets a virtual edge in its graph.
        num_classes: Number of classes that :attr:`graph` and :meth:`build` assume.
        image_size: Height and width of the images that they assume.
        widening: Factors on ``C`` when it is built for small and for large images.
        file: The file that holds its graph or its configuration, if there is one.
        reorder: Whether to put the nodes of the file in the order of the graph.
        record: The record of the configuration, if a packed file holds it.
        rules: The rules that its graph is made by.
    """

    index: int
    name: str
    config: Deferred[NetworkConfig | None] = Deferred()
    virtual_edges: int = 50
    num_classes: int = 10
    image_size: int = 32
    widening: tuple[int, int] = (1, 1)
    file: SplitFile | PackFile | None = None
    reorder: bool = False
    record: bytes | None = None
    rules: GraphRules = GraphRules.GHN2

    @cached_property
    def graph(self) -> ArchGraph:
        """The architecture graph for the item's number of classes and image size."""
        graph = self._graph_for(self.num_classes, self.image_size)
        return by_rules(graph, self.config, self.rules)

    def graph_for(self, num_classes: int, image_size: int) -> ArchGraph:
        """The architecture graph with the shapes for a number of classes and an image size.

        Nodes and edges are those of the file, if it holds them, and else those of the network for
        small images.

        Raises:
            ValueError: If what the file holds is not valid; the message names the file.
        """
        if (num_classes, image_size) == (self.num_classes, self.image_size):
            return self.graph
        return by_rules(self._graph_for(num_classes, image_size), self.config, self.rules)

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
        if "_structure" in self.__dict__:
            return self._structure.num_nodes
        return network_sizes([self._small_config], 10, (IMAGE_SIZES["cifar10"],), nodes=True)[0][0]

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
        if self.file is not None:
            return self.file.num_params(self.index)
        return base_params(self._small_config)

    def with_config(self, config: NetworkConfig, **changes: Any) -> ArchItem:
        """The same architecture with other widths.

        Args:
            config: A configuration that differs in ``C`` and ``fc_dim`` only.
            changes: Other fields to change, ``num_classes`` or ``image_size``.
        """
        item = replace(self, config=config, record=None, **changes)
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
    def _small_config(self) -> NetworkConfig:
        return self.config_for(IMAGE_SIZES["cifar10"])

    @cached_property
    def _by_cell(self) -> bool:
        """Whether a packed file lists the nodes cell by cell."""
        return isinstance(self.file, PackFile) and self.file.by_cell(self.index)

    def _graph_for(self, num_classes: int, image_size: int) -> ArchGraph:
        stored = isinstance(self.file, SplitFile) or "_structure" in self.__dict__
        if not stored and not (self._by_cell and not self.reorder):
            check_sizes(num_classes, image_size)
            record = self._record_for(image_size)
            if record is not None:
                distance, small = self.virtual_edges, IMAGE_SIZES["cifar10"]
                return derive_graph(record, num_classes, image_size, distance, small)
        parameters = parameter_shapes(self.config_for(image_size), num_classes, image_size)
        structure = self._structure
        try:
            return with_shapes(structure, parameters)
        except ValueError as error:
            file = self.file
            where = self.name if file is None else f"{file.data_path}: {file.split}/{self.index}"
            raise ValueError(f"{where}: {error}") from error

    def _record_for(self, image_size: int) -> bytes | None:
        """The record of what is built, if the compiled back end can take it."""
        if self.record is None or self.widening[image_size >= LARGE_IMAGE] != 1:
            return record_of(self.config_for(image_size), image_size)
        return self.record if compiled(image_size) else None

    @cached_property
    def _structure(self) -> ArchGraph:
        """The graph; shapes are valid only after :func:`with_shapes`."""
        config = self._small_config
        if isinstance(self.file, SplitFile):
            order_of = config if self.reorder else None
            return self.file.graph(self.index, self.virtual_edges, order_of)
        graph = build_graph(config, virtual_edges=self.virtual_edges)
        if self._by_cell and not self.reorder:
            graph = in_order(graph, stored_node_order(graph, config.n_cells))
        return graph
