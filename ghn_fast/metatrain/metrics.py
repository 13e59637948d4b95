"""Metrics of a training run: one JSON line per step, and TensorBoard."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ghn_fast.hypernet.checkpoint import write_atomically

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Appends metrics of each step to RUN/metrics.jsonl and to TensorBoard.

    Lines after the step from which a run continues are dropped, so that each step has one line
    however often the run was interrupted.

    Args:
        run: Folder of the run.
        start_step: Number of steps that are done already.
    """

    def __init__(self, run: Path, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        run.mkdir(parents=True, exist_ok=True)
        self.path = run / METRICS_FILE
        kept = [line for line in read_metrics(run) if line["step"] <= start_step]
        write_atomically(self.path, "".join(_line(values) for values in kept).encode())
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - closed in close()
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=start_step + 1)

    def write(self, values: dict[str, Any]) -> None:
        """Write the metrics of one step; ``values`` has the entry ``step``."""
        self._file.write(_line(values))
        self._file.flush()
        for name, value in values.items():
            if name != "step" and value is not None:
                self._board.add_scalar(name, value, values["step"])

    def close(self) -> None:
        """Close both files."""
        self._file.close()
        self._board.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All complete lines of RUN/metrics.jsonl; a line cut off by a crash is left out."""
    path = run / METRICS_FILE
    if not path.is_file():
        return []
    result = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(values, dict) and "step" in values:
            result.append(values)
    return result


def _line(values: dict[str, Any]) -> str:
    # JSON has no NaN: a step without a finite loss has null.
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
    return json.dumps(finite) + "\n"
