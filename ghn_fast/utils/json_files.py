"""Results as JSON: what it cannot say, and files of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from ghn_fast.utils.files import write_atomically


def plain(value: Any) -> Any:
    """A value as JSON has it: paths are texts, and numbers that are not finite are null.

    Raises:
        TypeError: If something in it has no place in JSON.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        return plain(value.item())  # a number of NumPy or torch
    raise TypeError(f"a result has a {type(value).__name__}, which JSON does not know")


def to_json(value: Any, *, indent: int | None = None) -> str:
    """The text of :func:`plain`."""
    return json.dumps(plain(value), indent=indent, allow_nan=False)


def write_json(path: str | Path, value: Any, *, indent: int | None = None) -> None:
    """Write a value into a file; readers see the former file or the whole of this one.

    Args:
        path: The file; its folder must be there.
        value: What :func:`plain` takes.
        indent: Columns of indentation; by default all is in one line.

    Raises:
        TypeError: If something in the value has no place in JSON; the former file stays.
        OSError: If the file cannot be written; the former one stays.
    """
    write_atomically(path, to_json(value, indent=indent) + "\n")
