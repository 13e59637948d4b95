"""What training on a CPU keeps in memory: freed blocks, and compiled kernels."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ghn_fast.ops.backend import extension, extension_problem

# Parameters of mallopt, from malloc.h of the GNU C library.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_MOST = 2**31 - 1


# Kernels that oneDNN keeps, some ten kilobytes each; its own default is 1024.
_PRIMITIVES = 8192


def keep_primitives() -> None:
    """Let oneDNN keep more of the kernels that it compiles for the shapes of tensors.

    Compiling one takes as long as running it several times. Candidate networks have some thousand
    different shapes, of which each step sees a few hundred. A process that has called oneDNN before
    keeps its limit, and so does one whose environment says ``ONEDNN_PRIMITIVE_CACHE_CAPACITY``.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_PRIMITIVES))


def keep_freed_memory() -> bool:
    """Let the process keep memory that it has freed, and use it again.

    Activations are allocated and freed all the time, some megabytes each. By default the GNU C
    library gives blocks of that size back to the system, which then hands out zeroed pages again;
    and it sorts and merges them, where the compiled extension keeps lists by size. The process
    stays as large as it ever was.

    Returns:
        Whether the C library took the setting; others than GNU's do not know it.
    """
    if extension_problem() is None:
        extension.module.cache_cpu_memory()
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 2**30)) and bool(mallopt(_M_TRIM_THRESHOLD, _MOST))


@contextmanager
def settled() -> Iterator[None]:
    """Spare the collector of Python what is there when training begins: modules, for the most part.

    Otherwise it walks through some hundred thousand objects again and again. Whoever has frozen
    objects before, this or the process's owner, keeps them so.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
