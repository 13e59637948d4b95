"""``predict``: all parameters of a torchvision model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ghn_fast.commands.common import check_out

if TYPE_CHECKING:
    from torch import nn

    from ghn_fast.hypernet import PredictionReport


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
    from ghn_fast.commands.architectures import torchvision_model
    from ghn_fast.hypernet import from_pretrained

    if out is not None:
        check_out(out.parent)
    ghn = from_pretrained(ckpt)
    network = torchvision_model(model, num_classes or ghn.config.num_classes)
    report = ghn.predict(network, input_shape=(3, input_size, input_size))
    print_prediction(model, network, report)
    if out is not None:
        from safetensors.torch import save

        from ghn_fast.utils.files import write_atomically

        state = {name: value.contiguous() for name, value in network.named_parameters()}
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, save(state))
        typer.echo(f"written: {out}")


def print_prediction(name: str, network: nn.Module, report: PredictionReport) -> None:
    """Print what a prediction did, and how long each stage took."""
    from rich.console import Console
    from rich.table import Table

    params = dict(network.named_parameters())
    numel = sum(params[n].numel() for n in report.predicted)
    table = Table(title=f"{name}: {len(report.predicted)} tensors, {numel / 1e6:.2f} M parameters")
    table.add_column("stage")
    table.add_column("milliseconds", justify="right")
    for stage, seconds in report.seconds.items():
        table.add_row(stage, f"{1e3 * seconds:.1f}")
    console = Console()
    console.print(table)
    for parameter, reason in report.skipped.items():
        console.print(f"not predicted: {parameter}: {reason}", highlight=False)
    if report.batch_statistics:
        console.print(
            f"{len(report.batch_statistics)} BatchNorm layers use batch statistics from now on"
        )
