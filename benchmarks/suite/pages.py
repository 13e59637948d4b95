"""docs/performance.md, its picture and README's table of speed, written from one results file."""

from __future__ import annotations

import re
import statistics
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from suite.machine import ROOT
from suite.outputs import duration

PAGE, PICTURE = "performance.md", "performance.png"
BEGIN, END = "<!-- speed: make bench-docs -->", "<!-- /speed -->"
INTRODUCTION = (
    "Made by `make bench-docs RESULTS=FILE` from one file of `make bench-measure`; changes by hand "
    "are overwritten. It holds the cases of that file. {times} A ratio is that of neighbouring "
    "samples. How to measure, compare two revisions and read the trends: "
    "[benchmarks](../benchmarks/README.md)."
)
CLOCKS = {
    "cpu": "of processor time with one thread on a CPU",
    "cuda": "between two events of the stream on a GPU",
}
LATENCY = "Percentiles are of single calls on the clock on the wall."
ROOFLINE = """The least time of an op is that of its bytes at the bandwidth of a copy, or of its
operations at the rate of a float32 matrix product, whichever is longer; what is counted is said
in `benchmarks/suite/roofline.py`. Inputs and outputs count once; what stays in caches is free,
so that a small case, whose data lies in a cache, can come nearer than a large one. The allocator
keeps its memory between calls."""
Cases = Mapping[str, Mapping[str, Any]]


def about(report: Mapping[str, Any]) -> str:
    """Say what a file was measured with."""
    facts = report["about"]
    return (
        f"{facts['cpu']}, GPU: {facts['gpu']}, torch {facts['torch']}, Python {facts['python']}, "
        f"commit `{facts['commit']}`"
    )


def introduction(cases: Cases) -> str:
    """Say how the times of a file were taken; devices and percentiles that it lacks are not named.

    A name of a case has its device behind its back end.
    """
    clocks = [text for device, text in CLOCKS.items() if any(f", {device}, " in n for n in cases)]
    clock = f", {' and '.join(clocks)}" if clocks else ""
    times = f"Times are medians of one call with the quartiles{clock}."
    if any("latency" in case for case in cases.values()):
        times += f" {LATENCY}"
    return textwrap.fill(INTRODUCTION.format(times=times), 100, break_on_hyphens=False)


def page(report: Mapping[str, Any]) -> str:
    """Write the text of docs/performance.md."""
    cases: Cases = report["cases"]
    lines = ["# Performance", "", introduction(cases), "", about(report) + ".", ""]
    lines += [f"![Times of the cases]({PICTURE})", ""]
    lines += [
        "## Times",
        "",
        "| case | time | quartiles | against | ratio |",
        "|---|---|---|---|---|",
    ]
    for name, case in cases.items():
        if "error" in case:
            lines.append(f"| `{name}` | failed: {case['error']} | | | |")
            continue
        times, peer = case["seconds"], case.get("peer")
        against = ["", ""]
        if peer is not None:
            ratio = peer["ratio"]
            against = [
                "reference" if "(reference" in peer["case"] else "straightforward",
                f"{ratio['median']:.1f} ({ratio['least']:.1f} to {ratio['most']:.1f})",
            ]
        lines.append(
            f"| `{name}` | {duration(times['median'])} | {duration(times['low'])} to "
            f"{duration(times['high'])} | {' | '.join(against)} |"
        )
    late = {name: case["latency"] for name, case in cases.items() if "latency" in case}
    if late:
        names = list(next(iter(late.values())))
        lines += [
            "",
            "## Latency",
            "",
            f"| case | {' | '.join(names)} |",
            "|---" * (len(names) + 1) + "|",
        ]
        for name, found in late.items():
            lines.append(f"| `{name}` | {' | '.join(duration(found[n]) for n in names)} |")
    lines += roofline_section(report)
    return "\n".join(lines).rstrip() + "\n"


def roofline_section(report: Mapping[str, Any]) -> list[str]:
    """Write ceilings and achieved parts."""
    found = {n: c for n, c in report["cases"].items() if "roofline" in c}
    if not found:
        return []
    lines = ["", "## Roofline", "", ROOFLINE, ""]
    lines += ["| device | fill | copy (read and write) | matrix product |", "|---|---|---|---|"]
    for device, limits in report["ceilings"].items():
        lines.append(
            f"| {device} | {limits['fill'] / 1e9:.1f} GB/s | {limits['copy'] / 1e9:.1f} GB/s | "
            f"{limits['flops'] / 1e9:.0f} GFLOP/s |"
        )
    lines += ["", "| case | bytes | operations | time | least time | bound by | achieved |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, case in found.items():
        roof = case["roofline"]
        lines.append(
            f"| `{name}` | {roof['bytes'] / 1e6:.3g} MB | {roof['flops'] / 1e6:.3g} M | "
            f"{duration(case['seconds']['median'])} | {duration(roof['least_seconds'])} | "
            f"{roof['bound']} | {100 * roof['achieved']:.0f} % |"
        )
    return lines


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Draw the times of all cases."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = {n: c["seconds"] for n, c in report["cases"].items() if "seconds" in c}
    figure, axis = plt.subplots(figsize=(9, 1.2 + 0.17 * len(found)), layout="constrained")
    places = range(len(found))
    axis.barh(places, [1e3 * times["median"] for times in found.values()], label=report["machine"])
    axis.set_yticks(places, list(found), fontsize=6)
    axis.invert_yaxis()
    axis.margins(y=0.01)
    axis.set_xscale("log")
    axis.set_xlabel("milliseconds per call")
    axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize=7, loc="lower right")
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


def _ratio(cases: Cases, name: str) -> float | None:
    peer = cases.get(name, {}).get("peer")
    return float(peer["ratio"]["median"]) if peer is not None else None


def _prediction(path: str) -> Callable[[Cases], str | None]:
    def row(cases: Cases) -> str | None:
        found = [
            (r, name) for name in cases if name.startswith(f"{path}.call(auto, cpu")
            if (r := _ratio(cases, name)) is not None
        ]  # fmt: skip
        if not found:
            return None
        ratios = [ratio for ratio, _ in found]
        mean = statistics.geometric_mean(ratios)
        ends = f"{min(ratios):.1f} to {max(ratios):.1f}"
        return f"{mean:.1f} times ({ends}), geometric mean of {len(found)} networks"

    return row


def _message_passing(cases: Cases) -> str | None:
    parts = []
    for part in ("forward", "backward"):
        for graph, shown in (("resnet50 x 1", "ResNet-50"), ("train x 8", "8 training graphs")):
            ratio = _ratio(cases, f"gated_gnn.{part}(cpu, cpu, hid=32, {graph}, float32)")
            if ratio is not None:
                parts.append(f"{part} of {shown} {ratio:.0f}")
    return f"{', '.join(parts)} times" if parts else None


def _expansion(cases: Cases) -> str | None:
    case = cases.get("expand_params.forward(cpu, cpu, hid=32, resnet50 x 1, float32)", {})
    return f"{100 * case['roofline']['achieved']:.0f} %" if "roofline" in case else None


def _distances(cases: Cases) -> str | None:
    name = "shortest_distances.call(cpu, cpu, hid=32, deep x 1, float32)"
    ratio = _ratio(cases, name)
    return ratio and f"{ratio:.0f} times, {duration(cases[name]['seconds']['median'])}"  # type: ignore[return-value]


def _step(cases: Cases) -> str | None:
    ratio = _ratio(cases, "meta_step.call(auto, cpu, hid=32, fresh x 8, float32)")
    return f"{ratio:.1f} times" if ratio is not None else None


def _memory(cases: Cases) -> str | None:
    case = cases.get("predict_large.call(auto, cpu, hid=32, stack x 1, float32)", {})
    if "memory" not in case:
        return None
    percent = 100 * case["memory"]["part"]
    return f"{percent:.2f} %" if percent >= 0.01 else "under 0.01 %"


def _million(cases: Cases) -> str | None:
    case = cases.get("generator.file(auto, cpu, hid=32, train x 1, float32)", {})
    if "seconds" not in case:
        return None
    from suite.setups import FILE_COUNT

    return f"{1e6 / FILE_COUNT * case['seconds']['median'] / 2:.0f} s of two processors"


def _latency(cases: Cases) -> str | None:
    parts = []
    for path, shown in (("predict_cold", "not seen"), ("predict_warm", "known")):
        found = cases.get(f"{path}.call(auto, cpu, hid=32, resnet50 x 1, float32)", {}).get(
            "latency"
        )
        if found:
            parts.append(f"{shown} {duration(found['p50'])}, {duration(found['p99'])}")
    return "; ".join(parts) or None


# What README says: what, against what, and how its result is read from the cases.
ROWS: tuple[tuple[str, str, Callable[[Cases], str | None]], ...] = (
    ("gated GNN", "node-by-node loop", _message_passing),
    ("all parameters of ResNet-50 from decoded blocks", "bandwidth of a copy", _expansion),
    ("shortest-path distances of a deep network", "reference in Python", _distances),
    ("prediction, structure not seen before", "straightforward implementation",
     _prediction("predict_cold")),
    ("the same, structure known", "straightforward implementation", _prediction("predict_warm")),
    ("latency of prediction, ResNet-50: median, 99 %", "", _latency),
    ("memory on top of a network of 0.27 billion parameters", "its size", _memory),
    ("meta-training step, 8 architectures that were not seen, 8 images", "straightforward loop",
     _step),
    ("a million training architectures", "", _million),
)  # fmt: skip


def speed_table(report: Mapping[str, Any]) -> str:
    """Write README's table."""
    lines = [
        BEGIN,
        f"One thread, float32; {about(report)}; ratios of neighbouring samples, medians:",
        "",
        "| what | against | result |",
        "|---|---|---|",
    ]
    for what, against, read in ROWS:
        result = read(report["cases"])
        if result is not None:
            lines.append(f"| {what} | {against} | {result} |")
    return "\n".join([*lines, END])


def write_pages(report: Mapping[str, Any], root: Path = ROOT) -> list[Path]:
    """Write the page, its picture and README's table.

    Raises:
        ValueError: If README has no place for the table.
    """
    readme = root / "README.md"
    text, count = re.subn(
        f"{re.escape(BEGIN)}.*?{re.escape(END)}",
        lambda _: speed_table(report),
        readme.read_text(),
        flags=re.DOTALL,
    )
    if count != 1:
        raise ValueError(f"{readme} has {count} places between {BEGIN} and {END}, needs one")
    docs = root / "docs"
    (docs / PAGE).write_text(page(report))
    draw(report, docs / PICTURE)
    readme.write_text(text)
    return [docs / PAGE, docs / PICTURE, readme]
