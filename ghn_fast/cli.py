"""The command ``ghn-fast``."""

from __future__ import annotations

import os
import sys

import typer

# Each module adds its subcommands to the application.
from ghn_fast.commands import deepnets, prediction, training
from ghn_fast.commands.common import INTERRUPTED, app

__all__ = ["INTERRUPTED", "app", "deepnets", "main", "prediction", "training"]


def main() -> None:
    """Run the command line; mistakes end with one line and status 2."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        if os.environ.get("GHN_FAST_DEBUG"):
            raise
        typer.echo(f"ghn-fast: error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
