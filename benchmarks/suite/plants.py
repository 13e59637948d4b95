"""Regressions planted into a tree, to see that they are found: 15 % more time, one more call.

Each is text that is put at the end of a module of the tree; nothing else is changed.
"""

from __future__ import annotations

from pathlib import Path

MODULE = Path("ghn_fast") / "ops" / "gated_gnn.py"

# Processor time is added in proportion to what the op has taken, so that it is 15 % on any machine.
SLOWER = """

def _slower(function: Any) -> Any:
    import functools
    import time

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        begin = time.thread_time_ns()
        out = function(*args, **kwargs)
        end = time.thread_time_ns()
        end += (end - begin) * {percent} // 100
        while time.thread_time_ns() < end:
            pass
        return out

    return run


gated_gnn = _slower(gated_gnn)
"""

# A copy of the result: on a GPU a launch, everywhere a call and an allocation.
COPY = """

def _copied(function: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs).clone()

    return run


gated_gnn = _copied(gated_gnn)
"""


def plant_slowdown(tree: Path, percent: int = 15) -> None:
    """Make the gated GNN slower by a part of its own time."""
    _append(tree, SLOWER.format(percent=percent))


def plant_copy(tree: Path) -> None:
    """Make the gated GNN copy its result."""
    _append(tree, COPY)


def _append(tree: Path, text: str) -> None:
    path = tree / MODULE
    path.write_text(path.read_text() + text)
