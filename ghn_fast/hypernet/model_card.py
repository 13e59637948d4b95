"""Model cards of hypernetworks, written from the files of the run that made them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ghn_fast._version import __version__
from ghn_fast.hypernet.config import GHNConfig
from ghn_fast.utils.json_lines import read_lines

CARD_FILE = "README.md"
# Settings of a run that a reader of the card asks for first, in this order.
_SETTINGS = (
    *("dataset", "image_size", "deepnets", "meta_batch", "batch_size", "steps", "epochs"),
    *("lr", "weight_decay", "schedule", "precision", "seed", "init"),
)
# Steps over which the last metrics are averaged: single steps draw other architectures.
_LAST_STEPS = 100


@dataclass
class RunResults:
    """What the files of a run say.

    Attributes:
        settings: All settings of the training, empty if they are not known.
        metrics: ``step`` of the last line of ``metrics.jsonl``; ``loss`` and ``top1`` as the mean
            of the lines of the last steps.
        evaluations: Lines of ``evaluations.jsonl``.
        reports: What ``ghn-fast evaluate`` wrote: one dict for each split.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)


def read_results(run: Path | None = None, reports: Iterable[Path] = ()) -> RunResults:
    """Read what a run and evaluations of its hypernetwork wrote.

    Args:
        run: Folder of the run; what it does not hold is left out.
        reports: JSON files of ``ghn-fast evaluate``, or folders of them.

    Raises:
        ValueError: If a file is not what it is called; the message names it.
    """
    results = RunResults()
    if run is not None and (run / "train.json").is_file():
        results.settings = _object(run / "train.json")
    if run is not None:
        lines = read_lines(run / "metrics.jsonl")
        if lines:
            results.metrics = {"step": lines[-1].get("step", len(lines))}
            for name in ("loss", "top1"):
                values = [v[name] for v in lines[-_LAST_STEPS:] if v.get(name) is not None]
                if values:
                    results.metrics[name] = sum(values) / len(values)
        results.evaluations = read_lines(run / "evaluations.jsonl")
    for path in reports:
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        found = [_object(file) for file in files]
        kept = [report for report in found if "records" in report and "predicted" in report]
        # A folder may hold other JSON; a file that was named has to be a report.
        if not path.is_dir() and not kept:
            raise ValueError(
                f"{path}: has {', '.join(sorted(found[0])[:5]) or 'nothing'}, needs 'records' and "
                "'predicted', as a report of ghn-fast evaluate"
            )
        results.reports += kept
    return results


def model_card(
    config: GHNConfig,
    results: RunResults,
    *,
    name: str = "owner/name",
    parameters: int | None = None,
    license: str | None = None,
) -> str:
    """The card: YAML for the Hub's index, then Markdown for people.

    Args:
        config: Configuration of the hypernetwork.
        results: What is known of its training and accuracy; nothing else is claimed.
        name: Its name on the Hub, as ``from_pretrained`` takes it.
        parameters: Number of its own parameters.
        license: Identifier of the licence of the weights; left out if not given.
    """
    dataset = results.settings.get("dataset")
    meta: dict[str, Any] = {
        "library_name": "ghn_fast",
        "tags": ["ghn_fast", "graph-hypernetwork", "parameter-prediction"],
    }
    if license is not None:
        meta["license"] = license
    if results.reports:
        meta["model-index"] = [{"name": name, "results": [_indexed(r) for r in results.reports]}]
    lines = ["---", _yaml(meta).rstrip(), "---", "", f"# {name.rpartition('/')[2]}", ""]
    size = "" if parameters is None else f" of {parameters / 1e6:.2f} M parameters"
    lines += [
        f"A graph hypernetwork{size}: it reads the computational graph of a network and predicts "
        f"all parameters of it in one forward pass. It predicts classifiers of "
        f"{config.num_classes} classes"
        + (f" and was meta-trained on `{dataset}`." if dataset else "."),
        "",
        "```python",
        "import ghn_fast, torchvision",
        "",
        f'ghn = ghn_fast.from_pretrained("{name}")',
        f"model = ghn(torchvision.models.resnet50(num_classes={config.num_classes}))",
        "```",
        "",
    ]
    lines += _accuracy(results)
    lines += _training(results)
    lines += ["## Configuration", "", "| field | value |", "|---|---|"]
    lines += [f"| `{field}` | {value} |" for field, value in config.to_dict().items()]
    lines += [
        "",
        "BatchNorm statistics are not predicted: predicted networks use those of each batch. "
        f"Written by ghn_fast {__version__}.",
        "",
    ]
    return "\n".join(lines)


def _accuracy(results: RunResults) -> list[str]:
    if not results.reports and not results.evaluations:
        return []
    lines = ["## Accuracy of predicted networks", ""]
    if results.reports:
        lines += [
            "| architectures | images | networks | top-1 % | best | random initialisation |",
            "|---|---|---|---|---|---|",
        ]
    for report in results.reports:
        found, random = report["predicted"] or {}, report.get("random") or {}
        lines.append(
            f"| {report.get('split') or ''} | {report['num_images']} {report['images']} images of "
            f"{report['dataset']} | {found.get('count', 0)} | {_plus_minus(found)} | "
            f"{_number(found.get('best'))} | {_plus_minus(random)} |"
        )
    if results.reports:
        protocol = results.reports[0].get("batch_norm", "batch statistics")
        lines += ["", f"Mean ± standard error over networks. BatchNorm: {protocol}.", ""]
    if results.evaluations:
        last = results.evaluations[-1]
        numbers = ", ".join(
            f"{name} {_number(value)}"
            for name, value in last.items()
            if name != "step" and isinstance(value, int | float)
        )
        lines += [f"Validation in training, step {last['step']}: {numbers}.", ""]
    return lines


def _training(results: RunResults) -> list[str]:
    if not results.settings and not results.metrics:
        return []
    lines = ["## Training", ""]
    given = [n for n in _SETTINGS if results.settings.get(n) is not None]
    if given:
        lines += ["| setting | value |", "|---|---|"]
        lines += [f"| `{name}` | {results.settings[name]} |" for name in given]
        lines.append("")
    if results.metrics:
        ends = [f"{n} {_number(v)}" for n, v in results.metrics.items() if n != "step"]
        lines += [
            f"{results.metrics['step']:.0f} steps; mean of the last {_LAST_STEPS}: "
            f"{', '.join(ends)}.",
            "",
        ]
    return lines


def _indexed(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report as the index of the Hub has it."""
    found = report["predicted"] or {}
    split = report.get("split") or "networks"
    return {
        "task": {"type": "image-classification", "name": f"parameter prediction, {split}"},
        "dataset": {"name": report["dataset"], "type": report["dataset"]},
        "metrics": [{"type": "accuracy", "name": "top-1 %", "value": found.get("mean")}],
    }


def _plus_minus(summary: Mapping[str, Any]) -> str:
    if summary.get("mean") is None:
        return ""
    error = summary.get("standard_error")
    return f"{summary['mean']:.1f}" + ("" if error is None else f" ± {error:.1f}")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _yaml(values: dict[str, Any]) -> str:
    import yaml

    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text


def _object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a file of JSON that can be read: {error}") from error
    return values if isinstance(values, dict) else {}
