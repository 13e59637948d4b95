"""``draw``: the picture of an architecture graph, and its properties."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
