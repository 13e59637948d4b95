"""The C library's memory allocator, set for training on a CPU."""

from __future__ import annotations

import ctypes

# Parameters of mallopt, from malloc.h of the GNU C library.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_MOST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let the process keep memory that it has freed, and use it again.

    Activations are allocated and freed all the time, some megabytes each. By default the GNU C
    library gives blocks of that size back to the system, which then hands out zeroed pages again.
    The process stays as large as it ever was.

    Returns:
        Whether the C library took the setting; others than GNU's do not know it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 2**30)) and bool(mallopt(_M_TRIM_THRESHOLD, _MOST))
