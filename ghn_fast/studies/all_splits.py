"""One table over all splits of DeepNets-1M: both BatchNorm protocols, noise, diversity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from ghn_fast.studies.diversity import WeightDiversity
from ghn_fast.studies.jobs import refuse_repeats
from ghn_fast.studies.published import CIFAR10
from ghn_fast.vision.results import ArchitectureResult, EvaluationReport, Summary, summarise

SPLITS = ("val", "test", "wide", "deep", "dense", "bnfree", "predefined")


@dataclass
class SplitRow:
    """What a split, or a network of the predefined split, gave; accuracies are top-1 %.

    Attributes:
        name: Name of the split or network.
        networks: Networks that could be evaluated.
        failed: Networks that could not.
        batch: Accuracy with batch statistics.
        running: Accuracy with running statistics of training images.
        noisy: Accuracy with batch statistics on images with noise.
        random: Accuracy of random parameters with batch statistics.
        top5: Top-5 accuracy in percent with batch statistics.
        diversity: Mean cosine distance between weights of the networks.
        seconds: Seconds for the evaluated images, forward, mean over networks.
        published: Published numbers for CIFAR-10 by method.
    """

    name: str
    networks: int
    failed: int
    batch: Summary | None = None
    running: Summary | None = None
    noisy: Summary | None = None
    random: Summary | None = None
    top5: Summary | None = None
    diversity: float | None = None
    seconds: float | None = None
    published: dict[str, float | None] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


Evaluate = Callable[
    [str, Callable[[nn.Module, ArchitectureResult], None]],
    EvaluationReport,
]


def evaluate_splits(
    evaluate: Evaluate,
    splits: Sequence[str] = SPLITS,
    on_split: Callable[[list[SplitRow]], None] | None = None,
) -> list[SplitRow]:
    """Evaluate all splits and put them into rows.

    Args:
        evaluate: Called with the name of a split and a function that it calls with each predicted
            network; returns the report.
        splits: The splits.
        on_split: Called with the rows so far after each split.

    Raises:
        ValueError: If a split comes twice.
    """
    refuse_repeats(splits=splits)
    rows: list[SplitRow] = []
    for split in splits:
        diversity = WeightDiversity()
        report = evaluate(split, lambda model, record, d=diversity: d.add(model))  # type: ignore[misc]
        if split == "predefined":
            rows += [_row(r.name, [r], None) for r in report.records]
        else:
            rows.append(_row(split, report.records, diversity.distance))
        if on_split is not None:
            on_split(rows)
    return rows


def _row(name: str, records: Sequence[ArchitectureResult], diversity: float | None) -> SplitRow:
    good = [record for record in records if record.error is None]

    def summary(values: list[float | None]) -> Summary | None:
        known = [value for value in values if value is not None]
        return summarise(known) if known else None

    seconds = summary([r.seconds_evaluate for r in good])
    return SplitRow(
        name,
        len(good),
        len(records) - len(good),
        batch=summary([r.top1 for r in good]),
        running=summary([r.running_top1 for r in good]),
        noisy=summary([r.noisy_top1 for r in good]),
        random=summary([r.random_top1 for r in good]),
        top5=summary([r.top5 for r in good]),
        diversity=diversity,
        seconds=None if seconds is None else seconds.mean,
        published=CIFAR10.get(name),
    )
