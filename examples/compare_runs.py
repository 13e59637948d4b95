"""Draw loss and accuracy of several training runs over one another, from their metrics.jsonl.

python examples/compare_runs.py docs/digits-precisions.png runs/float32 runs/bf16
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.figure import Figure
from plot_metrics import medians, read_steps, style, windows

# Colour-blind safe (Okabe and Ito).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def main(picture: Path, runs: list[Path]) -> None:
    """Draw a panel for the loss and one for the accuracy."""
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    panels = figure.subplots(1, 2)
    for run, colour in zip(runs, _COLOURS, strict=False):
        groups = windows(read_steps(run))
        steps = [group[-1]["step"] for group in groups]
        for axes, name in zip(panels, ("loss", "top1"), strict=True):
            axes.plot(steps, medians(groups, name), color=colour, linewidth=1.6, label=run.name)
    for axes, label in zip(panels, ("loss", "training top-1 (%)"), strict=True):
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        style(axes)
    panels[0].legend(frameon=False, fontsize=8 if len(runs) > 4 else None)
    figure.savefig(picture, dpi=140)


if __name__ == "__main__":
    if not 3 <= len(sys.argv) <= 2 + len(_COLOURS):
        sys.exit(f"usage: {sys.argv[0]} PICTURE RUN [RUN ...], at most {len(_COLOURS)} runs")
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
