"""``draw``: the picture of an architecture graph, and its properties."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ghn_fast.commands.common import DeepNetsFolder, ImageSize, ModelName
from ghn_fast.commands.output import say


def draw(
    model: ModelName,
    out: Annotated[Path, typer.Option("--out", help="The picture: .svg, .png or .pdf.")],
    virtual_edges: Annotated[
        int, typer.Option(min=1, help="Draw virtual edges up to this distance; 1 draws none.")
    ] = 1,
    num_classes: Annotated[int, typer.Option(min=1, help="Classes of the network.")] = 10,
    input_size: ImageSize = None,
    labels: Annotated[str, typer.Option(help="Text in the nodes: none, op or name.")] = "none",
    title: Annotated[str | None, typer.Option(help="By default the model's name.")] = None,
    layout: Annotated[str, typer.Option(help="auto, dot (graphviz) or layered.")] = "auto",
    columns: Annotated[int | None, typer.Option(min=1, help="Columns of the picture.")] = None,
    deepnets: DeepNetsFolder = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampled architectures.")] = 0,
) -> dict[str, Any]:
    """Draw the architecture graph of a model, and print its properties."""
    from ghn_fast.drawing.draw import check_picture, draw_graph
    from ghn_fast.graph.properties import graph_properties
    from ghn_fast.models import resolve

    check_picture(out)
    named = resolve(
        model, num_classes=num_classes, image_size=input_size, deepnets=deepnets, seed=seed
    )
    graph = named.graph(virtual_edges)
    draw_graph(
        graph,
        out,
        title=model if title is None else title,
        labels=labels,
        virtual_edges=virtual_edges,
        engine=layout,
        columns=columns,
    )
    properties = graph_properties(graph)
    say(f"{model}: {properties}")
    say(f"written: {out}")
    return {"model": model, "properties": properties, "skipped": graph.skipped, "out": out}
