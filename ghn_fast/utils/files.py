"""Writing files so that a file is complete, or it is not there."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import Self


def write_atomically(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write a file so that at every instant it is either the old or the new one, whole.

    Args:
        path: The file; its folder must be there. Of a symbolic link the target is written. A
            device or a pipe is written to as it is, and never replaced.
        data: What it holds; text is written as UTF-8.

    Raises:
        OSError: If it cannot be written; the old file stays, and nothing else is left behind.
    """
    path = Path(os.path.realpath(path))
    content = data.encode() if isinstance(data, str) else data
    if path.exists() and not path.is_file():
        with open(path, "wb") as file:
            file.write(content)
        return
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """A name beside a file for its next version, another one at every call.

    It lies in the same folder, so that the replacement never crosses file systems. Numbers of
    processes and threads would not do: on a shared disk two machines may have the same.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, as ``fsync`` does with the contents of a file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class WholeFileWriter:
    """A context that ends with :meth:`close`, or after an error with :meth:`discard`.

    An interrupt is no error: what was finished before it is kept.
    """

    def close(self) -> None:
        """Complete the file and put it in its place."""
        raise NotImplementedError

    def discard(self) -> None:
        """Remove what was written so far."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None or issubclass(kind, (KeyboardInterrupt, SystemExit)):
            self.close()
        else:
            self.discard()
