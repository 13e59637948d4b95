"""``predict``, ``evaluate``, ``draw``, ``demo`` and ``doctor``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ghn_fast.commands.common import (
    MOST,
    Dataset,
    Device,
    app,
    check_device,
    check_out,
    make_progress,
)


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
    from ghn_fast.commands.reports import evaluate_split, print_evaluation
    from ghn_fast.deepnets import SPLIT_SIZES
    from ghn_fast.hypernet import from_pretrained
    from ghn_fast.utils import distributed

    check_device(device)
    check_out(out)
    main_process = distributed.launched().rank == 0
    device = distributed.device_for(device)
    ghn = from_pretrained(ckpt, device=device)
    name = split.value
    count = limit or min(SPLIT_SIZES.get(name, MOST), MOST)
    with distributed.job(device), make_progress(show=main_process) as progress:
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
    from ghn_fast.commands.reports import predict_torchvision, print_prediction

    if out is not None:
        check_out(out.parent)
    network, report = predict_torchvision(model, ckpt, num_classes, input_size)
    print_prediction(model, network, report)
    if out is not None:
        from safetensors.torch import save

        from ghn_fast.utils.files import write_atomically

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
    from ghn_fast.commands.architectures import graph_of
    from ghn_fast.drawing.draw import check_picture, draw_graph
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
    from ghn_fast.commands.reports import run_demo

    check_out(out)
    run_demo(ckpt, count, out)


@app.command()
def doctor() -> None:
    """Print versions, devices, compiled back ends, and which back end each op uses."""
    from ghn_fast.commands.doctor import report

    typer.echo(report())
