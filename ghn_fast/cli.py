"""The command ``ghn-fast``."""

from __future__ import annotations

import os
import sys

import typer

from ghn_fast.commands import (
    deepnets,
    demo,
    evaluation,
    finetune,
    pictures,
    prediction,
    sgd,
    training,
)
from ghn_fast.commands.common import INTERRUPTED

app = typer.Typer(
    name="ghn-fast",
    help="Graph hypernetworks: predict all parameters of a network in one forward pass.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def doctor() -> None:
    """Print versions, devices, compiled back ends, and which back end each op uses."""
    from ghn_fast.commands.doctor import report

    typer.echo(report())


# In the order of the help.
for command in (
    evaluation.evaluate,
    prediction.predict,
    pictures.draw,
    demo.demo,
    doctor,
    training.train,
    training.report,
    sgd.sgd,
    finetune.finetune,
):
    app.command()(command)
app.add_typer(deepnets.app, name="deepnets")

# Libraries put whole backtraces into their messages.
_LONGEST = 300


def main() -> None:
    """Run the command line; mistakes end with one line and status 2."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        if os.environ.get("GHN_FAST_DEBUG"):
            raise
        typer.echo(f"ghn-fast: error: {_one_line(error)}", err=True)
        sys.exit(2)


def _one_line(error: Exception) -> str:
    """What went wrong; for anything but a mistake that the package names, its kind too."""
    text = " ".join(str(error).split())
    if isinstance(error, (ValueError, TypeError, OSError, ModuleNotFoundError)) and text:
        return text
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]} ..."
    return f"{type(error).__name__}: {text} (GHN_FAST_DEBUG=1 shows where)"


if __name__ == "__main__":
    main()
