"""``deepnets generate``, ``info`` and ``convert``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ghn_fast.commands.common import INTERRUPTED, MOST, make_progress
from ghn_fast.commands.output import UnfinishedError, print_table, say, with_json

app = typer.Typer(
    help="Generate, inspect and convert files of DeepNets-1M architectures.", no_args_is_help=True
)


class Split(StrEnum):
    """Splits that can be generated."""

    train = "train"
    val = "val"
    test = "test"
    wide = "wide"
    deep = "deep"
    dense = "dense"
    bnfree = "bnfree"
    search = "search"


class Format(StrEnum):
    """Formats of files."""

    auto = "auto"
    packed = "packed"
    hdf5 = "hdf5"


@app.command()
@with_json
def generate(
    split: Annotated[Split, typer.Option("--split", help="The split to generate.")],
    count: Annotated[int, typer.Option("--count", min=1, help="Architectures to generate.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the files.")],
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes.")] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the architectures.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    format: Annotated[
        Format,
        typer.Option(
            "--format",
            help="packed, hdf5 (as published), or auto: packed for train and search.",
        ),
    ] = Format.auto,
) -> dict[str, Any]:
    """Generate architectures and write them into files of DeepNets-1M."""
    from ghn_fast.deepnets import DeepNets, describe, statistics_table
    from ghn_fast.deepnets import generate as write

    interrupted = False
    with make_progress() as progress:
        task = progress.add_task(f"{split.value} architectures", total=count, info="")
        try:
            write(
                split.value,
                count,
                out,
                workers=workers,
                seed=seed,
                overwrite=overwrite,
                format=format.value,
                progress=lambda done: progress.update(task, completed=done),
            )
        except KeyboardInterrupt:
            interrupted = True
    if interrupted and split.value not in _splits_or_none(out):
        say("interrupted before the first architectures were finished; nothing written")
        raise UnfinishedError({"split": split.value, "written": 0, "out": out}, INTERRUPTED)
    nets = DeepNets(out, split.value)
    statistics = describe(nets)
    print_table(statistics_table({split.value: statistics}))
    say(f"written: {len(nets)} architectures in {out}")
    result = {
        "split": split.value,
        "written": len(nets),
        "out": out,
        "statistics": statistics,
        "interrupted": interrupted,
    }
    if interrupted:
        say(f"interrupted after {len(nets)} of {count} architectures; the file is valid")
        raise UnfinishedError(result, INTERRUPTED)
    return result


@app.command()
@with_json
def info(
    folder: Annotated[Path, typer.Argument(help="Folder of DeepNets-1M files.")],
) -> dict[str, Any]:
    """Show statistics of the architectures in a folder."""
    from ghn_fast.deepnets import DeepNets, describe, splits_in, statistics_table
    from ghn_fast.graph.properties import summarise_properties

    found = {split: describe(DeepNets(folder, split)) for split in splits_in(folder)}
    print_table(statistics_table(found))
    properties = {}
    for split in found:
        nets = DeepNets(folder, split, virtual_edges=1)
        # Evenly spread over the split; averages need no more.
        chosen = range(0, len(nets), -(-len(nets) // MOST))
        properties[split] = summarise_properties(nets[index].graph for index in chosen)
        say(f"{split}: {properties[split]}")
    return {"folder": folder, "statistics": found, "properties": properties}


@app.command()
@with_json
def convert(
    folder: Annotated[Path, typer.Argument(help="Folder (or file) to read.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")],
    format: Annotated[
        Format, typer.Option("--format", help="packed, or hdf5 (as published).")
    ] = Format.packed,
    split: Annotated[
        Split | None, typer.Option("--split", help="The split to convert; all by default.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
) -> dict[str, Any]:
    """Write files of architectures in another format."""
    from ghn_fast.deepnets import DeepNets, splits_in
    from ghn_fast.deepnets import convert as write

    files = {}
    for name in [split.value] if split else splits_in(folder):
        count = len(DeepNets(folder, name))
        with make_progress() as progress:
            task = progress.add_task(f"{name} architectures", total=count, info="")

            def show(done: int, progress: Any = progress, task: Any = task) -> None:
                progress.update(task, completed=done)

            written = write(folder, name, out, format.value, overwrite=overwrite, progress=show)
        say(f"written: {count} architectures in {written}")
        files[name] = {"architectures": count, "file": written}
    return {"splits": files}


def _splits_or_none(folder: Path) -> list[str]:
    from ghn_fast.deepnets import splits_in

    try:
        return splits_in(folder)
    except FileNotFoundError:
        return []
