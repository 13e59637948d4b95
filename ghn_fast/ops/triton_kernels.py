"""Where the Triton kernels are, and why they may not be usable. Importing this needs no Triton."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_PACKAGE = "ghn_fast.kernels"
# An installed package has the kernels inside; a source tree has them beside it.
_BESIDE = Path(__file__).resolve().parents[2] / "kernels" / "__init__.py"


def load(name: str) -> ModuleType:
    """The module of a kernel, imported when it is first used.

    Args:
        name: Name of the kernel, which is that of its op.
    """
    _find_package()
    return importlib.import_module(f"{_PACKAGE}.{name}")


def problem(name: str) -> str | None:
    """Why a kernel cannot be used, or ``None`` where it can."""
    return _missing(name) if torch.cuda.is_available() else "CUDA finds no device"


def define(name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Define a custom op that runs Triton kernels.

    Its schema is here, since the back end is for those who have no extension. On the CPU kernels
    run in Triton's interpreter alone, in tests.

    Args:
        name: Its name, without ``ghn_fast::``.
        schema: Its arguments and results.
        run: What it does.
        fake: The same for tensors without data.
    """
    name = f"ghn_fast::{name}"
    torch.library.define(name, schema)
    torch.library.impl(name, ("cpu", "cuda"))(run)
    torch.library.register_fake(name, fake)


def _find_package() -> bool:
    """Whether the package of the kernels can be imported, from a tree that is not installed too."""
    if _PACKAGE in sys.modules:
        return True
    if importlib.util.find_spec(_PACKAGE) is not None:
        return True
    spec = importlib.util.spec_from_file_location(_PACKAGE, _BESIDE) if _BESIDE.is_file() else None
    if spec is None or spec.loader is None:
        return False
    package = importlib.util.module_from_spec(spec)
    sys.modules[_PACKAGE] = package
    spec.loader.exec_module(package)
    return True


@functools.cache
def _missing(name: str) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if not _find_package() or importlib.util.find_spec(f"{_PACKAGE}.{name}") is None:
        return "ghn_fast was installed without its Triton kernels"
    if torch.version.hip is None and torch.cuda.get_device_capability() < (7, 0):
        return "Triton needs a GPU of compute capability 7.0 or newer"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton finds no C compiler, which it needs to launch kernels"
    return None
