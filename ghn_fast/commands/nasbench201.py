"""``nasbench201``: rank the cells of NAS-Bench-201 from a few labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ghn_fast.commands.common import (
    INTERRUPTED,
    DataRoot,
    Dataset,
    check_out,
    make_progress,
    picture,
)
from ghn_fast.commands.output import UnfinishedError, print_table, say, say_written
from ghn_fast.utils.optional import require

if TYPE_CHECKING:
    from rich.table import Table

    from ghn_fast.studies.cell_bench import BenchRow, ZeroShot


def nasbench201(
    tables: Annotated[
        Path,
        typer.Argument(
            help="Folder with accuracy.csv, and perhaps zero_cost_proxies.csv, hardware.csv and "
            "robustness.csv (also .xz or .gz).",
            show_default=False,
        ),
    ],
    ckpt: Annotated[str, typer.Option("--ckpt", help="The hypernetwork.")] = "ghn2-digits",
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            help="accuracy, or a column of the other tables (edgegpu_latency, ...); repeatable.  "
            "[default: accuracy]",
        ),
    ] = None,
    labels: Annotated[
        list[int] | None,
        typer.Option("--labels", min=8, help="Labelled cells; repeatable.  [default: 500 and 128]"),
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="Draws of labelled cells.")] = 8,
    repeats: Annotated[int, typer.Option(min=1, help="Cells of a stage that are embedded.")] = 1,
    predicted: Annotated[
        int,
        typer.Option(
            min=0, help="Cells that are also ranked by the accuracy of predicted networks; 0: none."
        ),
    ] = 0,
    dataset: Dataset = "digits",
    data_root: DataRoot = None,
    workers: Annotated[int, typer.Option(min=1, help="Threads that embed.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    out: Annotated[Path, typer.Option("--out", help="Folder for results.")] = Path("nasbench201"),
) -> dict[str, Any]:
    """Rank all cells of NAS-Bench-201 from a few labelled ones: embeddings, counts, proxies.

    The table has Kendall's tau on all other cells, mean ± standard deviation over draws, and in
    brackets tau inside the best tenth. Writes OUT/nasbench201.json and OUT/nasbench201.png. Ctrl-C
    keeps the targets, numbers of labels and predicted cells that are done.
    """
    from ghn_fast.hypernet import from_pretrained
    from ghn_fast.studies.cell_bench import bench_cells, embed_cells, read_cell_tables, zero_shot
    from ghn_fast.utils.json_files import write_json
    from ghn_fast.utils.signals import stop_requests
    from ghn_fast.vision import load_images

    check_out(out)
    known = read_cell_tables(tables)
    targets = target or ["accuracy"]
    for name in targets:
        if name not in known.targets:
            raise ValueError(f"target: got {name!r}, needs one of {', '.join(known.targets)}")
    counts = labels or [500, 128]
    if max(counts) > len(known.cells) - 20:
        raise ValueError(f"labels: got {max(counts)}, but there are {len(known.cells)} cells")
    ghn = from_pretrained(ckpt)
    splits = load_images(dataset, data_root) if predicted else None
    rows: list[BenchRow] = []
    shots: list[ZeroShot] = []
    interrupted = False
    with make_progress() as progress:
        task = progress.add_task("embedding", total=len(known.cells), info="")
        embeddings = embed_cells(
            ghn,
            known.cells,
            repeats=repeats,
            workers=workers,
            on_batch=lambda done: progress.update(task, completed=done),
        )
        parts = [(name, count) for name in targets for count in counts]
        task = progress.add_task("regressions", total=None, info="")
        try:
            for place, (name, count) in enumerate(parts):

                def on_fit(done: int, total: int, place: int = place) -> None:
                    whole = total * len(parts)
                    progress.update(task, completed=place * total + done, total=whole)

                rows += bench_cells(
                    known,
                    embeddings,
                    targets=[name],
                    labels=[count],
                    draws=draws,
                    seed=seed,
                    on_fit=on_fit,
                )
            if splits is not None:
                task = progress.add_task("predicted networks", total=predicted, info="")
                with stop_requests() as stop:
                    shots += zero_shot(
                        ghn,
                        known,
                        splits,
                        predicted,
                        targets=targets,
                        repeats=repeats,
                        seed=seed,
                        stop=stop,
                        on_cell=lambda done: progress.update(task, completed=done),
                    )
                    interrupted = stop.is_set()
        except KeyboardInterrupt:
            interrupted = True
    result = {
        "ckpt": ckpt,
        "cells": len(known.cells),
        "embedding_seconds": embeddings.seconds,
        "rows": [row.to_dict() for row in rows],
        "zero_shot": shots,
    }
    for shot in shots:
        say(
            f"predicted networks, no labels: tau {shot.tau:.3f} for {shot.target} over "
            f"{shot.cells} cells, {shot.dataset}"
        )
    say(f"{len(known.cells)} cells embedded in {embeddings.seconds:.1f} s")
    if rows:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "nasbench201.json", result)
        drawn = picture(draw_bench, rows, out / "nasbench201.png")
        print_table(bench_table(rows))
        say_written([out / "nasbench201.json", *drawn])
    if interrupted:
        typer.echo(f"interrupted after {len(rows)} rows", err=True)
        raise UnfinishedError(result, INTERRUPTED)
    return result


def bench_table(rows: list[BenchRow]) -> Table:
    """Kendall's tau: a row for each method, a column for each target and number of labels."""
    from rich.table import Table

    from ghn_fast.studies.cell_bench import PUBLISHED
    from ghn_fast.studies.curves import plus_minus

    table = Table(title="Kendall's tau on all other cells (inside the best tenth)")
    table.add_column("method")
    columns = list(dict.fromkeys((row.target, row.labels) for row in rows))
    for target, labels in columns:
        table.add_column(f"{target}, {labels}", justify="right")
    cells = {
        (row.method, row.target, row.labels): (
            f"{plus_minus(row.tau, 3)} ({plus_minus(row.best, 2).partition(' ')[0]})"
        )
        for row in rows
    }
    for method in dict.fromkeys(row.method for row in rows):
        table.add_row(method, *(cells.get((method, *column), "") for column in columns))
    for method, values in PUBLISHED.items():
        shown = [
            f"{values[labels]:.3f}" if target == "accuracy" and labels in values else ""
            for target, labels in columns
        ]
        if any(shown):
            table.add_row(f"published, random forest: {method}", *shown)
    return table


def draw_bench(rows: list[BenchRow], path: Path) -> None:
    """Bars of tau: a row of panels for each target, a column for each number of labels."""
    Figure = require("matplotlib.figure", "drawing", "pictures").Figure

    from ghn_fast.studies.curves import COLOURS, mean_and_deviation

    targets, labels = (
        list(dict.fromkeys(getattr(row, name) for row in rows)) for name in ("target", "labels")
    )
    panels = [(target, count) for target in targets[:4] for count in labels[:4]]
    shape = (min(len(targets), 4), min(len(labels), 4))
    size = (2.4 + 2.4 * shape[1], 0.4 + 2.3 * shape[0])
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(*shape, squeeze=False, sharex=True, sharey=True)
    axes[0, 0].invert_yaxis()
    for axis, panel in zip(axes.flatten(), panels, strict=True):
        shown = [row for row in rows if (row.target, row.labels) == panel]
        spread = [mean_and_deviation(row.tau) for row in shown]
        names = [row.method for row in shown]
        errors = [0.0 if error != error else error for _, error in spread]
        colours = [COLOURS["embed" not in n and "node" not in n] for n in names]
        axis.barh(names, [m for m, _ in spread], xerr=errors, color=colours, ecolor="0.3")
        axis.set_title(f"{panel[0]}, {panel[1]} labels", fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("Kendall's tau", fontsize=9)
    figure.savefig(path, dpi=110)
