"""``predict``: all parameters of a network, and ``models``: the names that networks have."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ghn_fast.commands.common import DeepNetsFolder, ImageSize, ModelName, check_out_file
from ghn_fast.commands.output import make_console, say

if TYPE_CHECKING:
    from torch import nn

    from ghn_fast.hypernet import PredictionReport

# Names of parameters that keep their values are all in --json; on a terminal these many.
_SHOWN = 10


def predict(
    model: ModelName,
    ckpt: Annotated[
        str, typer.Option("--ckpt", help="Name, folder or file of a hypernetwork.")
    ] = "ghn2-digits",
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="By default those of the hypernetwork.")
    ] = None,
    input_size: ImageSize = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to save the parameters (.safetensors).")
    ] = None,
    deepnets: DeepNetsFolder = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Of sampled architectures and of what is not predicted.")
    ] = 0,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain", help="Say how far it is from the training architectures, what to expect."
        ),
    ] = False,
) -> dict[str, Any]:
    """Predict all parameters of a network."""
    import torch

    from ghn_fast.hypernet import from_pretrained
    from ghn_fast.hypernet.parameter_file import save_parameters
    from ghn_fast.models import resolve

    if out is not None:
        check_out_file(out, ".safetensors")
    ghn = from_pretrained(ckpt)
    classes = num_classes or ghn.config.num_classes
    named = resolve(model, num_classes=classes, image_size=input_size, deepnets=deepnets, seed=seed)
    torch.manual_seed(seed)
    network = named.build()
    graph = None
    if named.derive is not None:
        graph = named.graph(ghn.config.virtual_edges, rules=ghn.config.graph_rules)
    with warnings.catch_warnings():
        # The parameters that keep their values are printed below.
        warnings.filterwarnings("ignore", "[0-9]+ of [0-9]+ parameters were not predicted")
        if graph is not None:
            report = ghn.predict(network, graph, explain=explain)
        else:
            report = ghn.predict(network, **named.inputs, explain=explain)
    print_prediction(model, network, report)
    sizes = {name: value.numel() for name, value in network.named_parameters()}
    result: dict[str, Any] = {
        "model": model,
        "hypernetwork": ckpt,
        "predicted": len(report.predicted),
        "predicted_values": sum(sizes[name] for name in report.predicted),
        "skipped": report.skipped,
        "batch_statistics": report.batch_statistics,
        "partial": report.partial,
        "warnings": report.warnings,
        "explanation": report.explanation,
        "seconds": report.seconds,
        "out": out,
    }
    if out is not None:
        save_parameters(out, network, report, model_name=model, ghn=ghn, hypernetwork=ckpt)
        say(f"written: {out}")
    return result


def print_prediction(name: str, network: nn.Module, report: PredictionReport) -> None:
    """Print what a prediction did, and how long each stage took."""
    from rich.table import Table

    params = dict(network.named_parameters())
    numel = sum(params[n].numel() for n in report.predicted)
    table = Table(title=f"{name}: {len(report.predicted)} tensors, {numel / 1e6:.2f} M parameters")
    table.add_column("stage")
    table.add_column("milliseconds", justify="right")
    for stage, seconds in report.seconds.items():
        table.add_row(stage, f"{1e3 * seconds:.1f}")
    console = make_console()
    console.print(table)
    for parameter, reason in list(report.skipped.items())[:_SHOWN]:
        console.print(f"not predicted: {parameter}: {reason}", highlight=False, markup=False)
    if len(report.skipped) > _SHOWN:
        console.print(
            f"not predicted: {len(report.skipped) - _SHOWN} more, which --json lists",
            highlight=False,
        )
    if report.partial is not None:
        console.print(f"assumed: {report.partial}", highlight=False, markup=False)
    if report.explanation is not None and not report.explanation.far:
        console.print(f"this network: {report.explanation}", highlight=False, markup=False)
    for warning in report.warnings:
        console.print(f"note: {warning}", highlight=False, markup=False)
    if report.batch_statistics:
        console.print(
            f"{len(report.batch_statistics)} BatchNorm layers use batch statistics from now on"
        )


def models(
    beginning: Annotated[
        str, typer.Argument(help="What names begin with, for example resnet or timm:vit.")
    ] = "",
) -> dict[str, Any]:
    """List the names of networks that commands take."""
    from ghn_fast.models import known_names
    from ghn_fast.models.resolve import FORMS

    names = known_names(beginning)
    for name in names:
        say(name)
    if not beginning:
        say(f"A network is {FORMS}; `ghn-fast models timm:` lists those of timm.")
    elif not names:
        say(f"no network has a name that begins with {beginning}; it is {FORMS}")
    return {"beginning": beginning, "models": names}
