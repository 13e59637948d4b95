"""A picture of the trend of every timed case over the commits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from suite.results import timed

_COLUMNS, _ROWS = 5, 8


def trends(
    results: Sequence[Mapping[str, Any]],
) -> dict[str, dict[str, list[tuple[str, float]]]]:
    """List commits with seconds, in the order of results, by timed case and machine."""
    found: dict[str, dict[str, list[tuple[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        machine = result["params"]["machine"]
        for (benchmark, params), value in timed(result).items():
            name = f"{benchmark.rsplit('.', 1)[0]}\n{', '.join(params)}"
            found[name][machine].append((result["commit_hash"][:7], float(value.value or 0)))
    return {name: dict(lines) for name, lines in sorted(found.items())}


def draw_trends(results: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Draw the trends, a grid per page: trends.png, trends-2.png, ...; returns the files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = list(trends(results).items())
    order = list(dict.fromkeys(result["commit_hash"][:7] for result in results))
    pages: list[Path] = []
    for first in range(0, len(found), _COLUMNS * _ROWS):
        part = found[first : first + _COLUMNS * _ROWS]
        rows = -(-len(part) // _COLUMNS)
        figure, axes = plt.subplots(
            rows, _COLUMNS, figsize=(4 * _COLUMNS, 2.4 * rows), squeeze=False, layout="constrained"
        )
        for axis in axes.flat[len(part) :]:
            axis.axis("off")
        for axis, (name, lines) in zip(axes.flat, part, strict=False):
            for machine, points in lines.items():
                places = [order.index(commit) for commit, _ in points]
                axis.plot(places, [1e3 * s for _, s in points], "o-", ms=3, label=machine)
            axis.set_title(name, fontsize=6)
            axis.set_ylim(bottom=0)
            axis.set_ylabel("ms", fontsize=6)
            axis.set_xticks(range(len(order)), order, fontsize=5, rotation=30)
            axis.tick_params(axis="y", labelsize=6)
        axes.flat[0].legend(fontsize=5)
        number = len(pages) + 1
        path = folder / ("trends.png" if number == 1 else f"trends-{number}.png")
        figure.savefig(path, dpi=110)
        plt.close(figure)
        pages.append(path)
    return pages
