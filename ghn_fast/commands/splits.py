"""``evaluate-splits``: one table over all splits of DeepNets-1M."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ghn_fast.commands.common import (
    INTERRUPTED,
    DataRoot,
    Dataset,
    DeepNetsFolder,
    Device,
    Pixels,
    Precision,
    check_device,
    check_out,
    make_progress,
    picture,
)
from ghn_fast.commands.output import UnfinishedError, print_table, say_written
from ghn_fast.utils.optional import require

if TYPE_CHECKING:
    from rich.table import Table

    from ghn_fast.studies.all_splits import SplitRow
    from ghn_fast.vision import ArchitectureResult, EvaluationReport, Summary


def evaluate_splits(
    ckpt: Annotated[str, typer.Option("--ckpt", help="Name, folder or file of a hypernetwork.")],
    dataset: Dataset = "digits",
    data_root: DataRoot = None,
    image_size: Pixels = None,
    deepnets: DeepNetsFolder = None,
    split: Annotated[
        list[str] | None,
        typer.Option("--split", help="A split; repeatable.  [default: all for evaluation]"),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Architectures of a split at most.")] = 500,
    batch_size: Annotated[int, typer.Option(min=2, help="Images of a batch.")] = 64,
    statistics_batches: Annotated[
        int, typer.Option(min=0, help="Training batches behind running statistics.")
    ] = 200,
    noise: Annotated[float, typer.Option(min=0, help="Noise on pixels of 0..1.")] = 0.08,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampled architectures.")] = 0,
    precision: Precision = "float32",
    out: Annotated[Path, typer.Option("--out", help="Folder for results.")] = Path("evaluation"),
    device: Device = "cpu",
) -> dict[str, Any]:
    """Evaluate predicted networks of all splits in one table, published numbers beside it.

    Both BatchNorm protocols, images with noise, random initialisation, and how much the predicted
    weights of different networks differ. Writes OUT/splits.json after each split, and
    OUT/splits.png. Ctrl-C keeps the splits that are done, and the same command goes on with the
    architectures that are missing.
    """
    from ghn_fast.commands.evaluation import about_evaluation, evaluate_split, results_stem
    from ghn_fast.deepnets import SPLIT_SIZES
    from ghn_fast.deepnets import SPLITS as KNOWN
    from ghn_fast.hypernet import from_pretrained
    from ghn_fast.studies import all_splits
    from ghn_fast.utils.json_files import write_json
    from ghn_fast.vision import load_images
    from ghn_fast.vision.record_file import RecordFile

    chosen = split or list(all_splits.SPLITS)
    for name in chosen:
        if name not in KNOWN:
            raise ValueError(f"split: got {name!r}, needs one of {', '.join(KNOWN)}")
    check_device(device)
    check_out(out)
    ghn = from_pretrained(ckpt, device=device)
    splits = load_images(dataset, data_root, image_size=image_size)
    rows: list[SplitRow] = []
    interrupted = False
    told: dict[str, Any] = {"ckpt": ckpt, "dataset": dataset, "noise": noise, "seed": seed}
    told |= {"statistics_batches": statistics_batches, "batch_size": batch_size}
    told |= {"image_size": splits.image_size, "precision": precision}
    with ExitStack() as kept, make_progress() as progress:

        def evaluate(name: str, on_network: Any) -> EvaluationReport:
            task = progress.add_task(f"{name} architectures", total=None, info="")

            def on_result(done: int, total: int, record: ArchitectureResult) -> None:
                info = record.error or f"top-1 {record.top1:.1f} %"
                progress.update(task, completed=done, total=total, info=info)

            settings: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "baseline": True}
            settings |= {"deepnets": None if name == "predefined" else deepnets, "device": device}
            settings |= {"statistics_batches": statistics_batches, "noise": noise}
            settings |= {"precision": precision}
            about = about_evaluation(ghn, name, splits, **settings)
            return evaluate_split(
                ghn,
                name,
                splits,
                count=min(limit, SPLIT_SIZES.get(name, limit)),
                on_result=on_result,
                on_network=on_network,
                records=kept.enter_context(RecordFile(out, results_stem(name, dataset), about)),
                **settings,
            )

        def keep(done: list[SplitRow]) -> None:
            rows[:] = done
            out.mkdir(parents=True, exist_ok=True)
            write_json(out / "splits.json", {**told, "rows": [row.to_dict() for row in rows]})

        try:
            all_splits.evaluate_splits(evaluate, chosen, keep)
        except KeyboardInterrupt:
            interrupted = True
            kept.pop_all()  # the records stay
    narrow = "" if precision == "float32" else f", networks in {precision}"
    print_table(splits_table(rows, f"{ckpt}, {dataset}{narrow}", noise))
    written = []
    if rows:
        written = [out / "splits.json", *picture(draw_splits, rows, out / "splits.png")]
        say_written(written)
    result = {**told, "rows": [row.to_dict() for row in rows], "written": written}
    if interrupted:
        typer.echo(f"interrupted after {len(rows)} rows; the same command goes on", err=True)
        raise UnfinishedError(result, INTERRUPTED)
    return result


def splits_table(rows: list[SplitRow], title: str, noise: float) -> Table:
    """The table of all splits."""
    from rich.table import Table

    from ghn_fast.studies.published import COLUMNS

    table = Table(title=f"{title}: top-1 %, no training; published: CIFAR-10, batch statistics")
    table.add_column("split")
    names = ("networks", "batch statistics", "best", "training statistics", f"noise {noise:g}")
    for column in (*names, "random", "cosine distance", *COLUMNS):
        table.add_column(column, justify="right")
    for row in rows:
        published = row.published or {}
        table.add_row(
            row.name,
            str(row.networks) + (f" ({row.failed} failed)" if row.failed else ""),
            _mean(row.batch),
            "" if row.batch is None or row.networks == 1 else f"{row.batch.best:.1f}",
            _mean(row.running),
            _mean(row.noisy),
            _mean(row.random),
            "" if row.diversity is None else f"{row.diversity:.2f}",
            *("" if published.get(c) is None else f"{published[c]:.1f}" for c in COLUMNS),
        )
    return table


def _mean(summary: Summary | None) -> str:
    if summary is None:
        return ""
    if summary.count == 1:
        return f"{summary.mean:.1f}"
    return f"{summary.mean:.1f} ± {summary.standard_error:.1f}"


def draw_splits(rows: list[SplitRow], path: Path) -> None:
    """Bars of each split: both BatchNorm protocols and random initialisation."""
    Figure = require("matplotlib.figure", "drawing", "pictures").Figure

    from ghn_fast.studies.curves import COLOURS

    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    series = (
        ("batch statistics", [r.batch for r in rows]),
        ("training statistics", [r.running for r in rows]),
        ("random initialisation", [r.random for r in rows]),
    )
    for place, (label, summaries) in enumerate(series):
        heights = [0.0 if s is None else s.mean for s in summaries]
        errors = [0.0 if s is None or s.count < 2 else s.standard_error for s in summaries]
        at = [index + 0.27 * (place - 1) for index in range(len(rows))]
        axes.bar(at, heights, 0.25, yerr=errors, color=COLOURS[place], label=label, ecolor="0.3")
    axes.set_xticks(range(len(rows)), [row.name for row in rows])
    axes.set_ylabel("top-1 (%), no training")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.15))
    figure.savefig(path, dpi=110)
