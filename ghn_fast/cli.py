"""The command ``ghn-fast``."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from ghn_fast._version import __version__
from ghn_fast.commands import (
    conversion,
    deepnets,
    demo,
    detection,
    embeddings,
    evaluation,
    finetune,
    nasbench201,
    pictures,
    prediction,
    properties,
    publishing,
    search,
    sgd,
    splits,
    training,
)
from ghn_fast.commands.common import INTERRUPTED
from ghn_fast.commands.output import say, with_json
from ghn_fast.utils import logs

PROGRAM = "ghn-fast"

app = typer.Typer(
    name=PROGRAM,
    help="Graph hypernetworks: predict all parameters of a network in one forward pass.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    log_level: Annotated[
        str,
        typer.Option(
            "--log-level",
            envvar="GHN_FAST_LOG",
            help=f"What goes to standard error: {', '.join(logs.LEVELS)} and worse.",
        ),
    ] = "warning",
) -> None:
    """Graph hypernetworks: predict all parameters of a network in one forward pass."""
    logs.set_level(log_level)


def doctor() -> dict[str, Any]:
    """Print versions, devices, compiled back ends, and which back end each op uses."""
    from ghn_fast.commands.doctor import facts, words

    found = facts()
    say(words(found))
    return found


# In the order of the help.
for command in (
    evaluation.evaluate,
    splits.evaluate_splits,
    prediction.predict,
    prediction.models,
    conversion.convert,
    pictures.draw,
    demo.demo,
    doctor,
    training.train,
    training.report,
    publishing.publish,
    sgd.sgd,
    finetune.finetune,
    properties.properties,
    embeddings.embeddings,
    search.search,
    nasbench201.nasbench201,
    detection.detect,
):
    app.command()(with_json(command))
app.add_typer(deepnets.app, name="deepnets")

# Libraries put whole backtraces into their messages.
_LONGEST = 300


def main() -> None:
    """Run the command line; mistakes end with one line and status 2."""
    try:
        with logs.on_standard_error(PROGRAM):
            app(prog_name=PROGRAM)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        if os.environ.get("GHN_FAST_DEBUG"):
            raise
        typer.echo(f"{PROGRAM}: error: {_one_line(error)}", err=True)
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
