"""What the benchmarks share: parameters from a grid, setup of a case, the clocks."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

# Before torch is imported, in the process that runs benchmarks: threads, and a quiet profiler.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
from suite.cases import GRIDS, Case, Grid, guarded_cases  # noqa: E402, F401
from suite.setups import SkippedError, prepared  # noqa: E402

NAMES = ["backend, device", "hid", "graph", "meta_batch", "dtype"]
_device = "cpu"
_first: Any = None
# asv calls setup before every execution; a case stays as it is until its process ends.
_prepared: dict[Case, Callable[[], Any]] = {}
_open = ExitStack()


def clock() -> float:
    """Seconds: of the processor for a case on CPU, between events of the stream on a GPU."""
    global _first
    if _device != "cuda":
        return time.process_time()
    now = torch.cuda.Event(enable_timing=True)
    if _first is None:
        _first = torch.cuda.Event(enable_timing=True)
        _first.record()
    now.record()
    now.synchronize()
    return float(_first.elapsed_time(now)) / 1e3


class Suite:
    """One part of one path. Subclasses are filled in by :func:`of`."""

    grid: Grid
    part: str
    version = "1"
    timer = staticmethod(clock)
    rounds = 1
    repeat = (5, 20, 0.8)
    sample_time = 0.02
    warmup_time = 0.1
    timeout = 300
    param_names = NAMES

    def setup(self, target: str, hid: int, graph: str, meta_batch: int, dtype: str) -> None:
        """Set the case up; one that cannot run on this machine is not available (n/a)."""
        global _device, _first
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        backend, device = target.split(", ")
        case = Case(self.grid.path, self.part, backend, device, hid, graph, meta_batch, dtype)
        if case not in _prepared:
            try:
                _prepared[case] = _open.enter_context(prepared(case))
            except SkippedError as reason:
                raise NotImplementedError(f"skipped: {reason}") from None
            _device, _first = device, None
            _prepared[case]()
        self.run = _prepared[case]


def _time_call(self: Suite, *_: Any) -> None:
    """Time of one call."""
    self.run()


def _peakmem_call(self: Suite, *_: Any) -> None:
    """Largest memory of the process with the case set up and run."""
    self.run()


_S = TypeVar("_S", bound=type[Suite])


def of(path: str, part: str) -> Callable[[_S], _S]:
    """Give a class the parameters of a path's grid."""
    (grid,) = [grid for grid in GRIDS if grid.path == path]
    if part not in grid.parts:
        raise ValueError(f"part: {path} has no {part!r}, only {', '.join(grid.parts)}")

    def fill(cls: _S) -> _S:
        cls.grid = grid
        cls.part = part
        cls.params = [  # type: ignore[attr-defined]
            [", ".join(target) for target in grid.targets],
            list(grid.hid),
            list(grid.graphs),
            list(grid.meta_batches),
            list(grid.dtypes),
        ]
        # Not of the class above, which asv would take for a benchmark, too.
        cls.time_call = _time_call  # type: ignore[attr-defined]
        cls.peakmem_call = _peakmem_call  # type: ignore[attr-defined]
        cls.pretty_source = f"Path {path}, part {part}: benchmarks/suite/setups.py"  # type: ignore[attr-defined]
        return cls

    return fill
