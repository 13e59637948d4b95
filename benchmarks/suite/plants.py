"""Regressions planted into a tree, to see that they are found: more time, or one more call.

Each is text that is put at the end of a module of the tree; nothing else is changed.
"""

from __future__ import annotations

from pathlib import Path

# Where each path is entered: the module, and the name there.
PLACES = {
    "gated_gnn": ("ghn_fast/ops/gated_gnn.py", "gated_gnn"),
    "expand_params": ("ghn_fast/ops/expand_params.py", "expand_params"),
    "shortest_distances": ("ghn_fast/ops/shortest_distances.py", "shortest_distances"),
    "collate_edges": ("ghn_fast/ops/collate_edges.py", "collate_edges"),
    "predict": ("ghn_fast/hypernet/ghn.py", "GHN.predict"),
}

# Processor time is added in proportion to what the call has taken, so that the part is the same on
# any machine.
_SLOWER = """

def _slower(function):  # type: ignore
    import functools
    import time

    @functools.wraps(function)
    def run(*args, **kwargs):  # type: ignore
        begin = time.thread_time_ns()
        out = function(*args, **kwargs)
        end = time.thread_time_ns()
        end += (end - begin) * {percent} // 100
        while time.thread_time_ns() < end:
            pass
        return out

    return run


{name} = _slower({name})
"""

# A copy of the result: on a GPU a launch, everywhere a call and an allocation.
_COPY = """

def _copied(function):  # type: ignore
    def run(*args, **kwargs):  # type: ignore
        return function(*args, **kwargs).clone()

    return run


{name} = _copied({name})
"""


def slower(path: str = "gated_gnn", percent: int = 15) -> str:
    """The text that makes a path slower by a part of its own time."""
    return _SLOWER.format(percent=percent, name=PLACES[path][1])


def plant_slowdown(tree: Path, percent: int = 15, path: str = "gated_gnn") -> None:
    """Make a path slower by a part of its own time."""
    _append(tree, path, slower(path, percent))


def plant_copy(tree: Path, path: str = "gated_gnn") -> None:
    """Make an op copy its result."""
    _append(tree, path, _COPY.format(name=PLACES[path][1]))


def _append(tree: Path, path: str, text: str) -> None:
    file = tree / PLACES[path][0]
    file.write_text(file.read_text() + text)
