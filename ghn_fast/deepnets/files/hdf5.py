"""The published files of DeepNets-1M: HDF5 for graphs, JSON for configurations.

Of a split there are ``deepnets1m_<split>.hdf5``, with the data sets ``<split>/<i>/adj`` (distances
up to 250, uint8) and ``<split>/<i>/nodes`` (indices of primitive, cell and name, uint16), and
``deepnets1m_<split>_meta.json``: ``{split: {"nets": [...], "meta": {"primitives_ext": {...},
"unique_op_names": {...}}}}``. The splits for evaluation may also be together in one pair of files,
``deepnets1m_eval``. :mod:`ghn_fast.deepnets.files.node_table` says what the rows of ``nodes`` mean.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ghn_fast.deepnets.architectures.genotype import NetworkConfig
from ghn_fast.deepnets.files.node_table import (
    NodeRow,
    check_rows,
    graph_from_rows,
    rows_in_graph_order,
)
from ghn_fast.deepnets.files.packed import pack_name
from ghn_fast.deepnets.sampling.sampler import base_params
from ghn_fast.deepnets.sampling.splits import IMAGE_SIZES, SPACES, check_split
from ghn_fast.graph.arch_graph import ArchGraph
from ghn_fast.utils.files import WholeFileWriter, temporary_name
from ghn_fast.utils.optional import require

_NOT_IN_EVAL = ("train", "search")


def file_names(split: str) -> tuple[str, ...]:
    """Names of the HDF5 files that may hold a split, the one to prefer first."""
    own = f"deepnets1m_{split}.hdf5"
    return (own,) if split in _NOT_IN_EVAL else (own, "deepnets1m_eval.hdf5")


def meta_path(data: Path) -> Path:
    """The JSON file that belongs to an HDF5 file."""
    return data.with_name(f"{data.stem}_meta.json")


def find_files(path: str | os.PathLike[str], split: str) -> tuple[Path, Path]:
    """The HDF5 and the JSON file of a split.

    Args:
        path: A folder, or one of the HDF5 files.
        split: Name of the split.

    Raises:
        FileNotFoundError: If one of them is missing; the message lists what was looked for.
    """
    path = Path(path)
    candidates = [path / name for name in file_names(split)] if not path.is_file() else [path]
    data = next((candidate for candidate in candidates if candidate.is_file()), None)
    if data is None:
        packed = [] if path.is_file() else [path / pack_name(split)]
        looked_for = " or ".join(str(candidate) for candidate in (*packed, *candidates))
        raise FileNotFoundError(f"path: no files of the split {split!r}, looked for {looked_for}")
    meta = meta_path(data)
    if not meta.is_file():
        raise FileNotFoundError(f"path: {data} has no configurations beside it, looked for {meta}")
    return data, meta


def stored_splits(path: str | os.PathLike[str]) -> list[str]:
    """The splits that the HDF5 files of a folder, or one of these files, hold.

    Raises:
        ValueError: If a JSON file is damaged.
    """
    found = []
    for split in SPACES:
        try:
            _, meta = find_files(path, split)
        except FileNotFoundError:
            continue
        if split in _read_json(meta):
            found.append(split)
    return found


class SplitFile:
    """A split in published files, for reading.

    The HDF5 file is opened by the first read, once in every process. Objects can be pickled.

    Args:
        path: A folder, or one of the HDF5 files.
        split: Name of the split.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is truncated, of another kind, or does not fit the other; the message
            names the file and what is wrong.
    """

    def __init__(self, path: str | os.PathLike[str], split: str) -> None:
        check_split(split)
        self.split = split
        self.data_path, self.meta_path = find_files(path, split)
        entry = _load_meta(self.meta_path, split)
        self._nets: list[Mapping[str, Any]] = entry["nets"]
        self._primitives = _name_table(self.meta_path, entry["meta"], "primitives_ext")
        self._names = _name_table(self.meta_path, entry["meta"], "unique_op_names")
        self._group: Any = None
        self._process: int | None = None
        count = len(self._open())
        self.close()
        if count != len(self._nets):
            raise ValueError(
                f"{self.meta_path}: lists {len(self._nets)} architectures of the split {split!r}, "
                f"but {self.data_path} holds {count}; they do not belong together, or one is "
                "cut off"
            )

    def __len__(self) -> int:
        return len(self._nets)

    def num_nodes(self, index: int) -> int:
        """Number of nodes of an architecture."""
        return self._nets[index]["num_nodes"]

    def num_params(self, index: int) -> Mapping[str, int]:
        """Number of parameters at 32 channels per image size."""
        stored: Mapping[str, int] = self._nets[index].get("num_params") or {}
        return stored if set(stored) >= set(IMAGE_SIZES) else base_params(self.config(index))

    def config(self, index: int) -> NetworkConfig:
        """Configuration of an architecture.

        Raises:
            ValueError: If it is not valid; the message names the file and the architecture.
        """
        try:
            return NetworkConfig.from_dict(self._nets[index])
        except (TypeError, ValueError) as error:
            where = f"{self.meta_path}: {self.split}[{index}]"
            raise ValueError(f"{where}: {error}") from error

    def read(self, index: int) -> tuple[list[NodeRow], npt.NDArray[np.integer]]:
        """Table of nodes and matrix of distances (N, N) of an architecture.

        Raises:
            ValueError: If they are not valid; the message names the file and the architecture.
        """
        where = f"{self.data_path}: {self.split}/{index}"
        group = self._open()
        try:
            matrix, nodes = (group[f"{index}/{name}"][()] for name in ("adj", "nodes"))
        except KeyError:
            raise ValueError(f"{where}: not there, needs 'adj' and 'nodes'") from None
        except (OSError, RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(f"{where}: cannot be read, is the file cut off? ({error})") from error
        self._check_matrix(where, matrix, self.num_nodes(index))
        rows = self._rows(where, nodes, len(matrix), index)
        config = self.config(index) if "genotype" in self._nets[index] else None
        try:
            check_rows(config, rows, matrix)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        return rows, matrix

    def graph(
        self, index: int, virtual_edges: int, order_of: NetworkConfig | None = None
    ) -> ArchGraph:
        """The graph of an architecture, without the shapes of its parameters.

        Args:
            index: Number of the architecture.
            virtual_edges: Largest distance that gets a virtual edge.
            order_of: The configuration in the order of whose graph nodes are put; ``None`` leaves
                them as the file lists them.

        Raises:
            ValueError: If the file is not valid; the message names it and the architecture.
        """
        rows: Sequence[NodeRow]
        rows, matrix = self.read(index)
        try:
            if order_of is not None:
                rows = rows_in_graph_order(order_of, rows)
            return graph_from_rows(rows, matrix, virtual_edges)
        except ValueError as error:
            raise ValueError(f"{self.data_path}: {self.split}/{index}: {error}") from error

    def close(self) -> None:
        """Close the HDF5 file; the next read opens it again."""
        if self._group is not None and self._process == os.getpid():
            self._group.file.close()
        self._group = None

    def _open(self) -> Any:
        if self._group is not None and self._process == os.getpid():
            return self._group
        h5py = require("h5py", "hdf5", "files in the published layout")

        try:
            file = h5py.File(self.data_path, "r")
        except OSError as error:
            raise ValueError(f"{self.data_path}: not an HDF5 file, or cut off ({error})") from error
        try:
            group, held = file.get(self.split), ", ".join(file) or "none"
            if isinstance(group, h5py.Group):
                len(group)  # reads what lists its members
        except (OSError, RuntimeError, KeyError) as error:
            file.close()
            raise ValueError(f"{self.data_path}: damaged, or cut off ({error})") from error
        if not isinstance(group, h5py.Group):
            file.close()
            raise ValueError(f"{self.data_path}: has no split {self.split!r}, holds {held}")
        self._group, self._process = group, os.getpid()
        return group

    def _rows(self, where: str, nodes: Any, count: int, index: int) -> list[NodeRow]:
        if not _is_integers(nodes) or nodes.shape != (count, 3):
            raise ValueError(f"{where}/nodes: got {_kind(nodes)}, needs integers ({count}, 3)")
        cells = self._nets[index].get("n_cells", 0)
        rows = []
        for primitive, cell, name in nodes.tolist():
            if primitive not in self._primitives or name not in self._names or cell >= cells:
                raise ValueError(
                    f"{where}/nodes: got the row {(primitive, cell, name)}, needs indices of "
                    f"primitives_ext, of the {cells} cells, and of unique_op_names"
                )
            rows.append(NodeRow(self._primitives[primitive], cell, self._names[name]))
        return rows

    def _check_matrix(self, where: str, matrix: Any, count: int) -> None:
        if not _is_integers(matrix) or matrix.shape != (count, count):
            raise ValueError(
                f"{where}/adj: got {_kind(matrix)}, needs integers ({count}, {count}), as "
                f"{self.meta_path.name} lists {count} nodes"
            )
        if np.tril(matrix).any():
            raise ValueError(
                f"{where}/adj: got an edge to a node that does not come later, needs nodes in "
                "topological order"
            )
        hops = matrix == 1
        loose = np.flatnonzero(~hops.any(axis=1))
        # Only the input and a positional encoding have no predecessor.
        if loose.tolist() != [count - 1] or np.count_nonzero(~hops.any(axis=0)) > 2:
            raise ValueError(
                f"{where}/adj: got nodes without edges, needs paths from the input to the last node"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_group": None, "_process": None}


@dataclass(frozen=True, slots=True)
class Record:
    """What is written of an architecture.

    Attributes:
        config: Its configuration.
        num_params: Number of parameters at 32 channels by the names ``cifar10`` and ``imagenet``.
        rows: Table of nodes in the order of the graph.
        matrix: Distances (N, N) up to 250, uint8.
    """

    config: NetworkConfig
    num_params: Mapping[str, int]
    rows: Sequence[NodeRow]
    matrix: npt.NDArray[np.uint8]


class SplitWriter(WholeFileWriter):
    """Write a split in the published format.

    Files appear under their names only when they are complete. As a context manager: leaving the
    block keeps what was added, also when it is left by an interrupt (KeyboardInterrupt or
    SystemExit); any other exception discards it. Without an architecture nothing is written.

    Args:
        folder: Where to write; it is created if need be.
        split: Name of the split.
        overwrite: Whether to replace existing files of the split.

    Raises:
        ValueError: If ``split`` is unknown.
        FileExistsError: If there are files of the split and ``overwrite`` is false.
    """

    def __init__(
        self, folder: str | os.PathLike[str], split: str, *, overwrite: bool = False
    ) -> None:
        check_split(split)
        h5py = require("h5py", "hdf5", "files in the published layout")

        folder = Path(folder)
        self.split = split
        self.complete = False
        self.data_path = folder / file_names(split)[0]
        self.meta_path = meta_path(self.data_path)
        for path in (self.data_path, self.meta_path):
            if path.exists() and not overwrite:
                raise FileExistsError(f"{path} exists; remove it, or choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        self._count = 0
        self._primitives: dict[str, int] = {}
        self._names: dict[str, int] = {}
        self._data_part, self._meta_part = map(temporary_name, (self.data_path, self.meta_path))
        self._data = h5py.File(self._data_part, "w")
        self._data.attrs["title"] = "DeepNets-1M"
        self._group = self._data.create_group(split)
        self._meta = self._meta_part.open("w", encoding="utf-8")
        self._meta_end = self._meta.write(f'{{"{split}": {{"nets": [')

    def __len__(self) -> int:
        return self._count

    def add(self, record: Record) -> None:
        """Write an architecture."""
        table = [
            (
                self._primitives.setdefault(row.primitive, len(self._primitives)),
                row.cell,
                self._names.setdefault(row.name, len(self._names)),
            )
            for row in record.rows
        ]
        group = self._group.create_group(str(self._count))
        group.create_dataset("adj", data=record.matrix, fletcher32=True)
        group.create_dataset("nodes", data=np.array(table, dtype=np.uint16), fletcher32=True)
        net = {
            **record.config.to_dict(),
            "num_nodes": len(record.matrix),
            "num_params": dict(record.num_params),
        }
        written = self._meta.write((", " if self._count else "") + json.dumps(net))
        # From here on the architecture counts; before, `close` would drop what there is of it.
        self._count, self._meta_end = self._count + 1, self._meta_end + written

    def close(self) -> None:
        """Finish the files and give them their names."""
        if self._count == 0:
            self.discard()
            return
        if str(self._count) in self._group:
            del self._group[str(self._count)]
        self._data.close()
        self._meta.flush()
        self._meta.seek(self._meta_end)
        self._meta.truncate()
        tables = {"primitives_ext": self._primitives, "unique_op_names": self._names}
        meta = {key: {i: name for name, i in names.items()} for key, names in tables.items()}
        self._meta.write(f'], "meta": {json.dumps(meta)}}}}}')
        self._meta.close()
        # Without its configurations an HDF5 file is refused, so that no moment has a false pair.
        self.meta_path.unlink(missing_ok=True)
        os.replace(self._data_part, self.data_path)
        os.replace(self._meta_part, self.meta_path)
        self.complete = True

    def discard(self) -> None:
        """Remove what was written so far."""
        self._data.close()
        self._meta.close()
        self._data_part.unlink(missing_ok=True)
        self._meta_part.unlink(missing_ok=True)


def _load_meta(path: Path, split: str) -> dict[str, Any]:
    content = _read_json(path)
    if split not in content:
        raise ValueError(f"{path}: has no split {split!r}, holds {', '.join(content) or 'none'}")
    entry = content[split]
    if not isinstance(entry, dict) or not isinstance(entry.get("nets"), list):
        raise ValueError(f"{path}: {split}: needs a list 'nets'")
    if not isinstance(entry.get("meta"), dict):
        raise ValueError(f"{path}: {split}: needs a mapping 'meta'")
    for index, net in enumerate(entry["nets"]):
        for name in ("num_nodes", "n_cells"):
            value = net.get(name) if isinstance(net, dict) else None
            if type(value) is not int or value < 1:
                raise ValueError(
                    f"{path}: {split}[{index}]: {name}: got {value!r}, needs a positive integer"
                )
    return entry


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file)
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file, or cut off ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: has no splits, holds something else")
    return content


def _name_table(path: Path, meta: Mapping[str, Any], name: str) -> dict[int, str]:
    table = meta.get(name)
    try:
        if not isinstance(table, dict) or not all(isinstance(v, str) for v in table.values()):
            raise TypeError
        return {int(key): value for key, value in table.items()}
    except (TypeError, ValueError):
        raise ValueError(f"{path}: needs a mapping from indices to names in {name!r}") from None


def _is_integers(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype.kind in "iu"


def _kind(array: Any) -> str:
    if not isinstance(array, np.ndarray):
        return type(array).__name__
    return f"{array.dtype} {array.shape}"
