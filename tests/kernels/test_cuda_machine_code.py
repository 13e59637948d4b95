"""What nvcc says of the CUDA kernels' machine code, which needs no GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("source", ["gated_gnn.cu", "expand_params.cu", "graph_attention.cu"])
def test_kernels_compile_without_warnings_and_spills(
    source: str, tmp_path: Path, record_property: Any
) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not on the path")
    flags = ["-O3", "-std=c++20", "--expt-relaxed-constexpr", "--Werror", "all-warnings"]
    command = [nvcc, *flags, "-gencode", "arch=compute_90,code=sm_90", "-Xptxas", "-v", "-c"]
    command += [str(ROOT / "csrc" / "cuda" / source), "-o", str(tmp_path / "kernels.o")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if "Unsupported gpu architecture" in result.stderr:
        pytest.skip("this nvcc does not know sm_90")
    assert result.returncode == 0, result.stderr
    kernels = re.findall(r"entry function '(\w+)'", result.stderr)
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", result.stderr)]
    spills = [int(number) for number in re.findall(r"(\d+) bytes spill", result.stderr)]
    assert len(kernels) == len(registers) and len(spills) >= 2 * len(kernels) > 0
    record_property("registers", dict(zip(kernels, registers, strict=True)))
    assert not any(spills)
