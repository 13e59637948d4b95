"""A process that sets cases of one revision up and times or counts them on request.

Started by :mod:`suite.processes` with the tree of the revision first on PYTHONPATH. Requests and
answers are lines of JSON on standard input and output; what libraries print goes to standard error.
After ``fork`` a child answers, until ``end``: it has the imports of its parent, and memory of its
own. A GPU cannot be used in a child if its parent has used it, so cases of a GPU are not forked.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

# Exceptions that say that a revision does not have what a case calls.
LACKING = ("ImportError", "ModuleNotFoundError", "AttributeError", "TypeError")


class Worker:
    """Holds the case that is set up."""

    def __init__(self) -> None:
        self.stack = ExitStack()
        self.run: Callable[[], Any] = lambda: None
        self.flush: Callable[[], Any] | None = None
        self.device = "cpu"
        self.padding: list[bytearray] = []

    def hello(self) -> dict[str, Any]:
        """Import the package; say where it is."""
        import torch

        import ghn_fast

        torch.set_num_threads(1)
        return {"package": str(Path(ghn_fast.__file__).resolve().parent.parent)}

    def warm(self, cases: list[str]) -> dict[str, Any]:
        """Import what cases need and make their graphs, for children to find them; run nothing."""
        from suite.cases import find_case
        from suite.setups import prepared

        for name in cases:
            # What is wrong shows when the case is prepared to be measured.
            with suppress(Exception), prepared(find_case(name)):
                pass
        gc.collect()
        gc.freeze()
        return {}

    def prepare(self, case: str) -> dict[str, Any]:
        """Set a case up and run it twice."""
        from suite.cases import find_case
        from suite.clock import flusher
        from suite.setups import SkippedError, prepared

        self.release()
        found = find_case(case)
        self.device = found.device
        self._shift()
        try:
            self.run = self.stack.enter_context(prepared(found))
        except SkippedError as reason:
            return {"skipped": str(reason)}
        self.flush = flusher(found.device) if found.cache == "cold" else None
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
        """Measure seconds of one call, the mean of ``calls``; say what slowed a GPU meanwhile."""
        from suite.clock import cold_seconds, seconds
        from suite.nvml import watch

        with watch(self.device) as state:
            if self.flush is not None:
                found = cold_seconds(self.run, self.flush, calls, self.device)
            else:
                found = seconds(self.run, calls, self.device)
        return {"seconds": found, "throttled": state.reasons, "clock": state.clock}

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

    def crash(self) -> dict[str, Any]:
        """End at once, as a process does that crashes: to see that it is noticed."""
        os._exit(3)


def fork() -> dict[str, Any] | None:
    """Let a child answer, which gets ``None``; wait for its end, and say how it ended."""
    child = os.fork()
    if child == 0:
        random.seed()
        return None
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 0:
        return {}
    return {"error": f"the process of a round ended with status {code}", "lacking": False}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    worker, is_child = Worker(), False
    answer: dict[str, Any]
    for line in sys.stdin:
        request = json.loads(line)
        name = request.pop("do")
        try:
            if name == "end":
                if is_child:
                    os._exit(0)
                answer = {}
            elif name == "fork":
                ended = fork()
                is_child = is_child or ended is None
                answer = ended or {}
            else:
                answer = getattr(worker, name)(**request)
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            kind = type(error).__name__
            answer = {"error": f"{kind}: {text}", "lacking": kind in LACKING}
        print(json.dumps(answer), file=answers)
    if is_child:
        os._exit(0)


if __name__ == "__main__":
    main()
