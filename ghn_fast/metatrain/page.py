"""A run as a self-contained HTML page: curves, evaluations, skipped architectures, settings."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from ghn_fast.metatrain.metrics import (
    EVALUATIONS_FILE,
    METRICS_FILE,
    SKIPPED_FILE,
    read_metrics,
)
from ghn_fast.utils.files import write_atomically
from ghn_fast.utils.json_lines import read_lines

REPORT_FILE = "report.html"

# Points of a curve: steps are grouped into that many, and each group shown by its median, because
# one architecture with a huge loss can dominate a mean.
_POINTS = 400
_WIDTH, _HEIGHT = 640, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 34
_COLOUR = "#0072B2"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1360px; padding: 0 1rem;
       color: #222; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin: 1.6rem 0 .4rem; }
figure { display: inline-block; margin: 0 1rem 1rem 0; } figcaption { font-weight: 600; }
table { border-collapse: collapse; } td, th { padding: .1rem .8rem .1rem 0; text-align: left;
        vertical-align: top; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
svg text { font: 12px system-ui, sans-serif; fill: #555; }
"""


class Point(NamedTuple):
    """A point of a curve."""

    x: float
    y: float


def write_report(run: Path) -> Path:
    """Write RUN/report.html, which needs no other file and no network.

    Returns:
        The file.

    Raises:
        FileNotFoundError: If ``run`` holds no metrics.
    """
    metrics = read_metrics(run)
    if not metrics:
        raise FileNotFoundError(f"{run}: no {METRICS_FILE} with steps, so there is nothing to show")
    settings = _settings(run)
    evaluations = read_lines(run / EVALUATIONS_FILE)
    skipped = read_lines(run / SKIPPED_FILE)
    parts = [
        f"<h1>{escape(str(run.resolve().name))}</h1>",
        _table(_summary(metrics, evaluations, settings), number=False),
        "<h2>Training</h2>",
        *(_curve(metrics, name, title) for name, title in _CURVES),
        *_evaluation_part(evaluations),
        *_skipped_part(skipped),
        "<h2>Settings</h2>",
        _table([(name, json.dumps(value)) for name, value in settings.items()], number=False),
    ]
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(run.resolve().name)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )
    path = run / REPORT_FILE
    write_atomically(path, page)
    return path


_CURVES = (
    ("loss", "loss"),
    ("top1", "training top-1, %"),
    ("lr", "learning rate"),
    ("seconds", "seconds a step"),
)


def svg_curve(points: Sequence[Point], *, dots: bool = False) -> str:
    """A curve with axes as an SVG element; dots mark single measurements.

    Points that are not finite are left out, and interrupt the curve.
    """
    finite = [p for p in points if math.isfinite(p.x) and math.isfinite(p.y)]
    if not finite:
        return "<p>no finite values</p>"
    xs, ys = _ticks([p.x for p in finite], whole=True), _ticks([p.y for p in finite])
    across = _scale(min(p.x for p in finite), max(p.x for p in finite), _LEFT, _WIDTH - _RIGHT)
    low, high = min(ys[0], *(p.y for p in finite)), max(ys[-1], *(p.y for p in finite))
    up = _scale(low, high, _HEIGHT - _BOTTOM, _TOP)
    parts = []
    for value in ys:
        y = up(value)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>'
        )
    for value in xs:
        if finite[0].x <= value <= finite[-1].x:
            parts.append(
                f'<text x="{across(value):.1f}" y="{_HEIGHT - 14}" text-anchor="middle">'
                f"{_number(value)}</text>"
            )
    runs: list[list[Point]] = [[]]
    for point in points:
        if math.isfinite(point.y):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    for part in filter(None, runs):
        path = " ".join(f"{across(p.x):.1f},{up(p.y):.1f}" for p in part)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{_COLOUR}"/>')
    if dots or len(finite) == 1:
        parts += [
            f'<circle cx="{across(p.x):.1f}" cy="{up(p.y):.1f}" r="3" fill="{_COLOUR}"/>'
            for p in finite
        ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}">{"".join(parts)}</svg>'
    )


def thin(points: Sequence[Point], count: int = _POINTS) -> list[Point]:
    """At most ``count`` points: the medians of groups of neighbours; all points if they are few."""
    if len(points) <= count:
        return list(points)
    size = -(-len(points) // count)
    result = []
    for start in range(0, len(points), size):
        group = points[start : start + size]
        values = [p.y for p in group if math.isfinite(p.y)]
        y = statistics.median(values) if values else math.nan
        result.append(Point(statistics.fmean(p.x for p in group), y))
    return result


def _curve(lines: Sequence[dict[str, Any]], name: str, title: str, *, dots: bool = False) -> str:
    points = [
        Point(line["step"], math.nan if line.get(name) is None else float(line[name]))
        for line in lines
    ]
    size = -(-len(points) // _POINTS)
    note = f", median of {size} steps" if size > 1 and not dots else ""
    drawn = svg_curve(points if dots else thin(points), dots=dots)
    return f"<figure><figcaption>{escape(title)}{note}</figcaption>{drawn}</figure>"


def _summary(
    metrics: Sequence[dict[str, Any]],
    evaluations: Sequence[dict[str, Any]],
    settings: dict[str, Any],
) -> list[tuple[str, str]]:
    last = metrics[-max(len(metrics) // 20, 1) :]
    seconds = sum(float(line.get("seconds") or 0) for line in metrics)
    skipped = sum(int(line.get("skipped") or 0) for line in metrics)
    rows = [("steps", f"{metrics[-1]['step']:,}")]
    if settings.get("steps"):
        rows[0] = ("steps", f"{metrics[-1]['step']:,} of {settings['steps']:,}")
    rows += [
        ("hours in steps", f"{seconds / 3600:.2f}"),
        ("skipped architectures", f"{skipped:,}"),
    ]
    for entry, title in (("loss", "loss"), ("top1", "training top-1, %")):
        values = [float(line[entry]) for line in last if line.get(entry) is not None]
        if values:
            name = f"{title}, median of the last {len(last)}"
            rows.append((name, _number(statistics.median(values))))
    if evaluations and evaluations[-1].get("top1") is not None:
        found = evaluations[-1]
        rows.append((f"validation top-1 at step {found['step']:,}, %", _number(found["top1"])))
    return rows


def _evaluation_part(evaluations: Sequence[dict[str, Any]]) -> list[str]:
    if not evaluations:
        return []
    return [
        "<h2>Evaluation on validation architectures and images</h2>",
        _curve(evaluations, "top1", "average top-1, %", dots=True),
        _curve(evaluations, "best", "best top-1, %", dots=True),
    ]


def _skipped_part(skipped: Sequence[dict[str, Any]]) -> list[str]:
    if not skipped:
        return []
    reasons = Counter(str(line.get("reason")) for line in skipped)
    latest = [
        (f"step {line['step']}, {line.get('name')}", str(line.get("reason")))
        for line in skipped[-20:]
    ]
    return [
        "<h2>Skipped architectures</h2>",
        _table([(reason, str(count)) for reason, count in reasons.most_common()]),
        f"<p>The latest {len(latest)}:</p>",
        _table(latest, number=False),
    ]


def _settings(run: Path) -> dict[str, Any]:
    try:
        values = json.loads((run / "train.json").read_text())
    except (OSError, json.JSONDecodeError):
        return {}
    return values if isinstance(values, dict) else {}


def _table(rows: Sequence[tuple[str, str]], *, number: bool = True) -> str:
    kind = ' class="number"' if number else ""
    cells = "".join(
        f"<tr><th>{escape(name)}</th><td{kind}>{escape(value)}</td></tr>" for name, value in rows
    )
    return f"<table>{cells}</table>"


def _scale(low: float, high: float, start: float, end: float) -> Any:
    span = high - low or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _ticks(values: Sequence[float], *, whole: bool = False) -> list[float]:
    """Round numbers that cover the values."""
    low, high = min(values), max(values)
    if low == high:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw)
    if whole:
        step = max(step, 1.0)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [step * k for k in range(first, last + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
