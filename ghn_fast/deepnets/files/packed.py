"""Packed files of DeepNets-1M: the configurations of a split.

A graph follows from its configuration in less time than it takes to read it from a file, so a
packed file holds the records of configurations (:mod:`ghn_fast.deepnets.architectures.record`) and
a few numbers beside each: about 70 bytes per architecture. docs/deepnets.md describes every field.

``deepnets1m_<split>.ghnpack`` is a header of 128 bytes, the records one behind the other, and an
index: where each record ends, the number of parameters for each image size, the number of nodes.
"""

from __future__ import annotations

import os
import struct
import weakref
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ghn_fast.deepnets.architectures.genotype import NetworkConfig
from ghn_fast.deepnets.architectures.record import BY_CELL, FLAGS_AT, decode
from ghn_fast.deepnets.graphs.sizes import check_record
from ghn_fast.deepnets.sampling.splits import IMAGE_SIZES, check_split
from ghn_fast.utils.files import WholeFileWriter, temporary_name

MAGIC: Final = b"GHNPACK\0"
VERSION: Final = 1
SUFFIX: Final = ".ghnpack"

# magic, version, size of the header, split, seed, count, offset and size of the records, offset of
# the index, size of the file, checksums of records and index, zeros.
_HEADER = struct.Struct("<8sII16sqQQQQQII36x")
_CHECKSUM = struct.Struct("<I")
_HEADER_SIZE = _HEADER.size + _CHECKSUM.size
# Bytes that are read together when checksums are compared.
_AT_ONCE = 1 << 22
# Per architecture: end of its record, parameters for both image sizes, nodes.
_INDEX_SIZE = 8 + 8 * len(IMAGE_SIZES) + 4


def pack_name(split: str) -> str:
    """Name of the packed file of a split."""
    return f"deepnets1m_{split}{SUFFIX}"


def is_packed(path: Path) -> bool:
    """Whether a file claims to be a packed one, by its suffix or its first bytes."""
    if path.suffix == SUFFIX:
        return True
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


@dataclass(frozen=True, eq=False, slots=True)
class Chunk:
    """Architectures on their way into a packed file.

    Attributes:
        records: Their records, one behind the other.
        ends: End of each record in ``records``, int64 (B,).
        params: Number of parameters in the order of ``IMAGE_SIZES``, int64 (B, 2).
        nodes: Number of nodes, int64 (B,).
    """

    records: bytes
    ends: npt.NDArray[np.int64]
    params: npt.NDArray[np.int64]
    nodes: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)


class PackFile:
    """A split in a packed file, for reading.

    The file is checked as a whole when it is opened: the checksums of header, records and index,
    and that they fit each other. The index stays in memory, records are read when they are asked
    for; a file that has changed since then is refused. Objects can be pickled: they then carry the
    path, and the file is opened again where they arrive.

    Args:
        path: The file.
        split: Name of the split; ``None`` takes what the file holds.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, cut off, of another kind or version, or of another split; the
            message names the file and what is wrong.
    """

    def __init__(self, path: str | os.PathLike[str], split: str | None = None) -> None:
        self.data_path = Path(path)
        self._open()
        self._check()
        if split is not None and self.split != split:
            raise ValueError(f"{self.data_path}: has no split {split!r}, holds {self.split}")

    def _open(self) -> None:
        where = self.data_path
        self._file = where.open("rb", buffering=0)
        weakref.finalize(self, self._file.close)
        self._state = self._state_now()
        size = self._state[0]
        if size < _HEADER_SIZE:
            raise ValueError(
                f"{where}: not a packed file, or cut off: has {size} bytes, needs at least "
                f"{_HEADER_SIZE}"
            )
        head = self._read(0, _HEADER_SIZE)
        magic, version, header_size, split, seed, count, *places = _HEADER.unpack_from(head)
        if magic != MAGIC:
            raise ValueError(f"{where}: not a packed file: begins with {magic!r}, needs {MAGIC!r}")
        if version != VERSION:
            raise ValueError(
                f"{where}: has version {version} of the packed layout, needs {VERSION}"
            )
        stored = _CHECKSUM.unpack_from(head, _HEADER.size)[0]
        _compare(where, "the header", zlib.crc32(head[: _HEADER.size]), stored)
        self._start, records, index, whole, self._records_sum, self._index_sum = places
        if size != whole:
            kind = "cut off" if size < whole else "longer than written"
            raise ValueError(f"{where}: {kind}: has {size} bytes, needs {whole}")
        fits = (
            header_size == self._start == _HEADER_SIZE
            and index == _padded(self._start + records)
            and whole == index + count * _INDEX_SIZE
            and count > 0
        )
        if not fits:
            raise ValueError(f"{where}: its sections do not fit each other")
        self.split: str = split.rstrip(b"\0").decode("ascii", "replace")
        self.seed: int | None = seed if seed >= 0 else None
        self._count: int = count
        self._stop = self._start + records
        self._index = index
        columns = np.frombuffer(self._read(index, whole), np.uint8)
        self._index_bytes = columns
        at = 0

        def column(dtype: str, per_item: int = 1) -> npt.NDArray[Any]:
            nonlocal at
            values = columns[at : at + per_item * count * np.dtype(dtype).itemsize].view(dtype)
            at += values.nbytes
            return values

        self._ends = column("<u8")
        self.params: npt.NDArray[np.uint64] = column("<u8", len(IMAGE_SIZES)).reshape(count, -1)
        """Number of parameters of every architecture in the order of ``IMAGE_SIZES`` (N, 2)."""
        self.nodes: npt.NDArray[np.uint32] = column("<u4")
        """Number of nodes of every architecture (N,)."""

    def _check(self) -> None:
        where = self.data_path
        check_split(self.split)
        checksum = 0
        for start in range(self._start, self._stop, _AT_ONCE):
            part = self._read(start, min(start + _AT_ONCE, self._stop))
            checksum = zlib.crc32(part, checksum)
        _compare(where, "the records", checksum, self._records_sum)
        _compare(where, "the index", zlib.crc32(self._index_bytes.tobytes()), self._index_sum)
        ends, size = self._ends, self._stop - self._start
        if int(ends[-1]) != size or bool((ends[1:] <= ends[:-1]).any()) or ends[0] == 0:
            raise ValueError(f"{where}: its index does not fit its records")

    def __len__(self) -> int:
        return self._count

    def num_nodes(self, index: int) -> int:
        """Number of nodes of an architecture."""
        return int(self.nodes[index])

    def num_params(self, index: int) -> Mapping[str, int]:
        """Number of parameters at 32 channels per image size."""
        return dict(zip(IMAGE_SIZES, self.params[index].tolist(), strict=True))

    def record(self, index: int) -> bytes:
        """The record of an architecture.

        Raises:
            ValueError: If it is not valid; the message names the file and the architecture.
        """
        record = self._bytes(index)
        try:
            check_record(record)
        except ValueError as error:
            raise ValueError(f"{self.data_path}: {self.split}[{index}]: {error}") from error
        return record

    def config(self, index: int) -> NetworkConfig:
        """Configuration of an architecture; see :meth:`record`."""
        return decode(self.record(index))

    def by_cell(self, index: int) -> bool:
        """Whether the nodes of an architecture are listed cell by cell."""
        return bool(self._bytes(index)[FLAGS_AT] & BY_CELL)

    def _bytes(self, index: int) -> bytes:
        start = int(self._ends[index - 1]) if index else 0
        return self._read(self._start + start, self._start + int(self._ends[index]))

    def _read(self, start: int, stop: int) -> bytes:
        """The bytes from one place to another, of the file as it was opened.

        It is read, not mapped: reading from the mapping of a file that has become shorter ends the
        process.
        """
        data = os.pread(self._file.fileno(), stop - start, start)
        if len(data) != stop - start or self._state_now() != self._state:
            raise ValueError(f"{self.data_path}: was changed while it was open; open it again")
        return data

    def _state_now(self) -> tuple[int, int]:
        found = os.fstat(self._file.fileno())
        return found.st_size, found.st_mtime_ns

    def chunk(self, start: int, stop: int) -> Chunk:
        """The architectures from ``start`` to ``stop - 1``, as they were written."""
        first = int(self._ends[start - 1]) if start else 0
        ends = self._ends[start:stop].astype(np.int64)
        data = self._read(self._start + first, self._start + int(ends[-1]))
        params, nodes = self.params[start:stop], self.nodes[start:stop]
        return Chunk(data, ends - first, params.astype(np.int64), nodes.astype(np.int64))

    def close(self) -> None:
        """Close the file; the object reads no more."""
        self._file.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"data_path": self.data_path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Checked in full when it was opened first.
        self.data_path = state["data_path"]
        self._open()


class PackWriter(WholeFileWriter):
    """Write a split as a packed file.

    The file appears under its name only when it is complete. As a context manager: leaving the
    block keeps what was added, also when it is left by an interrupt (KeyboardInterrupt or
    SystemExit); any other exception discards it. Without an architecture nothing is written.

    Args:
        folder: Where to write; it is created if need be.
        split: Name of the split.
        seed: Seed that the architectures were sampled with, if they were.
        overwrite: Whether to replace an existing file.

    Raises:
        ValueError: If ``split`` is unknown.
        FileExistsError: If there is a file and ``overwrite`` is false.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        split: str,
        *,
        seed: int | None = None,
        overwrite: bool = False,
    ) -> None:
        check_split(split)
        self.split = split
        self.complete = False
        self.data_path = Path(folder) / pack_name(split)
        if self.data_path.exists() and not overwrite:
            raise FileExistsError(f"{self.data_path} exists; remove it, or choose another folder")
        self.data_path.parent.mkdir(parents=True, exist_ok=True)
        self._seed = seed
        self._ends: list[npt.NDArray[np.uint64]] = []
        self._params: list[npt.NDArray[np.uint64]] = []
        self._nodes: list[npt.NDArray[np.uint32]] = []
        self._count = self._bytes = self._checksum = 0
        self._part = temporary_name(self.data_path)
        self._file = self._part.open("wb")
        self._file.write(bytes(_HEADER_SIZE))

    def __len__(self) -> int:
        return self._count

    def add(self, chunk: Chunk) -> None:
        """Write architectures."""
        if len(chunk) == 0:
            return
        self._file.write(chunk.records)
        self._checksum = zlib.crc32(chunk.records, self._checksum)
        self._ends.append((chunk.ends + self._bytes).astype("<u8"))
        self._params.append(chunk.params.astype("<u8"))
        self._nodes.append(chunk.nodes.astype("<u4"))
        self._bytes += len(chunk.records)
        # From here on they count; before, `close` would leave out what there is of them.
        self._count += len(chunk)

    def close(self) -> None:
        """Finish the file and give it its name."""
        if self._count == 0:
            self.discard()
            return
        stop = _HEADER_SIZE + self._bytes
        index = b"".join(
            np.concatenate(parts).tobytes() for parts in (self._ends, self._params, self._nodes)
        )
        self._file.seek(stop)
        self._file.truncate()
        self._file.write(bytes(_padded(stop) - stop))
        self._file.write(index)
        head = _HEADER.pack(
            MAGIC,
            VERSION,
            _HEADER_SIZE,
            self.split.encode(),
            -1 if self._seed is None else self._seed,
            self._count,
            _HEADER_SIZE,
            self._bytes,
            _padded(stop),
            _padded(stop) + len(index),
            self._checksum,
            zlib.crc32(index),
        )
        self._file.seek(0)
        self._file.write(head + _CHECKSUM.pack(zlib.crc32(head)))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._part, self.data_path)
        self.complete = True

    def discard(self) -> None:
        """Remove what was written so far."""
        self._file.close()
        self._part.unlink(missing_ok=True)


def _compare(where: Path, what: str, found: int, stored: int) -> None:
    if found != stored:
        raise ValueError(
            f"{where}: damaged: the checksum of {what} is {found:08x}, needs {stored:08x}"
        )


def _padded(offset: int) -> int:
    """Up to the next multiple of 8, for the index."""
    return (offset + 7) // 8 * 8
