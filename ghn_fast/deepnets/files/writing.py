"""What is written of architectures, in either format, and where."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ghn_fast.deepnets.architectures.genotype import NetworkConfig
from ghn_fast.deepnets.architectures.record import encode
from ghn_fast.deepnets.files.formats import files_of_split
from ghn_fast.deepnets.files.hdf5 import Record, SplitWriter
from ghn_fast.deepnets.files.node_table import MAX_DISTANCE, distances, node_rows
from ghn_fast.deepnets.files.packed import Chunk, PackWriter
from ghn_fast.deepnets.graphs.build import build_graph
from ghn_fast.deepnets.graphs.sizes import network_sizes
from ghn_fast.deepnets.sampling.sampler import base_params
from ghn_fast.deepnets.sampling.splits import IMAGE_SIZES


@contextmanager
def new_files(
    folder: str | os.PathLike[str], split: str, format: str, seed: int | None, overwrite: bool
) -> Iterator[Any]:
    """The writer of a split in a format; a split has files in one of them only.

    Raises:
        FileExistsError: If there are files of the split, in either format, and ``overwrite`` is
            false.
    """
    other = "hdf5" if format == "packed" else "packed"
    replaced = files_of_split(Path(folder), split, other)
    if replaced and not overwrite:
        raise FileExistsError(f"{replaced[0]} exists; remove it, or choose another folder")
    writer: SplitWriter | PackWriter
    if format == "packed":
        writer = PackWriter(folder, split, seed=seed, overwrite=overwrite)
    else:
        writer = SplitWriter(folder, split, overwrite=overwrite)
    try:
        with writer:
            yield writer
    finally:
        if writer.complete:
            for path in replaced:
                path.unlink(missing_ok=True)


def hdf5_record(config: NetworkConfig) -> Record:
    """What HDF5 files hold of an architecture."""
    graph = build_graph(config, virtual_edges=MAX_DISTANCE)
    rows = node_rows(graph, config.n_cells)
    return Record(config, base_params(config), rows, distances(graph))


def make_chunk(
    configs: Sequence[NetworkConfig],
    by_cell: Sequence[bool] | None = None,
    params: Sequence[Sequence[int]] | None = None,
) -> Chunk:
    """What a packed file holds of architectures.

    Args:
        configs: The architectures.
        by_cell: Whether their nodes are listed cell by cell; none of them by default.
        params: Number of parameters to note, in the order of ``IMAGE_SIZES``; by default those of
            the configurations.
    """
    flags = [False] * len(configs) if by_cell is None else by_cell
    records = [encode(config, by_cell=flag) for config, flag in zip(configs, flags, strict=True)]
    sizes = np.array(network_sizes(configs, 10, list(IMAGE_SIZES.values()), nodes=True))
    ends = np.cumsum([len(record) for record in records])
    counts = sizes[:, 1:] if params is None else np.array(params)
    return Chunk(b"".join(records), ends, counts, sizes[:, 0])
