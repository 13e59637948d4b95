"""Random calls of every op neither end the process nor write where they must not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.library
@pytest.mark.extension
def test_random_calls() -> None:
    calls = os.environ.get("GHN_FAST_FUZZ_CALLS", "2000")
    command = [sys.executable, Path(__file__).with_name("fuzz.py"), "--calls", calls]
    result = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    lines = result.stdout.splitlines()
    wrong = [line for line in lines if line.startswith("WRONG")]
    last = lines[-1] if lines else ""
    assert result.returncode == 0, (result.returncode, wrong, last, result.stderr[-2000:])
    assert last.startswith(f"{calls} calls of")
