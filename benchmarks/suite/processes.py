"""The other end of :mod:`suite.worker`: starting it on a tree, asking it, ending it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

# glibc: no memory of its own for large blocks, nothing is given back to the system.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
_SCRIPT = Path(__file__).with_name("worker.py")


class WorkerError(Exception):
    """A worker failed; the message says how."""

    def __init__(self, message: str, lacking: bool = False) -> None:
        super().__init__(message)
        self.lacking = lacking


def environment(tree: Path) -> dict[str, str]:
    """Make the environment in which the package of a tree is imported, with one thread.

    The allocator keeps the memory that it has: otherwise it depends on what lies where in memory
    whether a result is put into fresh pages, which the system has to clear first. That takes longer
    than some ops do. And it asks for large pages: which small ones a process happens to get decides
    what its data displaces in the cache, and made one process slower than the next by up to 40 %.
    """
    kept = {k: v for k, v in os.environ.items() if k != "GHN_FAST_BACKEND"}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    quiet = {"KINETO_LOG_LEVEL": "99"}
    return {**kept, **threads, **quiet, **ALLOCATOR, "PYTHONPATH": str(tree), "PYTHONHASHSEED": "0"}


class RunningWorker:
    """A worker process.

    Args:
        tree: Root of the revision whose package it measures.
        core: Processor that it is bound to, if any.
        under: Program and options that it runs under.

    Raises:
        WorkerError: If it imports another package than that of the tree.
    """

    def __init__(self, tree: Path, core: int | None = None, under: tuple[str, ...] = ()) -> None:
        self.tree = tree
        self.process = subprocess.Popen(
            [*under, sys.executable, str(_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if under else None,
            text=True,
            env=environment(tree),
            cwd=tree,
        )
        self.core = core
        self.send({"do": "hello"})

    def send(self, request: dict[str, Any]) -> None:
        """Ask, without waiting for the answer."""
        try:
            self.process.stdin.write(json.dumps(request) + "\n")  # type: ignore[union-attr]
            self.process.stdin.flush()  # type: ignore[union-attr]
        except BrokenPipeError:
            raise WorkerError("the measuring process is gone") from None

    def receive(self) -> dict[str, Any]:
        """Wait for the answer to the oldest question.

        Raises:
            WorkerError: If the worker failed or ended.
        """
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise WorkerError(f"the measuring process ended with status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"], answer["lacking"])
        return answer

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Ask and wait for the answer."""
        self.send({"do": do, **arguments})
        return self.receive()

    def wait_ready(self) -> None:
        """Wait until torch and the package are imported; bind the process to its processor then.

        Raises:
            WorkerError: If the package is not the tree's.
        """
        found = Path(self.receive()["package"])
        if found != self.tree.resolve():
            raise WorkerError(f"imports the package of {found}, not of {self.tree}")
        self.bind(self.core)

    def bind(self, core: int | None) -> None:
        """Bind the process, and the children that it makes from now on, to a processor."""
        if core is not None:
            os.sched_setaffinity(self.process.pid, {core})

    def close(self) -> None:
        """End the process."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> RunningWorker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
