"""One process at a time in a folder."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

LOCK_FILE = ".lock"


class FolderLock:
    """Holds a folder until it is released or its process ends, however it ends.

    Args:
        folder: The folder; it must be there.

    Raises:
        ValueError: If another process holds it; the message names the process.
        OSError: If the file of the lock cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._descriptor, 200, 0).decode(errors="replace").strip()
            self.release()
            if not isinstance(error, BlockingIOError):
                return  # a file system without locks; nothing can be known there
            raise ValueError(
                f"{folder}: {holder or 'another process'} is writing into it; wait for its end, or "
                "choose another folder"
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(
            self._descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0
        )

    def release(self) -> None:
        """Let the folder go."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
