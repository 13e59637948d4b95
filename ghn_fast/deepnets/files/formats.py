"""The two formats of files of a split: which one there is, and which one to write."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ghn_fast.deepnets.files.hdf5 import SplitFile, file_names, meta_path, stored_splits
from ghn_fast.deepnets.files.packed import PackFile, is_packed, pack_name
from ghn_fast.deepnets.sampling.splits import SPACES

FORMATS: Final[tuple[str, ...]] = ("auto", "packed", "hdf5")
"""Formats that can be written; ``auto`` stands for one of the other two."""

# Splits of up to a million architectures, which in the published format take 41 KB each.
_LARGE = ("train", "search")


def choose_format(name: str, split: str) -> str:
    """The format that a name of :data:`FORMATS` stands for.

    ``auto`` is ``packed`` for ``train`` and ``search``, whose published format would fill disks,
    and for all others ``hdf5``, the format that the published code reads.

    Raises:
        ValueError: If there is no such format.
    """
    if name not in FORMATS:
        raise ValueError(f"format: got {name!r}, needs one of {', '.join(FORMATS)}")
    if name != "auto":
        return name
    return "packed" if split in _LARGE else "hdf5"


def open_split(path: str | os.PathLike[str], split: str) -> SplitFile | PackFile:
    """Open a split for reading: its packed file if there is one, else its HDF5 and JSON files.

    Args:
        path: A folder, a packed file, or an HDF5 file.
        split: Name of the split.

    Raises:
        FileNotFoundError: If there is none; the message lists what was looked for.
        ValueError: If a file is damaged, cut off, of another kind, or of another split.
    """
    path = Path(path)
    if path.is_file():
        return PackFile(path, split) if is_packed(path) else SplitFile(path, split)
    packed = path / pack_name(split)
    return PackFile(packed, split) if packed.is_file() else SplitFile(path, split)


def splits_in(path: str | os.PathLike[str]) -> list[str]:
    """The splits that a folder (or a file of it) holds, in either format.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If a file is damaged.
    """
    path = Path(path)
    if path.is_file() and is_packed(path):
        return [PackFile(path).split]
    stored = stored_splits(path)
    found = [s for s in SPACES if s in stored or (path / pack_name(s)).is_file()]
    if not found:
        raise FileNotFoundError(
            f"path: {path} holds no files of DeepNets-1M (deepnets1m_*.ghnpack, deepnets1m_*.hdf5)"
        )
    return found


def files_of_split(folder: Path, split: str, format: str) -> list[Path]:
    """The files of a split that are there in one format, written by this package."""
    if format == "packed":
        files = [folder / pack_name(split)]
    else:
        data = folder / file_names(split)[0]
        files = [data, meta_path(data)]
    return [file for file in files if file.exists()]
