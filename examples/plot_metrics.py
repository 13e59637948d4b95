"""Draw loss and accuracy of training runs from their metrics.jsonl.

python examples/plot_metrics.py docs/digits.png runs/digits-16px runs/digits
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ghn_fast.metatrain.metrics import read_metrics

# Points of a curve are medians over windows: single architectures can have huge losses.
_WINDOWS = 20


def read_steps(run: Path) -> list[dict[str, Any]]:
    """The steps of a run that have a loss, at least one."""
    steps = [line for line in read_metrics(run) if line["loss"] is not None]
    if not steps:
        sys.exit(f"{run}: has no metrics.jsonl with a step that has a loss")
    return steps


def windows(
    steps: list[dict[str, Any]], count: int = _WINDOWS, least: int = 1
) -> list[list[dict[str, Any]]]:
    """About ``count`` windows of as many steps each, at least ``least``; a rest is left out."""
    width = max(len(steps) // count, least)
    return [steps[i : i + width] for i in range(0, len(steps) - width + 1, width)]


def medians(groups: list[list[dict[str, Any]]], name: str) -> list[float]:
    """The median of each window."""
    return [statistics.median(step[name] for step in group) for group in groups]


def style(axes: Axes) -> None:
    """Lines of the axes left and below, and a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.8)


def main(picture: Path, runs: list[Path]) -> None:
    """Draw one column per run, in the order given."""
    figure = Figure(figsize=(3.6 * len(runs), 4.6), layout="constrained")
    panels = figure.subplots(2, len(runs), squeeze=False, sharex="col")
    for column, run in enumerate(runs):
        groups = windows(read_steps(run))
        steps = [group[-1]["step"] for group in groups]
        for row, (name, label) in enumerate((("loss", "loss"), ("top1", "training top-1 (%)"))):
            axes = panels[row][column]
            axes.plot(steps, medians(groups, name), color="#0072B2", linewidth=1.6)
            axes.set_ylabel(label)
            style(axes)
        panels[0][column].set_title(f"{run.name}\n(medians of {len(groups[0])} steps)")
        panels[1][column].set_xlabel("step")
    figure.savefig(picture, dpi=140)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(f"usage: {sys.argv[0]} PICTURE RUN [RUN ...]")
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
