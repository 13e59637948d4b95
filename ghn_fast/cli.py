"""The command ``ghn-fast``."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="ghn-fast",
    help="Graph hypernetworks: predict all parameters of a network in one forward pass.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
deepnets_app = typer.Typer(
    help="Generate and inspect files of DeepNets-1M architectures.", no_args_is_help=True
)
app.add_typer(deepnets_app, name="deepnets")

# Exit status of a program that SIGINT ended, by the convention of shells.
INTERRUPTED = 130


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
    """Layouts of files."""

    auto = "auto"
    packed = "packed"
    hdf5 = "hdf5"


class EvaluationSplit(StrEnum):
    """Splits that can be evaluated."""

    val = "val"
    test = "test"
    wide = "wide"
    deep = "deep"
    dense = "dense"
    bnfree = "bnfree"
    predefined = "predefined"
    search = "search"
    train = "train"


# Architectures that `evaluate` takes of the large splits unless it is told otherwise.
_MOST = 500

Dataset = Annotated[
    str,
    typer.Option("--dataset", help="digits, cifar10, imagenet or folder:PATH (an ImageFolder)."),
]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")]


@app.command()
def train(
    out: Annotated[Path, typer.Option("--out", help="Folder of the run; continued if it exists.")],
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML file of settings; options override it.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="digits, cifar10, imagenet or folder:PATH.")
    ] = None,
    data_root: Annotated[str | None, typer.Option(help="Folder of the image data.")] = None,
    deepnets: Annotated[
        str | None,
        typer.Option(help="Folder of generated files, or how many architectures to sample."),
    ] = None,
    init: Annotated[
        str | None, typer.Option(help="Hypernetwork to start from, as in evaluate --ckpt.")
    ] = None,
    meta_batch: Annotated[int | None, typer.Option(min=1, help="Architectures per step.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per step.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the run.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the images.")] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    hid: Annotated[int | None, typer.Option(min=4, help="Width of the embeddings.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(min=1, help="In steps.")] = None,
    checkpoint_minutes: Annotated[
        float | None, typer.Option(help="Minutes between checkpoints at most.")
    ] = None,
    eval_every: Annotated[
        int | None, typer.Option(min=0, help="Steps between evaluations; 0 for none.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="float32, bf16 or fp16.")] = None,
    pool_size: Annotated[
        int | None, typer.Option(min=0, help="Architectures in the pool; 0 for no pool.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
) -> None:
    """Meta-train a hypernetwork, or continue the run in OUT.

    On several GPUs or machines: torchrun --nproc-per-node 8 -m ghn_fast train ...
    """
    from ghn_fast import distributed
    from ghn_fast.metatrain import TrainConfig, read_config
    from ghn_fast.metatrain import train as run

    given = {
        "dataset": dataset,
        "data_root": data_root,
        "deepnets": deepnets,
        "init": init,
        "meta_batch": meta_batch,
        "batch_size": batch_size,
        "steps": steps,
        "epochs": epochs,
        "seed": seed,
        "hid": hid,
        "lr": lr,
        "checkpoint_every": checkpoint_every,
        "checkpoint_minutes": checkpoint_minutes,
        "eval_every": eval_every,
        "precision": precision,
        "pool_size": pool_size,
        "device": device,
    }
    values = read_config(config) if config is not None else {}
    given = {name: value for name, value in given.items() if value is not None}
    if "steps" in given or "epochs" in given:
        values.pop("steps", None)
        values.pop("epochs", None)
    settings = TrainConfig.from_dict({**values, **given})
    _check_device(settings.device)
    _check_out(out)
    main_process = distributed.launched().rank == 0
    with _progress(show=main_process, rate=True) as progress:
        task = progress.add_task("meta-training", total=None, info="")
        skipped, first = 0, None

        def on_step(metrics: dict[str, Any], total: int) -> None:
            nonlocal skipped, first
            if first is None:
                # The time of a continued run counts from here, for speed and time left.
                first = metrics["step"] - 1
                progress.reset(task, total=total, completed=first)
            skipped += metrics["skipped"]
            info = f"loss {metrics['loss']:.3f}  top-1 {metrics['top1']:.1f} %  skipped {skipped}"
            progress.update(task, completed=metrics["step"], total=total, info=info)

        result = run(settings, out, on_step=on_step)
    if main_process:
        checkpoint = result.checkpoint or "none yet"
        typer.echo(f"step {result.step} of {result.total}, checkpoint: {checkpoint}")
    if result.interrupted:
        if main_process:
            typer.echo("interrupted; the same command continues the run")
        raise typer.Exit(INTERRUPTED)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.")],
) -> None:
    """Write RUN/report.html: curves, evaluations, skipped architectures, settings."""
    from ghn_fast.metatrain.report import write_report

    typer.echo(f"written: {write_report(run)}")


@app.command()
def evaluate(
    ckpt: Annotated[str, typer.Option("--ckpt", help="Name, folder or file of a hypernetwork.")],
    split: Annotated[EvaluationSplit, typer.Option("--split")] = EvaluationSplit.test,
    dataset: Dataset = "digits",
    data_root: Annotated[str | None, typer.Option(help="Folder of the image data.")] = None,
    deepnets: Annotated[
        Path | None,
        typer.Option(help="Folder of generated files; without it the split is sampled."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Architectures at most.")] = None,
    batch_size: Annotated[int, typer.Option(min=2)] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampled architectures.")] = 0,
    baseline: Annotated[bool, typer.Option(help="Evaluate random initialisation, too.")] = True,
    out: Annotated[Path, typer.Option("--out", help="Folder for results.")] = Path("evaluation"),
    device: Device = "cpu",
) -> None:
    """Accuracy of predicted networks on held-out images."""
    from ghn_fast import distributed
    from ghn_fast.deepnets import SPLIT_SIZES
    from ghn_fast.hypernet import from_pretrained
    from ghn_fast.reports import evaluate_split, print_evaluation

    _check_device(device)
    _check_out(out)
    main_process = distributed.launched().rank == 0
    device = distributed.device_for(device)
    ghn = from_pretrained(ckpt, device=device)
    name = split.value
    count = limit or min(SPLIT_SIZES.get(name, _MOST), _MOST)
    with distributed.job(device), _progress(show=main_process) as progress:
        task = progress.add_task(f"{name} architectures", total=None, info="")

        def on_result(done: int, total: int, record: Any) -> None:
            info = record.error or f"top-1 {record.top1:.1f} %"
            # The other processes are about as far with their shares.
            done = min(done * distributed.world_size(), total)
            progress.update(task, completed=done, total=total, info=info)

        report = evaluate_split(
            ghn,
            name,
            dataset,
            data_root=data_root,
            deepnets=deepnets,
            count=count,
            batch_size=batch_size,
            seed=seed,
            baseline=baseline,
            device=device,
            on_result=on_result,
        )
    if not main_process:
        return
    kind, _, folder = dataset.partition(":")
    stem = "-".join(filter(None, (name, kind, Path(folder).name)))
    report.ckpt, report.split = ckpt, name
    out.mkdir(parents=True, exist_ok=True)
    report.to_json(out / f"{stem}.json")
    print_evaluation(report, f"{ckpt} on {name}")
    written = f"{out / stem}.json"
    if report.predicted is not None:
        report.histogram(out / f"{stem}.png")
        written += f" and {out / stem}.png"
    typer.echo(f"written: {written}")
    if report.predicted is None:
        raise typer.Exit(1)


@app.command()
def predict(
    model: Annotated[
        str, typer.Argument(help="Name of a torchvision model, for example resnet50.")
    ],
    ckpt: Annotated[str, typer.Option("--ckpt")] = "ghn2-digits",
    num_classes: Annotated[int | None, typer.Option(min=1)] = None,
    input_size: Annotated[int, typer.Option(min=1, help="Height and width of an image.")] = 224,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to save the parameters (.safetensors).")
    ] = None,
) -> None:
    """Predict all parameters of a torchvision model."""
    from ghn_fast.reports import predict_torchvision, print_prediction

    if out is not None:
        _check_out(out.parent)
    network, report = predict_torchvision(model, ckpt, num_classes, input_size)
    print_prediction(model, network, report)
    if out is not None:
        from safetensors.torch import save

        from ghn_fast.hypernet.checkpoint import write_atomically

        state = {name: value.contiguous() for name, value in network.named_parameters()}
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, save(state))
        typer.echo(f"written: {out}")


@app.command()
def draw(
    model: Annotated[
        str,
        typer.Argument(help="Name of a torchvision model, or deepnets:SPLIT:INDEX."),
    ],
    out: Annotated[Path, typer.Option("--out", help="The picture: .svg, .png or .pdf.")],
    virtual_edges: Annotated[
        int, typer.Option(min=1, help="Draw virtual edges up to this distance; 1 draws none.")
    ] = 1,
    num_classes: Annotated[int, typer.Option(min=1)] = 10,
    input_size: Annotated[
        int | None, typer.Option(min=1, help="Height and width of an image.")
    ] = None,
    labels: Annotated[str, typer.Option(help="Text in the nodes: none, op or name.")] = "none",
    title: Annotated[str | None, typer.Option(help="By default the model's name.")] = None,
    layout: Annotated[str, typer.Option(help="auto, dot (graphviz) or layered.")] = "auto",
    columns: Annotated[int | None, typer.Option(min=1, help="Columns of the picture.")] = None,
    deepnets: Annotated[
        Path | None, typer.Option(help="Folder of generated files; without it nets are sampled.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampled architectures.")] = 0,
) -> None:
    """Draw the architecture graph of a model, and print its properties."""
    from ghn_fast.architectures import graph_of
    from ghn_fast.graph.draw import check_picture, draw_graph
    from ghn_fast.graph.properties import graph_properties

    check_picture(out)
    graph = graph_of(
        model,
        num_classes=num_classes,
        input_size=input_size,
        virtual_edges=virtual_edges,
        deepnets=deepnets,
        seed=seed,
    )
    draw_graph(
        graph,
        out,
        title=model if title is None else title,
        labels=labels,
        virtual_edges=virtual_edges,
        engine=layout,
        columns=columns,
    )
    typer.echo(f"{model}: {graph_properties(graph)}")
    typer.echo(f"written: {out}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the picture.")] = Path("demo-out"),
    ckpt: Annotated[str, typer.Option("--ckpt")] = "ghn2-digits",
    count: Annotated[int, typer.Option(min=1, help="Unseen test architectures.")] = 8,
) -> None:
    """Predict ResNet-50 and unseen architectures, and evaluate them on held-out digits."""
    from ghn_fast.reports import run_demo

    _check_out(out)
    run_demo(ckpt, count, out)


@deepnets_app.command()
def generate(
    split: Annotated[Split, typer.Option("--split")],
    count: Annotated[int, typer.Option("--count", min=1, help="Architectures to generate.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the files.")],
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes.")] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    layout: Annotated[
        Format,
        typer.Option(
            "--format",
            help="packed, hdf5 (as published), or auto: packed for train and search.",
        ),
    ] = Format.auto,
) -> None:
    """Generate architectures and write them into files of DeepNets-1M."""
    from ghn_fast.deepnets import DeepNets, describe, statistics_table
    from ghn_fast.deepnets import generate as write

    interrupted = False
    with _progress() as progress:
        task = progress.add_task(f"{split.value} architectures", total=count, info="")
        try:
            write(
                split.value,
                count,
                out,
                workers=workers,
                seed=seed,
                overwrite=overwrite,
                format=layout.value,
                progress=lambda done: progress.update(task, completed=done),
            )
        except KeyboardInterrupt:
            interrupted = True
    if interrupted and split.value not in _splits_or_none(out):
        typer.echo("interrupted before the first architectures were finished; nothing written")
        raise typer.Exit(INTERRUPTED)
    nets = DeepNets(out, split.value)
    _print(statistics_table({split.value: describe(nets)}))
    typer.echo(f"written: {len(nets)} architectures in {out}")
    if interrupted:
        typer.echo(f"interrupted after {len(nets)} of {count} architectures; the file is valid")
        raise typer.Exit(INTERRUPTED)


@deepnets_app.command()
def info(
    folder: Annotated[Path, typer.Argument(help="Folder of DeepNets-1M files.")],
) -> None:
    """Show statistics of the architectures in a folder."""
    from ghn_fast.deepnets import DeepNets, describe, splits_in, statistics_table
    from ghn_fast.graph.properties import summarise_properties

    found = {split: describe(DeepNets(folder, split)) for split in splits_in(folder)}
    _print(statistics_table(found))
    for split in found:
        nets = DeepNets(folder, split, virtual_edges=1)
        # Evenly spread over the split; averages need no more.
        chosen = range(0, len(nets), -(-len(nets) // _MOST))
        typer.echo(f"{split}: {summarise_properties(nets[index].graph for index in chosen)}")


@deepnets_app.command()
def convert(
    folder: Annotated[Path, typer.Argument(help="Folder (or file) to read.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")],
    layout: Annotated[
        Format, typer.Option("--format", help="packed, or hdf5 (as published).")
    ] = Format.packed,
    split: Annotated[
        Split | None, typer.Option("--split", help="The split to convert; all by default.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
) -> None:
    """Write files of architectures in another layout."""
    from ghn_fast.deepnets import DeepNets, splits_in
    from ghn_fast.deepnets import convert as write

    for name in [split.value] if split else splits_in(folder):
        count = len(DeepNets(folder, name))
        with _progress() as progress:
            task = progress.add_task(f"{name} architectures", total=count, info="")

            def show(done: int, progress: Any = progress, task: Any = task) -> None:
                progress.update(task, completed=done)

            written = write(folder, name, out, layout.value, overwrite=overwrite, progress=show)
        typer.echo(f"written: {count} architectures in {written}")


@app.command()
def doctor() -> None:
    """Print versions, devices, compiled back ends, and which back end each op uses."""
    from ghn_fast.doctor import report

    typer.echo(report())


def _splits_or_none(folder: Path) -> list[str]:
    from ghn_fast.deepnets import splits_in

    try:
        return splits_in(folder)
    except FileNotFoundError:
        return []


def _check_out(folder: Path) -> None:
    """Refuse a place for results before the work, not after it."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"--out: got {folder}, but {existing} is a file; needs a folder")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"--out: got {folder}, but {existing} cannot be written to")


def _check_device(name: str) -> None:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: got {name!r}, needs cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device: got {name!r}, but there is no CUDA GPU that torch can use; use cpu"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device: got {name!r}, but there are {torch.cuda.device_count()} CUDA GPUs"
        )
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: got {name!r}, needs cpu, cuda or cuda:N")


def _progress(*, show: bool = True, rate: bool = False) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        """Steps per second, or seconds per step where that is the larger number."""

        def render(self, task: Task) -> Text:
            speed = task.speed
            if not rate or not speed:
                return Text("")
            return Text(f"{speed:.1f} steps/s" if speed >= 1 else f"{1 / speed:.1f} s/step")

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        Rate(),
        TextColumn("{task.fields[info]}"),
        console=Console(stderr=True),
        disable=not show,
    )


def _print(renderable: Any) -> None:
    from rich.console import Console

    Console().print(renderable)


def main() -> None:
    """Run the command line; mistakes end with one line and status 2."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        if os.environ.get("GHN_FAST_DEBUG"):
            raise
        typer.echo(f"ghn-fast: error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
