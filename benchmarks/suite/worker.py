"""A process that sets cases of one revision up and times or counts them on request.

Started by :mod:`suite.processes` with the tree of the revision first on PYTHONPATH. Requests and
answers are lines of JSON on standard input and output; what libraries print goes to standard error.
Times are of the processor, not of the clock on the wall: other processes do not add to them by
taking turns. On a GPU they are between two events of the stream.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

# Exceptions that say that a revision does not have what a case calls.
LACKING = ("ImportError", "ModuleNotFoundError", "AttributeError", "TypeError")


class Worker:
    """Holds the case that is set up."""

    def __init__(self) -> None:
        self.stack = ExitStack()
        self.run: Callable[[], Any] = lambda: None
        self.device = "cpu"
        self.padding: list[bytearray] = []

    def prepare(self, case: str) -> dict[str, Any]:
        """Set a case up and run it twice."""
        from suite.cases import find_case
        from suite.setups import SkippedError, prepared

        self.release()
        found = find_case(case)
        self.device = found.device
        self._shift()
        try:
            self.run = self.stack.enter_context(prepared(found))
        except SkippedError as reason:
            return {"skipped": str(reason)}
        for _ in range(2):
            self._shift()
            self.run()
        gc.collect()
        return {}

    def _shift(self) -> None:
        """Move what is allocated from now on by a random distance, other in each process.

        How buffers lie to each other can make an op 10 % slower, and a revision has its own way of
        laying them, the same in each process. Over the rounds this turns a bias into noise.
        """
        self.padding.append(bytearray(64 * random.randrange(1 << 14)))

    def release(self) -> dict[str, Any]:
        """Let go of the case."""
        self.stack.close()
        self.run = lambda: None
        self.padding.clear()
        gc.collect()
        return {}

    def measure(self, calls: int) -> dict[str, Any]:
        """Measure seconds of one call, the mean of ``calls``."""
        gc.disable()
        try:
            if self.device == "cuda":
                return {"seconds": self._cuda(calls)}
            begin = time.process_time_ns()
            for _ in range(calls):
                self.run()
            return {"seconds": (time.process_time_ns() - begin) / 1e9 / calls}
        finally:
            gc.enable()

    def _cuda(self, calls: int) -> float:
        import torch

        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        for _ in range(calls):
            self.run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / calls

    def count(self) -> dict[str, Any]:
        """Count as :func:`suite.counting.count` does."""
        from suite.counting import count

        return {"counts": count(self.run, self.device)}

    def instructions(self) -> dict[str, Any]:
        """Run one call with the instruction counter of valgrind switched on."""
        import torch

        # On; and off, with what was counted in a file.
        torch._C._valgrind_toggle()
        self.run()
        torch._C._valgrind_toggle_and_dump_stats()
        return {}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    worker = Worker()
    answer: dict[str, Any]
    for line in sys.stdin:
        request = json.loads(line)
        name = request.pop("do")
        try:
            if name == "hello":
                import torch

                import ghn_fast

                torch.set_num_threads(1)
                answer = {"package": str(Path(ghn_fast.__file__).resolve().parent.parent)}
            else:
                answer = getattr(worker, name)(**request)
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            kind = type(error).__name__
            answer = {"error": f"{kind}: {text}", "lacking": kind in LACKING}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
