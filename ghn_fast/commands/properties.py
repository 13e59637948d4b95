"""``properties``: predict accuracy and other labels of architectures from their embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ghn_fast.commands.common import (
    Cells,
    Channels,
    DeepNetsFolder,
    check_out,
    make_progress,
    picture,
)
from ghn_fast.commands.output import print_table, say_written
from ghn_fast.utils.optional import require

if TYPE_CHECKING:
    from rich.table import Table

    from ghn_fast.studies.properties import PropertyReport

USUAL = ("top1", "noisy_top1", "seconds", "convergence")


def properties(
    labels: Annotated[
        Path,
        typer.Argument(
            help="Table of labels, CSV or JSON: a column network, and one for each label; "
            "labels.csv of the command sgd is one.",
            show_default=False,
        ),
    ],
    ckpt: Annotated[str, typer.Option("--ckpt", help="The hypernetwork.")] = "ghn2-digits",
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label", help="A label; repeatable.  [default: those of sgd that are there]"
        ),
    ] = None,
    fit: Annotated[
        int | None,
        typer.Option(min=5, help="Architectures to fit to; all of the split by default."),
    ] = None,
    split: Annotated[
        str, typer.Option(help="Split whose architectures are fitted to; 'any' draws from all.")
    ] = "val",
    draws: Annotated[int, typer.Option(min=1, help="Draws of what is fitted to.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    num_classes: Annotated[int, typer.Option(min=1, help="Classes of the networks.")] = 10,
    image_size: Annotated[int, typer.Option(min=8, help="Side of their images in pixels.")] = 32,
    channels: Channels = None,
    cells: Cells = None,
    deepnets: DeepNetsFolder = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for results.")] = Path("properties"),
) -> dict[str, Any]:
    """Predict labels of architectures from graph embeddings, and compare with simple counts.

    Fits support vector regressions to architectures of one split and ranks the others, as
    published; the table has Kendall's tau. Writes OUT/properties.json and OUT/properties.png.
    """
    from ghn_fast.hypernet import from_pretrained
    from ghn_fast.studies.labels import read_labels
    from ghn_fast.studies.networks import find_networks, names_to_find
    from ghn_fast.studies.properties import predict_properties
    from ghn_fast.utils.json_files import write_json

    check_out(out)
    table = read_labels(labels)
    chosen = label or [name for name in USUAL if name in table.columns]
    if not chosen:
        raise ValueError(f"label: {labels} has {', '.join(table.columns)}; choose with --label")
    for name in chosen:
        table.column(name)
    ghn = from_pretrained(ckpt)
    networks = find_networks(
        names_to_find(table.networks), deepnets=deepnets, channels=channels, cells=cells
    )
    with make_progress() as progress:
        task = progress.add_task("architectures", total=len(networks), info="")
        reports = predict_properties(
            ghn,
            networks,
            table,
            chosen,
            num_classes=num_classes,
            image_size=image_size,
            fit=fit,
            split=None if split == "any" else split,
            draws=draws,
            seed=seed,
            on_network=lambda done: progress.update(task, completed=done),
        )
    out.mkdir(parents=True, exist_ok=True)
    result = {"ckpt": ckpt, "labels": labels, "reports": [r.to_dict() for r in reports]}
    write_json(out / "properties.json", result)
    drawn = picture(draw_properties, reports, out / "properties.png")
    print_table(properties_table(reports))
    say_written([out / "properties.json", *drawn])
    return result


def properties_table(reports: list[PropertyReport]) -> Table:
    """Kendall's tau: a row for each kind of features, a column for each label."""
    from rich.table import Table

    from ghn_fast.studies.curves import plus_minus
    from ghn_fast.studies.properties import PUBLISHED

    first = reports[0]
    table = Table(
        title=f"Kendall's tau on {first.tested} architectures after fitting to {first.fitted}; "
        "published: CIFAR-10, 500 and 500"
    )
    table.add_column("features")
    for report in reports:
        table.add_column(report.label, justify="right")
    for kind in first.tau:
        table.add_row(kind, *(plus_minus(report.tau[kind], 2) for report in reports))
    for method, values in PUBLISHED.items():
        cells = [f"{values[r.label]:.2f}" if r.label in values else "" for r in reports]
        if any(cells):
            table.add_row(f"published: {method}", *cells)
    return table


def draw_properties(reports: list[PropertyReport], path: Path) -> None:
    """Labels against what the regression on embeddings says, one panel for each label."""
    Figure = require("matplotlib.figure", "drawing", "pictures").Figure

    from ghn_fast.studies.curves import COLOURS

    figure = Figure(figsize=(0.6 + 2.9 * len(reports), 3.0), layout="constrained")
    axes = figure.subplots(1, len(reports), squeeze=False)[0]
    for axis, report in zip(axes, reports, strict=True):
        axis.scatter(report.truth, report.predicted, s=10, color=COLOURS[0], alpha=0.7)
        axis.set_title(f"{report.label}: tau {report.tau['embeddings'][0]:.2f}", fontsize=10)
        axis.set_xlabel("measured")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("predicted from embeddings")
    figure.savefig(path, dpi=110)
