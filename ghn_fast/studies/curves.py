"""Curves of trainings: what they say about convergence, and pictures of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ghn_fast.utils.optional import require
from ghn_fast.vision.results import check_picture_name

_PANELS_IN_A_ROW = 3
# Colour-blind safe (Okabe and Ito), dark enough for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")


@dataclass(frozen=True)
class Point:
    """A network at a step of its training.

    Attributes:
        step: Steps that were done.
        top1: Percent of held-out images that it classifies rightly.
        top5: Likewise, among the five largest logits.
        loss: Mean cross-entropy on them.
    """

    step: int
    top1: float
    top5: float
    loss: float


@dataclass
class TrainingCurve:
    """How a network learned.

    Attributes:
        points: Evaluations, by step; the first one before any training.
        train_loss: Cross-entropy of the batch of each step.
        train_top1: Percent of the batch that was classified rightly, before the step.
        images: Images a step.
        seconds: Seconds of training, evaluations left out.
    """

    points: list[Point] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    train_top1: list[float] = field(default_factory=list)
    images: int = 0
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        """Steps that were done."""
        return len(self.train_loss)

    @property
    def final(self) -> Point | None:
        """The last evaluation."""
        return self.points[-1] if self.points else None

    def steps_to_training_accuracy(self, percent: float, window: int = 0) -> int | None:
        """Convergence speed: steps until the training accuracy reaches a value.

        Args:
            percent: The accuracy; 95 in arXiv 2110.13100, section 4.3.
            window: Steps over which batches are averaged; by default as many as hold 500 images.

        Returns:
            The number of steps, ``None`` if they were not enough.
        """
        window = window or max(1, math.ceil(500 / max(self.images, 1)))
        total = 0.0
        for step, value in enumerate(self.train_top1, start=1):
            total += value - (self.train_top1[step - 1 - window] if step > window else 0.0)
            if step >= window and total / window >= percent:
                return step
        return None

    def steps_to_accuracy(self, percent: float) -> float | None:
        """Steps until the curve of held-out accuracy crosses a value, between points linearly.

        That is how many steps of training a network with that accuracy is worth.

        Returns:
            The number of steps, ``None`` if the curve stays below.
        """
        before: Point | None = None
        for point in self.points:
            if point.top1 >= percent:
                if before is None:
                    return float(point.step)
                share = (percent - before.top1) / (point.top1 - before.top1)
                return before.step + share * (point.step - before.step)
            before = point
        return None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "points": [[p.step, p.top1, p.top5, p.loss] for p in self.points],
            "train_loss": self.train_loss,
            "train_top1": self.train_top1,
            "images": self.images,
            "seconds": self.seconds,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainingCurve:
        """Read :meth:`to_dict`; null is NaN, which JSON cannot say."""
        return cls(
            [Point(int(step), *map(_number, values)) for step, *values in data["points"]],
            list(map(_number, data["train_loss"])),
            list(map(_number, data["train_top1"])),
            int(data["images"]),
            float(data["seconds"]),
        )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (ddof = 1; NaN for a single value, which has none).

    Raises:
        ValueError: If there are no values.
    """
    if not values:
        raise ValueError("values must hold at least one number, got none")
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return statistics.fmean(values), deviation


def plus_minus(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± standard deviation for a table; a dash without values."""
    if not values:
        return "–"
    mean, deviation = mean_and_deviation(values)
    text = f"{mean:.{digits}f}"
    return text if math.isnan(deviation) else f"{text} ± {deviation:.{digits}f}"


def draw_curves(
    curves: Mapping[str, Sequence[TrainingCurve]],
    path: str | Path,
    *,
    title: str = "",
    y_label: str = "top-1 accuracy on held-out images (%)",
    chance: float | None = None,
    panels: Mapping[str, str] | None = None,
) -> None:
    """Draw accuracy against steps, one line for each name; several curves of a name are averaged.

    Args:
        curves: Name to curves (seeds) that were evaluated at the same steps.
        path: The picture: .png, .svg or .pdf.
        title: Title.
        y_label: Label of the accuracy.
        chance: Accuracy of guessing in percent, drawn as a dotted line.
        panels: Name to panel, for several panels, three in a row; names are then cut at the last
            comma for the legend.

    Raises:
        ValueError: If there are no curves, or the suffix is another.
    """
    Figure = require("matplotlib.figure", "drawing", "pictures").Figure

    path = check_picture_name(path)
    if not curves:
        raise ValueError("curves: got none, needs at least one to draw")
    names = list(dict.fromkeys(panels.values())) if panels else [""]
    columns = min(len(names), _PANELS_IN_A_ROW)
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(1.2 + 3.0 * columns, 0.4 + 2.8 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    axes = grid.flatten()[: len(names)]
    for empty in grid.flatten()[len(names) :]:
        empty.remove()
    labels: dict[str, str] = {}
    for axis, panel in zip(axes, names, strict=True):
        for name, seeds in curves.items():
            if panels and panels[name] != panel:
                continue
            label = name.rpartition(", ")[2] if panels else name
            colour = labels.setdefault(label, COLOURS[len(labels) % len(COLOURS)])
            _draw_mean(axis, seeds, colour, label)
        if chance is not None:
            axis.axhline(chance, color="0.35", linewidth=1, linestyle=":")
        axis.set_title(panel or title, loc="left", fontsize=10)
        if axis in axes[-columns:]:
            axis.set_xlabel("steps")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="0.9", linewidth=0.8)
        axis.set_axisbelow(True)
    for axis in grid[:, 0]:
        axis.set_ylabel(y_label, fontsize=9)
    axes[0].legend(frameon=False, fontsize=8)
    if panels and title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    figure.savefig(path, dpi=110)


def _draw_mean(axis: Any, curves: Sequence[TrainingCurve], colour: str, label: str) -> None:
    by_step: dict[int, list[float]] = {}
    for curve in curves:
        for point in curve.points:
            by_step.setdefault(point.step, []).append(point.top1)
    most = max(len(values) for values in by_step.values())
    steps = sorted(step for step, values in by_step.items() if len(values) == most)
    means = [statistics.fmean(by_step[step]) for step in steps]
    axis.plot(steps, means, color=colour, linewidth=1.6, label=label, marker="o", markersize=3)
    if most > 1:
        spread = [statistics.stdev(by_step[step]) for step in steps]
        low = [m - s for m, s in zip(means, spread, strict=True)]
        high = [m + s for m, s in zip(means, spread, strict=True)]
        axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
