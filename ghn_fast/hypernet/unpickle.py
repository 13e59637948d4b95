"""Reading weights from pickles without running what they name.

A pickle is a program. The files of GHN-3 and LoGAH on the Hugging Face Hub were written by joblib,
as plain pickles, which ``torch.load(weights_only=True)`` does not take. The unpickler here knows
the handful of names that tensors in such files are made of, and makes plain records of them, which
become tensors when the pickle has ended; any other name ends the reading, before anything is
called.
"""

from __future__ import annotations

import argparse
import bz2
import io
import lzma
import pickle
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

# What a compressed file may grow to: weights do not shrink to a hundredth.
_MOST_GROWTH = 100
_LEAST_BYTES = 1 << 26
# Files that torch.save wrote: as archives, and as it did once, with a number in front.
_OF_TORCH = (b"PK", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")


def load(path: Path) -> Any:
    """Read a mapping from names to tensors, or mappings of such with settings beside.

    Takes what ``torch.save`` wrote, also with an ``argparse.Namespace`` of settings beside the
    weights, and plain pickles with tensors, as joblib writes them, compressed or not.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is none of these, or names anything else; the message says what.
    """
    with open(path, "rb") as file:
        start = file.read(32)
    try:
        if start.startswith(_OF_TORCH):
            with torch.serialization.safe_globals([argparse.Namespace]):
                return torch.load(path, map_location="cpu", weights_only=True)
        with open(path, "rb") as file:
            return _finished(_Unpickler(_decompressed(file, start)).load())
    except OSError:
        raise
    except Exception as error:  # unpicklers raise nearly anything on foreign bytes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not a checkpoint that can be loaded safely: {reason}") from error


def _decompressed(file: io.BufferedReader, start: bytes) -> Any:
    decompressor: Any
    if start.startswith((b"\x1f\x8b", b"\x78")):
        decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    elif start.startswith(b"BZh"):
        decompressor = bz2.BZ2Decompressor()
    elif start.startswith((b"\xfd7zXZ", b"\x5d\x00\x00")):
        decompressor = lzma.LZMADecompressor()
    else:
        return file
    packed = file.read()
    most = max(_LEAST_BYTES, _MOST_GROWTH * len(packed))
    unpacked = decompressor.decompress(packed, most + 1)
    if len(unpacked) > most:
        raise ValueError(f"it grows to more than {most} bytes when it is unpacked")
    return io.BytesIO(unpacked)


class _Storage(NamedTuple):
    data: bytes


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def made(self) -> Tensor:
        data, offset, size, stride = self.storage.data, self.offset, self.size, self.stride
        storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if not isinstance(storage, torch.storage.TypedStorage):
            raise ValueError(f"a tensor lies in a {type(storage).__name__}, needs a storage")
        numbers = (offset, *size, *stride)
        if len(size) != len(stride) or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError(f"a tensor of size {size}, strides {stride}, offset {offset}")
        flat = torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage)
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if 0 not in size and last >= len(flat):
            raise ValueError(f"a tensor needs {last + 1} elements, its storage has {len(flat)}")
        return flat.as_strided(size, stride, offset).clone()


class _Maker:
    """What stands for a name; without attributes, so that a pickle cannot change it."""

    __slots__ = ()


class _MakeStorage(_Maker):
    __slots__ = ()

    def __call__(self, data: Any) -> _Storage:
        if not isinstance(data, bytes):
            raise ValueError(f"a storage is a {type(data).__name__}, needs bytes")
        return _Storage(data)


class _MakeTensor(_Maker):
    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Tensor:
        # Gradients and hooks follow, which have no place in weights.
        if type(storage) is not _Storage:
            raise ValueError(f"a tensor lies in a {type(storage).__name__}, needs a storage")
        return _Tensor(storage, offset, tuple(size), tuple(stride))


class _MakeParameter(_Maker):
    __slots__ = ()

    def __call__(self, data: Any, *_: Any) -> _Tensor:
        if type(data) is not _Tensor:
            raise ValueError(f"a parameter is a {type(data).__name__}, needs a tensor")
        return data


_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor_v2"): _MakeTensor(),
    ("torch._utils", "_rebuild_tensor"): _MakeTensor(),
    ("torch._utils", "_rebuild_parameter"): _MakeParameter(),
    ("torch.storage", "_load_from_bytes"): _MakeStorage(),
}


class _Unpickler(pickle.Unpickler):
    """Knows the names in ``_NAMES`` and no other."""

    def find_class(self, module: str, name: str) -> Any:
        found = _NAMES.get((module, name))
        if found is None:
            raise ValueError(f"it names '{module}.{name}', which is not part of a tensor")
        return found

    def persistent_load(self, pid: Any) -> Any:
        raise ValueError("it refers to data outside of the pickle")


def _finished(value: Any, levels: int = 2) -> Any:
    """A value with tensors for their records, in mappings up to some levels."""
    if isinstance(value, _Tensor):
        return value.made()
    if isinstance(value, Mapping) and levels:
        return {name: _finished(item, levels - 1) for name, item in value.items()}
    return value
