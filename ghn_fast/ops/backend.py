"""Which back end an op runs on: the choice, how to force it, and what is there.

Back ends are ``reference`` (plain PyTorch, always there, defines the result), ``cpu`` (C++),
``cuda`` and ``triton``. By default, ``auto``, an op runs on the fastest one that can run where its
tensors are. The environment variable ``GHN_FAST_BACKEND`` or

    with ghn_fast.backend("reference"):
        ...

forces one for every op inside; the innermost ``with`` wins over the variable, and is seen by the
thread (or task) that entered it alone. A back end that was asked for by name and cannot run raises.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ghn_fast.ops.schemas import other_schema

BACKENDS = ("reference", "cpu", "cuda", "triton")
VARIABLE = "GHN_FAST_BACKEND"

# The fastest first, by the type of the device that the tensors are on.
_PREFERENCE = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}

_forced: ContextVar[str | None] = ContextVar("ghn_fast_backend", default=None)
# op -> back end -> why it cannot run here, or None if it can
_implementations: dict[str, dict[str, Callable[[], str | None]]] = {}
# ops that compute on the host, whatever device their tensors are on
_on_host: set[str] = set()
_warned = False


class Extension(NamedTuple):
    """A compiled module, or the reason why it is not there."""

    module: Any
    problem: str | None


def library_file() -> Path | None:
    """Where the compiled ops on LibTorch's stable ABI are, ``None`` in an install without them."""
    folder = Path(__file__).parents[1]
    return next((p for p in folder.glob("_ops.*") if p.suffix in (".so", ".pyd")), None)


def _load_library() -> str | None:
    """Load the compiled ops on the stable ABI; why they cannot be loaded, or ``None``."""
    file = library_file()
    if file is None:
        return "the package was installed without ghn_fast/_ops"
    try:
        torch.ops.load_library(file)
    except OSError as error:
        return f"{file.name} does not load with torch {torch.__version__} ({error})"
    return _other_sources(file.name, "ops.cpp")


def _other_sources(compiled: str, source: str) -> str | None:
    """Why a compiled part does not go with the sources of a checkout, ``None`` if it does."""
    op = other_schema(Path(__file__).parents[2] / "csrc" / source)
    if op is None:
        return None
    return (
        f"{compiled} was compiled from other sources than those in csrc ({op} has another schema); "
        "compile again: pip install -e ."
    )


def _load_extension() -> Extension:
    """``ghn_fast._aten``: what needs the very torch that it was compiled for."""
    try:
        module = importlib.import_module("ghn_fast._aten")
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError):
            return Extension(None, "the package was installed without ghn_fast._aten")
        return Extension(None, f"it does not load ({error}); was it compiled for another torch?")
    built, running = (v.split("+")[0] for v in (module.torch_version, torch.__version__))
    if built.split(".")[:2] != running.split(".")[:2]:
        return Extension(None, f"it was compiled for torch {built}, and this is torch {running}")
    problem = _other_sources("ghn_fast._aten", "aten/ops.cpp")
    return Extension(None if problem else module, problem)


_library_problem: str | None = _load_library()
extension: Extension = _load_extension()


def library_problem() -> str | None:
    """Why the compiled ops on the stable ABI cannot be used, or ``None`` where they can."""
    return _library_problem


def extension_problem() -> str | None:
    """Why what is compiled for one torch alone cannot be used, or ``None`` where it can.

    These are the ops for images and whole networks (depthwise_conv2d, batch_norm_act,
    program_gradient), the allocator that keeps freed memory, and the walk over modules by which
    known structures are found again. Without it they run in plain PyTorch and Python.
    """
    return extension.problem


def has_kernel(schema: str, device: str) -> bool:
    """Whether a native op has an implementation for ``CPU``, ``CUDA`` or ``Meta`` tensors."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"ghn_fast::{schema}", device)


def cuda_problem() -> str | None:
    """Why the compiled CUDA ops cannot be used, or ``None`` where they can."""
    if _library_problem is not None:
        return _library_problem
    if not has_kernel("gated_gnn_forward", "CUDA"):
        return "the ops were compiled without CUDA"
    return None if torch.cuda.is_available() else "CUDA finds no device"


def register_op(
    op: str, backends: dict[str, Callable[[], str | None]], *, on_host: bool = False
) -> None:
    """Tell which back ends an op has, beside its reference.

    Args:
        op: Name of the op.
        backends: For each back end a function that gives the reason why it cannot run, or ``None``.
        on_host: Whether the op computes on the host, whatever device its tensors are on. Such an op
            takes no notice when a back end is asked for that runs on other devices.

    Raises:
        ValueError: If a name is not that of a back end.
    """
    for name in backends:
        if name not in BACKENDS:
            raise ValueError(f"backends: got {name!r}, needs one of {', '.join(BACKENDS)}")
    _implementations[op] = {"reference": lambda: None, **backends}
    (_on_host.add if on_host else _on_host.discard)(op)


def ops() -> list[str]:
    """Names of the ops that have been registered."""
    return sorted(_implementations)


def requested() -> str:
    """The back end that is asked for: of the innermost ``with``, the environment, or ``auto``.

    Raises:
        ValueError: If the environment names none.
    """
    forced = _forced.get()
    if forced is not None:
        return forced
    return _checked(os.environ.get(VARIABLE) or "auto", VARIABLE)


def requested_for(op: str) -> str:
    """The back end that is asked for, as far as it concerns an op.

    Raises:
        ValueError: If the environment names none.
    """
    name = requested()
    elsewhere = op in _on_host and name not in ("auto", "reference", *_PREFERENCE["cpu"])
    return "auto" if elsewhere else name


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Run every op inside on one back end.

    Args:
        name: ``reference``, ``cpu``, ``cuda``, ``triton``, or ``auto`` for the fastest that can
            run.

    Raises:
        ValueError: If there is no such back end. An op raises it, too, where the back end that is
            asked for cannot run.
    """
    token = _forced.set(_checked(name, "name"))
    try:
        yield
    finally:
        _forced.reset(token)


def resolve(op: str, device_type: str) -> str:
    """The back end that an op runs on.

    Args:
        op: Name of a registered op.
        device_type: ``cpu``, ``cuda``, ... of its tensors.

    Raises:
        ValueError: If a back end was asked for that does not exist or cannot run.
    """
    global _warned
    name = requested_for(op)
    there = _implementations[op]
    if name == "auto":
        chosen, problem = automatic(op, device_type)
        if problem is not None and not _warned:
            _warned = True
            warnings.warn(
                f"ghn_fast runs {op} on its slow plain-PyTorch reference: {problem}. "
                "`ghn-fast doctor` says more.",
                RuntimeWarning,
                stacklevel=3,
            )
        return chosen
    usable = [b for b in there if problem_of(op, b, device_type) is None]
    if name not in usable:
        reason = problem_of(op, name, device_type)
        raise ValueError(
            f"back end {name!r} cannot run {op} on {device_type} tensors: {reason}; "
            f"available are {', '.join(['auto', *usable])}"
        )
    return name


# A function that is traced by torch.compile keeps the back end that it was traced with. This is
# torch.compiler.assume_constant_result without its import of the compiler, which would make
# importing this package half as long again as importing torch.
resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]


def automatic(op: str, device_type: str) -> tuple[str, str | None]:
    """What ``auto`` chooses, and why no compiled back end if it is the reference."""
    problem = None
    for name in _PREFERENCE.get(_computes_on(op, device_type), ()):
        if name not in _implementations[op]:
            continue
        reason = problem_of(op, name, device_type)
        if reason is None:
            return name, None
        problem = problem or f"back end {name!r}: {reason}"
    return "reference", problem


def problem_of(op: str, name: str, device_type: str) -> str | None:
    """Why an op cannot run on a back end for tensors on a device, or ``None`` if it can."""
    there = _implementations[op]
    if name not in there:
        return "there is no such implementation of it"
    if name != "reference" and name not in _PREFERENCE.get(_computes_on(op, device_type), ()):
        return "it is for other devices"
    return there[name]()


def _computes_on(op: str, device_type: str) -> str:
    return "cpu" if op in _on_host else device_type


def _checked(name: str, argument: str) -> str:
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"{argument}: got {name!r}, needs one of {', '.join(('auto', *BACKENDS))}")
    return name
