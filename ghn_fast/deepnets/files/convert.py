"""Convert files of DeepNets-1M between the packed and the published format."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from ghn_fast.deepnets.architectures.genotype import NetworkConfig
from ghn_fast.deepnets.files.formats import choose_format, open_split
from ghn_fast.deepnets.files.hdf5 import Record, SplitFile
from ghn_fast.deepnets.files.node_table import (
    MAX_DISTANCE,
    distances,
    in_order,
    node_rows,
    stored_node_order,
)
from ghn_fast.deepnets.files.packed import PackFile
from ghn_fast.deepnets.files.writing import make_chunk, new_files
from ghn_fast.deepnets.graphs.build import build_graph
from ghn_fast.deepnets.sampling.splits import IMAGE_SIZES
from ghn_fast.graph.arch_graph import ArchGraph

_CHUNK = 256


def convert(
    path: str | os.PathLike[str],
    split: str,
    out: str | os.PathLike[str],
    format: str = "packed",
    *,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write the architectures of a split in a format, so that the same items come from the result.

    A packed file holds configurations, from which the graphs are derived. Each graph of an HDF5
    file is compared with the derived one; the order in which the published generator lists nodes is
    kept, as a flag.

    Args:
        path: Folder or file to read.
        split: Name of the split.
        out: Folder to write to.
        format: ``packed`` or ``hdf5``; see :func:`ghn_fast.deepnets.generate`.
        overwrite: Whether to replace existing files of the split in ``out``.
        progress: Called with the number of architectures written so far.

    Returns:
        Path of the packed file or of the HDF5 file.

    Raises:
        FileNotFoundError: If there are no files of the split in ``path``.
        FileExistsError: If there are files of the split in ``out`` and ``overwrite`` is false.
        ValueError: If a file is damaged, or the graph of an architecture is not that of its
            configuration; the message names the file and the architecture.
    """
    written = choose_format(format, split)
    source = open_split(path, split)
    seed = source.seed if isinstance(source, PackFile) else None
    with new_files(out, split, written, seed, overwrite) as writer:
        for start in range(0, len(source), _CHUNK):
            stop = min(start + _CHUNK, len(source))
            if written == "packed" and isinstance(source, PackFile):
                writer.add(source.chunk(start, stop))
            else:
                parts = [_Part.of(source, index) for index in range(start, stop)]
                if written == "packed":
                    configs, _, flags, params = zip(*parts, strict=True)
                    writer.add(make_chunk(configs, flags, params))
                else:
                    for part in parts:
                        writer.add(part.record())
            if progress is not None:
                progress(len(writer))
    return writer.data_path


class _Part(NamedTuple):
    """An architecture on its way from one file to the other."""

    config: NetworkConfig
    graph: ArchGraph
    by_cell: bool
    params: list[int]

    @classmethod
    def of(cls, source: SplitFile | PackFile, index: int) -> _Part:
        config = source.config(index)
        graph = build_graph(config, virtual_edges=MAX_DISTANCE)
        if isinstance(source, PackFile):
            by_cell = source.by_cell(index)
        else:
            by_cell = _listed_by_cell(source, index, graph, config.n_cells)
        params = source.num_params(index)
        return cls(config, graph, by_cell, [params[name] for name in IMAGE_SIZES])

    def record(self) -> Record:
        rows = node_rows(self.graph, self.config.n_cells)
        if self.by_cell:
            rows = [rows[i] for i in stored_node_order(self.graph, self.config.n_cells)]
        params = dict(zip(IMAGE_SIZES, self.params, strict=True))
        return Record(self.config, params, rows, distances(self.graph))


def _listed_by_cell(source: SplitFile, index: int, graph: ArchGraph, n_cells: int) -> bool:
    """Whether a file lists the nodes of ``graph`` cell by cell, or in its order."""
    stored = source.graph(index, MAX_DISTANCE)
    if _same(stored, graph):
        return False
    if not _same(stored, in_order(graph, stored_node_order(graph, n_cells))):
        raise ValueError(
            f"{source.split}-{index}: the file's graph is not the one that its configuration "
            "describes, so that it cannot be packed"
        )
    return True


def _same(one: ArchGraph, other: ArchGraph) -> bool:
    return (
        one.names == other.names
        and torch.equal(one.op_types, other.op_types)
        and torch.equal(one.edges, other.edges)
    )
