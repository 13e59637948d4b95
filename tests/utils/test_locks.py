"""One process at a time in a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ghn_fast.utils.locks import FolderLock


def test_a_second_holder_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    with pytest.raises(ValueError, match=rf"process {os.getpid()} on .* is writing into it"):
        FolderLock(tmp_path)
    lock.release()
    lock.release()
    FolderLock(tmp_path).release()


def test_a_process_that_dies_lets_go(tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from ghn_fast.utils.locks import FolderLock
lock = FolderLock(Path({str(tmp_path)!r}))
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode < 0
    FolderLock(tmp_path).release()
