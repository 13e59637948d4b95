"""What the tests of Triton kernels share: the kernels, the interpreter, the compiler's report.

Without a GPU kernels run in Triton's interpreter. It has to be chosen before Triton is imported,
and for a whole process: one test of a file starts that process, in which the others run.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

import ghn_fast
from ghn_fast.ops import backend

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "ghn_fast_kernels_under_test"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
# Marks of a test that runs kernels.
RUNS_KERNELS = [] if INTERPRETED else [pytest.mark.cuda]
only_once = pytest.mark.skipif(INTERPRETED, reason="runs no kernel")


@functools.cache
def kernels(name: str) -> ModuleType:
    """The kernels of this repository, whatever is installed."""
    if PACKAGE not in sys.modules:
        spec = importlib.util.spec_from_file_location(PACKAGE, ROOT / "kernels" / "__init__.py")
        assert spec is not None
        sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"{PACKAGE}.{name}")


@contextmanager
def on_triton(op: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, an op runs on the back end ``triton``, on the CPU in the interpreter."""
    module = importlib.import_module(f"ghn_fast.ops.{op}_triton")
    monkeypatch.setattr(module, "_kernels", lambda: kernels(op))
    monkeypatch.setitem(backend._implementations[op], "triton", lambda: None)
    if INTERPRETED:
        monkeypatch.setitem(backend._PREFERENCE, "cpu", ("cpu", "triton"))
    with ghn_fast.backend("triton"):
        yield


def run_in_interpreter(file: str, least: int) -> None:
    """Run the tests of a file that a machine without a GPU can run; at least so many must pass."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not cuda"]
    result = subprocess.run(
        [*command, file], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300
    )
    passed = re.search(r"^(\d+) passed", result.stdout, re.M)
    assert result.returncode == 0 and passed, result.stdout + result.stderr
    assert int(passed[1]) >= least, result.stdout


class MachineCode(NamedTuple):
    """What the compiler says of a kernel's machine code; sizes in bytes."""

    registers: int
    spilled: int
    shared: int
    ptx: str


def machine_code(
    kernel: Any, signature: dict[str, str], constants: dict[str, Any], warps: int
) -> MachineCode:
    """Compile a kernel for sm_90, which needs no GPU.

    Args:
        kernel: The kernel.
        signature: Type of each argument that is no constant.
        constants: Values of the others; those that the kernel does not have are left out.
        warps: Warps of a program.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if "nvidia" not in triton.backends.backends:
        pytest.skip("this Triton does not compile for GPUs of NVIDIA")
    used = {name: value for name, value in constants.items() if name in kernel.arg_names}
    types = {name: "constexpr" if name in used else signature[name] for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=types, constexprs=used)
    compiled = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps}
    )
    assert len(compiled.asm["cubin"]) > 0
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(compiled.asm["ptx"])
        command = [program, "-v", "-arch=sm_90a", path, "-o", Path(folder) / "kernel.cubin"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = re.search(r"Used (\d+) registers", report)
    assert registers is not None, report
    spilled = sum(int(number) for number in re.findall(r"(\d+) bytes spill", report))
    ptx: str = compiled.asm["ptx"]
    return MachineCode(int(registers[1]), spilled, compiled.metadata.shared, ptx)
