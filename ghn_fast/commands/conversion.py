"""``convert``: a published checkpoint in our layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ghn_fast.commands.common import check_out
from ghn_fast.commands.output import say


def convert(
    checkpoint: Annotated[
        str, typer.Argument(help="A published file, or owner/name on the Hugging Face Hub.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    filename: Annotated[
        str | None, typer.Option(help="File of the repository, for example ghn3xlm16.pt.")
    ] = None,
) -> dict[str, Any]:
    """Write a published checkpoint as config.json and model.safetensors."""
    from ghn_fast.hypernet import from_pretrained, save_pretrained

    check_out(out)
    ghn = from_pretrained(checkpoint, filename=filename)
    save_pretrained(ghn, out)
    numel = sum(parameter.numel() for parameter in ghn.parameters())
    say(f"written: {out} ({ghn.config.propagator}, {numel:,} weights)")
    return {"out": out, "weights": numel, "config": ghn.config.to_dict()}
