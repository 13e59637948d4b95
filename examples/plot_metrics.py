"""Draw loss and accuracy of training runs from their metrics.jsonl.

python examples/plot_metrics.py docs/digits.png runs/digits-16px runs/digits
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from matplotlib.figure import Figure

from ghn_fast.metatrain.metrics import read_metrics

# Points of a curve are medians over windows: single architectures can have huge losses.
_WINDOWS = 20


def main(picture: Path, runs: list[Path]) -> None:
    """Draw one column per run, in the order given."""
    figure = Figure(figsize=(3.6 * len(runs), 4.6), layout="constrained")
    panels = figure.subplots(2, len(runs), squeeze=False, sharex="col")
    for column, run in enumerate(runs):
        lines = [line for line in read_metrics(run) if line["loss"] is not None]
        width = max(len(lines) // _WINDOWS, 1)
        windows = [lines[i : i + width] for i in range(0, len(lines) - width + 1, width)]
        steps = [window[-1]["step"] for window in windows]
        for row, (name, label) in enumerate((("loss", "loss"), ("top1", "training top-1 (%)"))):
            axes = panels[row][column]
            values = [statistics.median(line[name] for line in window) for window in windows]
            axes.plot(steps, values, color="#0072B2", linewidth=1.6)
            axes.set_ylabel(label)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(color="0.92", linewidth=0.8)
        panels[0][column].set_title(f"{run.name}\n(medians of {width} steps)")
        panels[1][column].set_xlabel("step")
    figure.savefig(picture, dpi=140)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(f"usage: {sys.argv[0]} PICTURE RUN [RUN ...]")
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
