"""``embeddings``: distances, neighbours and a picture of architectures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ghn_fast.commands.common import (
    DeepNetsFolder,
    check_out,
    make_progress,
    picture,
)
from ghn_fast.commands.output import print_table, say, say_written

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from ghn_fast.studies.landscape import Landscape

DEFAULT = ("test", "wide", "deep", "dense", "bnfree")


def embeddings(
    networks: Annotated[
        list[str] | None,
        typer.Argument(
            help="Sets of architectures: a split of DeepNets-1M (test), deepnets:SPLIT:FIRST-LAST, "
            "or a single network (resnet50, timm:NAME, FILE.py:FUNCTION).  "
            "[default: the splits for evaluation]",
            show_default=False,
        ),
    ] = None,
    ckpt: Annotated[str, typer.Option("--ckpt", help="The hypernetwork.")] = "ghn2-digits",
    count: Annotated[int, typer.Option(min=2, help="Architectures of a split.")] = 100,
    reference: Annotated[
        int, typer.Option(min=2, help="Training architectures to compare with.")
    ] = 500,
    near: Annotated[
        list[str] | None,
        typer.Option("--near", help="Show the nearest architectures to this one; repeatable."),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Table of labels that colours the picture.")
    ] = None,
    label: Annotated[str, typer.Option(help="Its column.")] = "top1",
    num_classes: Annotated[int, typer.Option(min=1, help="Classes of the networks.")] = 10,
    image_size: Annotated[int, typer.Option(min=8, help="Side of their images in pixels.")] = 32,
    deepnets: DeepNetsFolder = None,
    workers: Annotated[int, typer.Option(min=1, help="Threads.")] = 2,
    out: Annotated[Path, typer.Option("--out", help="Folder for results.")] = Path("embeddings"),
) -> dict[str, Any]:
    """Embed architectures: Fréchet distance to the training split, neighbours, a picture.

    Writes OUT/embeddings.json, OUT/embeddings.safetensors (names in its metadata) and
    OUT/embeddings.png, on two principal components.
    """
    from safetensors.torch import save

    from ghn_fast.deepnets import SPLITS, SampledNets
    from ghn_fast.hypernet import from_pretrained
    from ghn_fast.studies.embeddings import embed_architectures
    from ghn_fast.studies.labels import read_labels
    from ghn_fast.studies.landscape import draw_landscape, survey
    from ghn_fast.studies.networks import Network, find_networks, names_of
    from ghn_fast.utils.files import write_atomically
    from ghn_fast.utils.json_files import write_json

    check_out(out)
    values = read_labels(labels).column(label) if labels is not None else None
    ghn = from_pretrained(ckpt)
    edges, rules = ghn.config.virtual_edges, ghn.config.graph_rules
    found: dict[str, list[Network]] = {}
    for name in networks or DEFAULT:
        plain_split = name in SPLITS and name != "predefined"
        asked = f"deepnets:{name}:0-{count - 1}" if plain_split else name
        found[name] = find_networks([asked], deepnets=deepnets)
    train = SampledNets("train", reference, 0, edges, rules=rules)
    with make_progress() as progress:
        total = reference + sum(map(len, found.values()))
        task = progress.add_task("architectures", total=total, info="")

        def embedded(graphs: list[Any], before: int) -> Tensor:
            return embed_architectures(
                ghn,
                graphs,
                workers=workers,
                on_batch=lambda done: progress.update(task, completed=before + done),
            )

        known = embedded(
            [lambda i=i: train[i].graph_for(num_classes, image_size) for i in range(reference)], 0
        )
        done, sets = reference, {}
        for name, members in found.items():
            graphs = [
                lambda n=n: n.graph(num_classes, image_size, edges, rules=rules) for n in members
            ]
            sets[name] = (names_of(members), embedded(graphs, done))
            done += len(members)
    landscape = survey(known, sets, queries=near or ())
    out.mkdir(parents=True, exist_ok=True)
    result = {"ckpt": ckpt, "reference": reference, **landscape.to_dict()}
    write_json(out / "embeddings.json", result)
    tensors = {name: rows.contiguous() for name, (_, rows) in sets.items()}
    written = save(tensors, {name: json.dumps(names) for name, (names, _) in sets.items()})
    write_atomically(out / "embeddings.safetensors", written)
    drawn = picture(draw_landscape, landscape, out / "embeddings.png", values, label)
    print_table(embeddings_table(landscape, reference))
    for query, others in landscape.neighbours.items():
        near_by = ", ".join(f"{name} {distance:.2f}" for name, distance in others)
        say(f"nearest to {query}: {near_by}")
    say_written([out / "embeddings.json", out / "embeddings.safetensors", *drawn])
    return result


def embeddings_table(landscape: Landscape, reference: int) -> Table:
    """Fréchet distances, the published ones beside them."""
    from rich.table import Table

    from ghn_fast.studies.landscape import PUBLISHED

    table = Table(title=f"Fréchet distance to {reference} training architectures")
    table.add_column("set")
    for column in ("architectures", "distance", "published, GHN-2 for CIFAR-10"):
        table.add_column(column, justify="right")
    for name, names in landscape.names.items():
        distance, published = landscape.frechet[name], PUBLISHED.get(name)
        table.add_row(
            name,
            str(len(names)),
            "" if distance is None else f"{distance:.2f}",
            "" if published is None else f"{published:.2f}",
        )
    return table
