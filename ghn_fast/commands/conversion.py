"""``convert``: a published checkpoint in our layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ghn_fast.commands.common import check_out


def convert(
    checkpoint: Annotated[
        str, typer.Argument(help="A published file, or owner/name on the Hugging Face Hub.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    filename: Annotated[
        str | None, typer.Option(help="File of the repository, for example ghn3xlm16.pt.")
    ] = None,
) -> None:
    """Write a published checkpoint as config.json and model.safetensors."""
    from ghn_fast.hypernet import from_pretrained, save_pretrained

    check_out(out)
    ghn = from_pretrained(checkpoint, filename=filename)
    save_pretrained(ghn, out)
    numel = sum(parameter.numel() for parameter in ghn.parameters())
    typer.echo(f"written: {out} ({ghn.config.propagator}, {numel:,} weights)")
