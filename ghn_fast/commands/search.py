"""``search``: rank architectures without training any."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ghn_fast.commands.common import (
    INTERRUPTED,
    DataRoot,
    Dataset,
    DeepNetsFolder,
    check_out,
    make_progress,
    picture,
)
from ghn_fast.commands.output import UnfinishedError, print_table, say, say_written

if TYPE_CHECKING:
    from rich.table import Table

    from ghn_fast.studies.networks import Network
    from ghn_fast.studies.search import Candidate, SearchReport


def search(
    count: Annotated[int, typer.Option(min=1, help="Architectures that are looked at.")] = 1000,
    split: Annotated[str, typer.Option(help="Split that they are from.")] = "search",
    ckpt: Annotated[str, typer.Option("--ckpt", help="The hypernetwork.")] = "ghn2-digits",
    by: Annotated[
        str, typer.Option(help="regression (on --labels), predicted (accuracy), or both.")
    ] = "regression",
    labels: Annotated[
        Path | None, typer.Option(help="Table of labels that the regression is fitted to.")
    ] = None,
    label: Annotated[str, typer.Option(help="Its column; more of it is better.")] = "top1",
    dataset: Dataset = "digits",
    data_root: DataRoot = None,
    image_size: Annotated[int, typer.Option(min=8, help="Side of the images in pixels.")] = 32,
    num_classes: Annotated[int, typer.Option(min=1, help="Classes of the networks.")] = 10,
    max_parameters: Annotated[int | None, typer.Option(min=1, help="Limit of parameters.")] = None,
    max_flops: Annotated[
        float | None, typer.Option(min=1, help="Limit of FLOPs for one image.")
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option(help="Limit of seconds for 64 images on this machine.")
    ] = None,
    keep: Annotated[int, typer.Option(min=1, help="Architectures that are written.")] = 10,
    evaluate: Annotated[
        int, typer.Option(min=1, help="Architectures that are evaluated by predicted or both.")
    ] = 50,
    channels: Annotated[
        int | None, typer.Option(min=2, help="Channels of all networks, instead of their own.")
    ] = None,
    deepnets: DeepNetsFolder = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampled architectures.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Threads that embed.")] = 2,
    out: Annotated[Path, typer.Option("--out", help="Folder for results.")] = Path("search"),
) -> dict[str, Any]:
    """Rank the architectures of a split by regression on embeddings, predicted accuracy, or both.

    Writes the best genotypes as files that sgd, finetune, detect and embeddings take as networks
    (ghn-fast sgd OUT/best-01-search-123.json), OUT/search.json and OUT/search.png. Ctrl-C ranks
    what was seen.
    """
    from ghn_fast.hypernet import from_pretrained
    from ghn_fast.studies.labels import read_labels
    from ghn_fast.studies.networks import find_networks, names_to_find
    from ghn_fast.studies.search import (
        CRITERIA,
        Limits,
        draw_search,
        fit_scores,
        search_architectures,
        write_genotypes,
    )
    from ghn_fast.utils.json_files import write_json
    from ghn_fast.utils.signals import stop_requests
    from ghn_fast.vision import load_images

    check_out(out)
    if by not in CRITERIA:
        raise ValueError(f"by: got {by!r}, needs one of {', '.join(CRITERIA)}")
    if by != "predicted" and labels is None:
        raise ValueError(f"labels: --by {by} needs --labels, a table such as sgd writes")
    ghn = from_pretrained(ckpt)
    regression, splits = None, None
    if by != "regression":
        splits = load_images(dataset, data_root, image_size=image_size)
        num_classes = splits.num_classes
    if labels is not None and by != "predicted":
        table = read_labels(labels)
        fitted = find_networks(names_to_find(table.networks), deepnets=deepnets, channels=channels)
        regression = fit_scores(
            ghn, fitted, table, label, num_classes=num_classes, image_size=image_size
        )
    limits = Limits(max_parameters, None if max_flops is None else int(max_flops), max_seconds)
    with stop_requests() as stop, make_progress() as progress:
        task = progress.add_task("architectures", total=count, info="")
        second = progress.add_task("evaluated", total=None, info="") if splits else task

        def on_candidate(done: int, total: int, candidate: Candidate) -> None:
            info = f"{candidate.name}: {candidate.error or f'{candidate.predicted_top1:.1f} %'}"
            progress.update(second, completed=done, total=total, info=info)

        report = search_architectures(
            ghn,
            networks_of(split, count, deepnets, seed, channels),
            criterion=by,
            regression=regression,
            splits=splits,
            num_classes=num_classes,
            image_size=image_size,
            limits=limits,
            keep=keep,
            evaluate=evaluate,
            workers=workers,
            stop=stop,
            on_seen=lambda done: progress.update(task, completed=done),
            on_candidate=on_candidate,
        )
    files = write_genotypes(report, out)
    result = {"ckpt": ckpt, "split": split, **report.to_dict(), "written": files}
    write_json(out / "search.json", result)
    drawn = picture(draw_search, report, out / "search.png", label if by == "regression" else by)
    rate = report.seen / max(report.seconds, 1e-9)
    say(f"{report.seen} architectures in {report.seconds:.1f} s ({rate:.0f} a second)")
    print_table(search_table(report, label))
    if report.failed:
        first = report.failed[0]
        say(f"{len(report.failed)} not evaluated, the first one: {first.name}: {first.error}")
    say(f"genotypes of the best {len(files)}: {out}/best-*.json")
    say_written([out / "search.json", *drawn])
    if not report.finished:
        typer.echo(f"interrupted after {report.seen} of {count} architectures", err=True)
        raise UnfinishedError(result, INTERRUPTED)
    return result


def networks_of(
    split: str, count: int, folder: Path | None, seed: int, channels: int | None
) -> Iterator[Network]:
    """The first architectures of a split, one after the other."""
    from dataclasses import replace

    from ghn_fast.deepnets import DeepNets, SampledNets
    from ghn_fast.studies.networks import Network

    nets: DeepNets | SampledNets
    nets = DeepNets(folder, split) if folder is not None else SampledNets(split, count, seed)
    for index in range(min(count, len(nets))):
        item = nets[index]
        config = item.config_for(32)
        yield Network(item.name, config if channels is None else replace(config, C=channels))


def search_table(report: SearchReport, label: str) -> Table:
    """The best architectures."""
    from rich.table import Table

    table = Table(title=f"best {len(report.best)} of {report.within} architectures within limits")
    table.add_column("architecture")
    scored = any(c.score is not None for c in report.best)
    columns = ["parameters", "MFLOPs", *([f"{label} by regression"] if scored else [])]
    for column in (*columns, "predicted parameters, top-1 %", "Pareto front"):
        table.add_column(column, justify="right")
    for candidate in report.best:
        cells = [f"{candidate.parameters / 1e6:.2f} M", f"{(candidate.flops or 0) / 1e6:.0f}"]
        cells += [f"{candidate.score:.2f}"] if scored else []
        top1 = candidate.predicted_top1
        cells += ["" if top1 is None else f"{top1:.1f}", "yes" if candidate.front else ""]
        table.add_row(candidate.name, *cells)
    return table
