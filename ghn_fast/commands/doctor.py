"""What of the package can run on this machine, in words: ``ghn-fast doctor``."""

from __future__ import annotations

import platform
import sys
from typing import Any

import torch

from ghn_fast._version import __version__
from ghn_fast.ops import backend, load_all
from ghn_fast.vision.precision import choose

# What plain PyTorch and Python do without the extension.
_WITHOUT = "training and the first look at a module are slower"


def facts() -> dict[str, Any]:
    """Versions, devices, compiled back ends, and which back end each op uses on which device."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    load_all()
    return {
        "ghn_fast": __version__,
        "Python": f"{platform.python_version()} ({sys.executable})",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}",
        "CUDA": _cuda(),
        "library": _library(),
        "extension": _extension(),
        "triton": _triton(),
        "back end": _requested(),
        **{f"precision auto on {device}:": _precision(device) for device in devices},
        "ops": {op: {device: _choice(op, device) for device in devices} for op in backend.ops()},
    }


def _precision(device: str) -> str:
    name, reason = choose(torch.device(device))
    return f"{name} ({reason})"


def report() -> str:
    """What :func:`facts` finds, a line each."""
    return words(facts())


def words(facts: dict[str, Any]) -> str:
    """Lines of text with what was found."""
    lines = [f"{name:<12}{value}" for name, value in facts.items() if name != "ops"]
    for op, choices in facts["ops"].items():
        lines += [f"{op} on {device}: {choice}" for device, choice in choices.items()]
    return "\n".join(lines)


def _cuda() -> str:
    if torch.version.cuda is None:
        return "torch was built without CUDA"
    if not torch.cuda.is_available():
        return f"torch was built for CUDA {torch.version.cuda}, which finds no device here"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{torch.version.cuda}, {', '.join(names)}"


def _library() -> str:
    problem = backend.library_problem()
    if problem is not None:
        return f"no: {problem}"
    parts = "CPU and CUDA" if backend.has_kernel("gated_gnn_forward", "CUDA") else "CPU only"
    return f"{parts}, for every torch from 2.11 on ({backend.library_file()})"


def _extension() -> str:
    problem = backend.extension_problem()
    if problem is not None:
        return f"no: {problem} ({_WITHOUT})"
    module = backend.extension.module
    return f"compiled for torch {module.torch_version} ({module.__file__})"


def _triton() -> str:
    try:
        import triton
    except ImportError:
        return "not installed"
    return str(triton.__version__)


def _requested() -> str:
    try:
        return backend.requested()
    except ValueError as error:
        return str(error)


def _choice(op: str, device: str) -> str:
    try:
        name = backend.requested_for(op)
    except ValueError:
        name = "auto"
    if name != "auto":
        problem = backend.problem_of(op, name, device)
        return name if problem is None else f"{name} is asked for and cannot run: {problem}"
    name, problem = backend.automatic(op, device)
    return name if problem is None else f"{name} ({problem})"
