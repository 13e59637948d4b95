from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "memory.py"


@pytest.mark.extension
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prediction_needs_little_memory(tmp_path: Path, dtype: str) -> None:
    """150 million parameters; the memory that a prediction takes hardly grows with the network."""
    pytest.importorskip("resource")
    out = tmp_path / "report.json"
    command = [sys.executable, str(SCRIPT), "--parameters", "1.5e8", "--dtype", dtype]
    subprocess.run([*command, "--json", str(out)], check=True, timeout=300)
    result = json.loads(out.read_text())["result"]
    assert result["details"]["skipped"] == 0
    assert result["details"]["parameters"] > 1.3e8
    assert result["met"]
