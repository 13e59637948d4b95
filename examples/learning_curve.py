"""Draw the loss of a training run in stages beside that of the published GHN-2 for CIFAR-10.

python examples/learning_curve.py curve.png runs/cifar10-16px:0.0246 runs/cifar10:0.349

Behind each run stand the petaFLOPs of a thousand of its steps: two for each multiplication of the
candidate networks, three passes, images times architectures.
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.figure import Figure
from plot_metrics import medians, read_steps, style, windows

# Mean training cross-entropy of the published run (arXiv 2110.13100) in epochs of 704 steps of
# 8 x 64, which take 75 petaFLOPs in all 300 epochs; the middle of each span.
_PUBLISHED = {1: 2.11, 4: 1.83, 12.5: 1.55, 25: 1.42, 45: 1.28, 87.5: 1.08, 187.5: 0.96, 300: 0.85}
_EPOCH = 704
_PETAFLOPS = 75 / 300

_WINDOWS, _LEAST = 16, 50


def main(picture: Path, runs: list[tuple[Path, float]]) -> None:
    """Draw a panel over steps and one over petaFLOPs, stages one behind the other."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    losses, steps, flops, first, spent = [], [], [], 0, 0.0
    for run, per_thousand in runs:
        done = read_steps(run)
        groups = windows(done, _WINDOWS, _LEAST)
        ends = [group[-1]["step"] for group in groups]
        losses += medians(groups, "loss")
        steps += [first + end for end in ends]
        flops += [spent + end * per_thousand / 1000 for end in ends]
        last = done[-1]["step"]
        first, spent = first + last, spent + last * per_thousand / 1000
    published = list(_PUBLISHED.values())
    panels[0].plot(
        [e * _EPOCH for e in _PUBLISHED], published, "o-", color="0.5", label="published"
    )
    panels[0].plot(steps, losses, color="#0072B2", linewidth=1.6, label="this run")
    panels[1].plot([e * _PETAFLOPS for e in _PUBLISHED], published, "o-", color="0.5")
    panels[1].plot(flops, losses, color="#0072B2", linewidth=1.6)
    for axes, label in zip(panels, ("step", "petaFLOPs"), strict=True):
        axes.set_xscale("log")
        axes.set_xlabel(label)
        style(axes)
    panels[0].set_ylabel("training cross-entropy")
    panels[0].legend(frameon=False)
    figure.savefig(picture, dpi=140)


if __name__ == "__main__":
    if len(sys.argv) < 3 or not all(":" in name for name in sys.argv[2:]):
        sys.exit(f"usage: {sys.argv[0]} PICTURE RUN:PETAFLOPS [RUN:PETAFLOPS ...]")
    named = [name.rpartition(":") for name in sys.argv[2:]]
    main(Path(sys.argv[1]), [(Path(run), float(value)) for run, _, value in named])
