"""Records of a training run: JSON lines that survive crashes and full disks, and trackers."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ghn_fast.metatrain.trackers import Trackers
from ghn_fast.utils.files import write_atomically
from ghn_fast.utils.json_lines import read_lines

METRICS_FILE = "metrics.jsonl"
EVALUATIONS_FILE = "evaluations.jsonl"
SKIPPED_FILE = "skipped.jsonl"


class JsonLines:
    """Appends JSON objects with an entry ``step`` to a file, each as one whole line.

    Lines after the step from which a run continues are dropped, so that each step has its lines
    once however often the run was interrupted. What cannot be written, because the disk is full,
    is kept and written later.

    Args:
        path: The file.
        start_step: Number of steps that are done already.
    """

    def __init__(self, path: Path, start_step: int) -> None:
        self.path = path
        self._pending = b""
        self._warned = False
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = read_lines(path)
        kept = "".join(_line(values) for values in lines if values["step"] <= start_step).encode()
        if not path.is_file() or path.read_bytes() != kept:
            write_atomically(path, kept)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed in close()
        self._end = len(kept)

    def write(self, values: dict[str, Any]) -> None:
        """Append a line."""
        self._open_again_if_removed(values["step"])
        self._pending += _line(values).encode()
        try:
            self.flush()
        except OSError as error:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"{self.path}: {error.strerror or error}; its lines are kept in memory, and "
                    "written when there is room",
                    RuntimeWarning,
                    stacklevel=2,
                )

    def _open_again_if_removed(self, step: int) -> None:
        """Begin the file anew if somebody has removed it: what is written to it would be lost."""
        if os.fstat(self._file.fileno()).st_nlink:
            return
        warnings.warn(
            f"{self.path} was removed while the run goes on; it begins anew with step {step}",
            RuntimeWarning,
            stacklevel=3,
        )
        self._file.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - closed in close()
        self._end = 0

    def flush(self, *, sync: bool = False) -> None:
        """Write what is pending.

        Args:
            sync: Whether to wait until it is on the disk.

        Raises:
            OSError: If it cannot be written; the file then ends with a whole line.
        """
        try:
            if self._pending:
                self._write_all(self._pending)
                self._end += len(self._pending)
                self._pending = b""
            if sync:
                os.fsync(self._file.fileno())
        except OSError:
            os.ftruncate(self._file.fileno(), self._end)
            raise

    def close(self) -> None:
        """Close the file; what is still pending is lost if there is no room for it."""
        try:
            self.flush()
        except OSError as error:
            warnings.warn(f"{self.path}: {error}", RuntimeWarning, stacklevel=2)
        self._file.close()

    def _write_all(self, data: bytes) -> None:
        while data:
            data = data[self._file.write(data) :]


class RunLog:
    """The records of a run: metrics, evaluations, skipped architectures, experiment trackers.

    Args:
        run: Folder of the run.
        start_step: Number of steps that are done already.
        trackers: Names of trackers, see :data:`ghn_fast.metatrain.trackers.TRACKERS`.
        settings: Settings of the run, which trackers show.
    """

    def __init__(
        self,
        run: Path,
        start_step: int,
        trackers: tuple[str, ...] = ("tensorboard",),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.metrics = JsonLines(run / METRICS_FILE, start_step)
        self.evaluations = JsonLines(run / EVALUATIONS_FILE, start_step)
        self.skipped = JsonLines(run / SKIPPED_FILE, start_step)
        self.trackers = Trackers(trackers, run, start_step, settings or {})

    def write(self, values: dict[str, Any]) -> None:
        """Write the metrics of one step; ``values`` has the entry ``step``."""
        self.metrics.write(values)
        self.trackers.scalars(values["step"], values)

    def write_evaluation(self, values: dict[str, Any]) -> None:
        """Write an evaluation; ``values`` has the entry ``step``."""
        self.evaluations.write(values)
        self.trackers.scalars(values["step"], values, prefix="evaluation/")

    def write_skipped(self, values: dict[str, Any]) -> None:
        """Write a skipped architecture; ``values`` has the entry ``step``."""
        self.skipped.write(values)

    def sync(self) -> None:
        """Wait until everything is on the disk.

        Raises:
            OSError: If something cannot be written.
        """
        for lines in (self.metrics, self.evaluations, self.skipped):
            lines.flush(sync=True)

    def close(self) -> None:
        """Close all files."""
        for lines in (self.metrics, self.evaluations, self.skipped):
            lines.close()
        self.trackers.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All complete lines of RUN/metrics.jsonl."""
    return read_lines(run / METRICS_FILE)


def _line(values: dict[str, Any]) -> str:
    # JSON has no NaN: a step without a finite loss has null.
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
    return json.dumps(finite) + "\n"
