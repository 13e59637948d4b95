"""``publish``: a hypernetwork with its model card, into a folder or on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ghn_fast.commands.common import check_out
from ghn_fast.commands.output import say


def publish(
    ckpt: Annotated[
        str, typer.Argument(help="Folder of a run, or name, folder or file of a hypernetwork.")
    ],
    repo: Annotated[
        str | None, typer.Option("--repo", help="owner/name on the Hugging Face Hub.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write to, instead or as well.")
    ] = None,
    report: Annotated[
        list[Path] | None,
        typer.Option(
            "--report", help="What `ghn-fast evaluate` wrote, a file or folder; repeatable."
        ),
    ] = None,
    license: Annotated[
        str | None, typer.Option("--license", help="Licence of the weights, for example mit.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a private repository.")] = False,
) -> dict[str, Any]:
    """Write a hypernetwork with a model card of its run's own results, or push it to the Hub."""
    from ghn_fast.hypernet import from_pretrained

    if repo is None and out is None:
        raise ValueError("--repo, --out: got neither, needs at least one of them")
    if out is not None:
        check_out(out)
    ghn = from_pretrained(ckpt)
    run = Path(ckpt).expanduser()
    card = {"run": run if run.is_dir() else None, "reports": report or [], "license": license}
    address = None
    if out is not None:
        ghn.save_pretrained(out, repo_id=repo, model_card_kwargs=card)
        say(f"written: {out}")
    if repo is not None:
        address = ghn.push_to_hub(repo, private=private or None, model_card_kwargs=card)
        say(f"pushed: {address}")
    return {"hypernetwork": ckpt, "out": out, "repo": repo, "address": address}
