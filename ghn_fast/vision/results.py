"""What an evaluation found: per-architecture records, their summary, JSON and a picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ghn_fast.utils.json_files import to_json, write_json
from ghn_fast.utils.optional import require

PICTURE_SUFFIXES = (".png", ".svg", ".pdf")

# Colour-blind safe (Okabe and Ito), dark enough for text on white.
PREDICTED_COLOUR = "#0072B2"
RANDOM_COLOUR = "#D55E00"


def check_picture_name(path: str | Path) -> Path:
    """Refuse a picture of an unknown format.

    Raises:
        ValueError: If the suffix is none of .png, .svg, .pdf.
    """
    path = Path(path)
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise ValueError(
            f"the picture must end in one of {', '.join(PICTURE_SUFFIXES)}; got {path}"
        )
    return path


@dataclass(frozen=True)
class Summary:
    """What a number of values have in common.

    Attributes:
        mean: Their mean.
        standard_error: Standard error of the mean; NaN for a single value, which has none.
        best: The largest value.
        worst: The smallest value.
        count: Number of values.
    """

    mean: float
    standard_error: float
    best: float
    worst: float
    count: int


def summarise(values: Sequence[float]) -> Summary:
    """Summarise values; the standard error is the standard deviation (ddof = 1) over sqrt(n).

    Raises:
        ValueError: If there are no values, or one is not finite.
    """
    count = len(values)
    if count == 0:
        raise ValueError("values must hold at least one number, got none")
    if not all(math.isfinite(value) for value in values):
        raise ValueError("values must be finite numbers, got nan or infinity among them")
    error = statistics.stdev(values) / math.sqrt(count) if count > 1 else math.nan
    return Summary(
        mean=statistics.fmean(values),
        standard_error=error,
        best=max(values),
        worst=min(values),
        count=count,
    )


@dataclass
class ArchitectureResult:
    """The evaluation of one architecture; what an error prevented is ``None``.

    Attributes:
        index: Index in the split.
        name: Name of the architecture.
        num_params: Number of its parameters.
        top1: Percent of images with predicted parameters.
        top5: Likewise, among the five largest logits.
        loss: Mean cross-entropy with predicted parameters.
        finite: Whether all outputs were finite.
        random_top1: ``top1`` of the same network with its random initialisation.
        random_top5: ``top5`` likewise.
        random_loss: ``loss`` likewise.
        running_top1: ``top1`` with running statistics of training images.
        running_top5: ``top5`` likewise.
        noisy_top1: ``top1`` on images with noise.
        seconds_predict: Time of the prediction.
        seconds_evaluate: Time of the evaluation with predicted parameters.
        error: Why the architecture failed, or ``None``.
    """

    index: int
    name: str
    num_params: int | None = None
    top1: float | None = None
    top5: float | None = None
    loss: float | None = None
    finite: bool | None = None
    random_top1: float | None = None
    random_top5: float | None = None
    random_loss: float | None = None
    running_top1: float | None = None
    running_top5: float | None = None
    noisy_top1: float | None = None
    seconds_predict: float | None = None
    seconds_evaluate: float | None = None
    error: str | None = None


@dataclass
class EvaluationReport:
    """What :func:`ghn_fast.vision.evaluate_networks` found.

    Attributes:
        dataset: Name of the image data set.
        images: Which of its splits the images are from.
        num_images: Number of images.
        num_classes: Number of classes.
        image_size: Side of the images in pixels.
        batch_size: Images per batch.
        seed: Seed of the random initialisation and of the order of the images.
        records: One record per architecture.
        predicted: Summary of ``top1`` over the architectures that have one, ``None`` without any.
        predicted_top5: Likewise of ``top5``.
        random: Likewise of ``random_top1``.
        running: Likewise of ``running_top1``.
        noisy: Likewise of ``noisy_top1``.
        batch_norm: How BatchNorm layers normalised, but for ``running``.
        statistics_batches: Batches of training images behind the statistics of ``running``.
        noise: Standard deviation of the noise of ``noisy``, for pixels of 0..1.
        precision: What the networks computed in.
        ckpt: The hypernetwork that was evaluated, if the caller says so.
        split: The split of architectures, likewise.
    """

    dataset: str
    images: str
    num_images: int
    num_classes: int
    image_size: int
    batch_size: int
    seed: int
    records: list[ArchitectureResult]
    predicted: Summary | None = field(init=False)
    predicted_top5: Summary | None = field(init=False)
    random: Summary | None = field(init=False)
    running: Summary | None = field(init=False)
    noisy: Summary | None = field(init=False)
    batch_norm: str = "batch statistics"
    statistics_batches: int = 0
    noise: float = 0.0
    precision: str = "float32"
    ckpt: str | None = None
    split: str | None = None

    def __post_init__(self) -> None:
        self.predicted = _summary([r.top1 for r in self.records])
        self.predicted_top5 = _summary([r.top5 for r in self.records])
        self.random = _summary([r.random_top1 for r in self.records])
        self.running = _summary([r.running_top1 for r in self.records])
        self.noisy = _summary([r.noisy_top1 for r in self.records])

    @property
    def failed(self) -> list[ArchitectureResult]:
        """The records of architectures that could not be evaluated."""
        return [record for record in self.records if record.error is not None]

    def to_json(self, path: str | Path) -> None:
        """Write everything into a file; readers see the former file or the whole of this one.

        Numbers that are not finite become null, as JSON has no other way to say it.
        """
        write_json(path, self, indent=2)

    def json(self) -> str:
        """Everything as JSON; numbers that are not finite become null."""
        return to_json(self, indent=2)

    def histogram(self, path: str | Path) -> None:
        """Draw how top-1 accuracy is distributed, predicted beside random initialisation.

        The suffix chooses the format: .png, .svg or .pdf.

        Raises:
            ValueError: If the suffix is another, or no architecture was evaluated.
        """
        path = check_picture_name(path)
        if self.predicted is None:
            raise ValueError("there is nothing to draw: no architecture was evaluated")
        _draw(self).savefig(path, dpi=160)


def _summary(values: Sequence[float | None]) -> Summary | None:
    known = [value for value in values if value is not None]
    return summarise(known) if known else None


def _draw(report: EvaluationReport) -> Any:
    # Figure without pyplot: no global state, no display, Agg for PNG.
    require("matplotlib", "drawing", "pictures")
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    predicted = [r.top1 for r in report.records if r.top1 is not None]
    random = [r.random_top1 for r in report.records if r.random_top1 is not None]
    series = [("predicted parameters", PREDICTED_COLOUR, predicted, report.predicted)]
    if random:
        series.append(("random initialisation", RANDOM_COLOUR, random, report.random))
    high = max(predicted + random)
    width = next(w for w in (0.5, 1.0, 2.0, 2.5, 4.0) if high <= 25 * w or w == 4.0)
    edges = [i * width for i in range(math.ceil(high / width + 1e-9) + 1)]

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for label, colour, values, summary in series:
        axes.hist(
            values,
            bins=edges,
            histtype="stepfilled",
            facecolor=colour + "59",
            edgecolor=colour,
            linewidth=1.4,
            label=f"{label}: {_format(summary)}",
        )
        if summary is not None:
            axes.axvline(summary.mean, color=colour, linewidth=1.4, linestyle=(0, (4, 2)))
    chance = 100 / report.num_classes
    axes.axvline(chance, color="0.35", linewidth=1, linestyle=":", label=f"chance: {chance:.3g} %")
    axes.margins(y=0.1)
    axes.set_xlim(left=0, right=min(100.0, max(edges[-1], chance) * 1.04))
    split = "validation" if report.images == "val" else report.images
    dataset = report.dataset
    if dataset.startswith("folder:"):
        dataset = Path(dataset.removeprefix("folder:")).name or dataset
    axes.set_xlabel(f"top-1 accuracy on {report.num_images:,} {split} images of {dataset} (%)")
    axes.set_ylabel("architectures")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    plural = "" if len(predicted) == 1 else "s"
    axes.set_title(
        f"{len(predicted)} architecture{plural}, parameters predicted in one pass",
        loc="left",
        fontsize=11,
    )
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)
    return figure


def _format(summary: Summary | None) -> str:
    if summary is None:
        return "none"
    if summary.count == 1:
        return f"{summary.mean:.1f} %"
    return f"{summary.mean:.1f} ± {summary.standard_error:.1f} %"
