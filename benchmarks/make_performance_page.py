"""Write docs/performance.md and its picture from the results that lie in benchmarks/results.

    python benchmarks/make_performance_page.py [--results benchmarks/results] [--out docs]

Nothing in the page is typed: times come from the newest asv results of every machine, the achieved
parts from the newest roofline report of every machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measure import ROOT
from suite.results import Value, read_results, timed

PAGE, PICTURE = "performance.md", "performance.png"
INTRODUCTION = """# Performance

Made by `make bench-docs` from the results in `benchmarks/results`; changes by hand are overwritten.
Times are medians of one call with the quartiles of at least five samples, of processor time with
one thread on a CPU and between two events of the stream on a GPU. How to measure, compare two
revisions and read the site with all trends: [benchmarks](../benchmarks/README.md).
"""
ROOFLINE = """The least time of an op is that of its bytes at the bandwidth of a copy, or of its
operations at the rate of a float32 matrix product, whichever is longer; what is counted is said
in `benchmarks/suite/roofline.py`. Inputs and outputs count once; what stays in caches is free,
so that a small case, whose data lies in a cache, can come nearer than a large one. The allocator
keeps its memory between calls."""


def newest(results: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Find the last result of every machine that has times."""
    found: dict[str, Mapping[str, Any]] = {}
    for result in results:
        if timed(result):
            found[result["params"]["machine"]] = result
    return found


def duration(seconds: float) -> str:
    """Write a duration with a unit and three digits."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1 or unit == "µs":
            return f"{seconds * factor:.3g} {unit}"
    raise AssertionError


def about(params: Mapping[str, str], commit: str) -> str:
    """Say what a table was measured with."""
    parts = [params.get("cpu", ""), f"GPU: {params['gpu']}", f"torch {params['torch']}"]
    python = params["python"].removeprefix("python")
    return ", ".join([*filter(None, parts), f"Python {python}", f"commit `{commit[:7]}`"])


def times_table(result: Mapping[str, Any]) -> list[str]:
    """Write the rows of all timed cases of a result."""
    lines = [
        "| path | back end, device | hid | graph | meta-batch | dtype | time | quartiles |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (benchmark, params), value in sorted(timed(result).items()):
        name = benchmark.split(".")[-2]
        low, high = duration(value.low), duration(value.high)
        lines.append(
            f"| {name} | {' | '.join(params)} | {duration(float(value.value or 0))} | "
            f"{low} to {high} |"
        )
    return lines


def roofline_section(report: Mapping[str, Any]) -> list[str]:
    """Write ceilings and achieved parts of one machine."""
    facts = report["about"]
    lines = [
        f"{facts['cpu']}, GPU: {facts['gpu']}, torch {facts['torch']}, commit `{facts['commit']}`.",
        "",
        "| device | fill | copy (read and write) | matrix product |",
        "|---|---|---|---|",
    ]
    for device, limits in report["ceilings"].items():
        lines.append(
            f"| {device} | {limits['fill'] / 1e9:.1f} GB/s | {limits['copy'] / 1e9:.1f} GB/s | "
            f"{limits['flops'] / 1e9:.0f} GFLOP/s |"
        )
    lines += ["", "| case | bytes | operations | time | least time | bound by | achieved |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, case in report["cases"].items():
        lines.append(
            f"| `{name}` | {case['bytes'] / 1e6:.3g} MB | {case['flops'] / 1e6:.3g} M | "
            f"{duration(case['seconds'])} | {duration(case['least_seconds'])} | {case['bound']} | "
            f"{100 * case['achieved']:.0f} % |"
        )
    return lines


def draw(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw times of all cases, a column of bars per machine."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names: list[tuple[str, tuple[str, ...]]] = sorted(
        {k for r in results.values() for k in timed(r)}
    )
    figure, axis = plt.subplots(figsize=(9, 1.2 + 0.17 * len(names)), layout="constrained")
    height = 0.8 / max(len(results), 1)
    for number, (machine, result) in enumerate(results.items()):
        found: dict[tuple[str, tuple[str, ...]], Value] = timed(result)
        places = [i + number * height for i, name in enumerate(names) if name in found]
        widths = [1e3 * float(found[name].value or 0) for name in names if name in found]
        axis.barh(places, widths, height, label=machine)
    labels = [f"{name.split('.')[-2]}  {', '.join(params)}" for name, params in names]
    axis.set_yticks(range(len(names)), labels, fontsize=6)
    axis.invert_yaxis()
    axis.margins(y=0.01)
    axis.set_xscale("log")
    axis.set_xlabel("milliseconds per call")
    axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize=7, loc="lower right")
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


def page(results: Mapping[str, Mapping[str, Any]], rooflines: Sequence[Mapping[str, Any]]) -> str:
    """Write the text of the page."""
    lines = [INTRODUCTION]
    if results:
        lines += ["## Times", "", f"![Times of all cases]({PICTURE})", ""]
    for machine, result in results.items():
        lines += [f"### {machine}", "", about(result["params"], result["commit_hash"]), ""]
        lines += [*times_table(result), ""]
    if rooflines:
        lines += ["## Roofline", "", ROOFLINE, ""]
    for report in rooflines:
        lines += [*roofline_section(report), ""]
    return "\n".join(lines).rstrip() + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args(argv)
    results = newest(read_results(arguments.results / "asv"))
    rooflines = [
        json.loads(p.read_text()) for p in sorted(arguments.results.glob("roofline-*.json"))
    ]
    if not results and not rooflines:
        print(f"there are no results in {arguments.results}", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / PAGE).write_text(page(results, rooflines))
    if results:
        draw(results, arguments.out / PICTURE)
    print(f"Wrote {arguments.out / PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
