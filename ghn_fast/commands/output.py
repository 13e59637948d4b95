"""What commands print: words and tables for people, or one JSON object for programs.

A command prints with :func:`say` and :func:`print_table`, and returns a dict of what it did.
:func:`with_json` gives it the option ``--json``, by which the dict is printed and nothing else.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ghn_fast.utils.json_files import to_json

_OPTION = "as_json"
_for_programs: ContextVar[bool] = ContextVar("for_programs", default=False)


class UnfinishedError(Exception):
    """A command ends before its work is done, with what it has.

    Args:
        result: As a command returns it.
        status: Exit status, not 0.
    """

    def __init__(self, result: dict[str, Any], status: int) -> None:
        super().__init__(f"ended with status {status}")
        self.result = result
        self.status = status


def with_json(command: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    """The command with an option ``--json``."""
    option = Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of words and tables.")
    ]

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        token = _for_programs.set(kwargs.pop(_OPTION, False))
        status = 0
        try:
            result = command(*args, **kwargs)
        except UnfinishedError as end:
            result, status = end.result, end.status
        finally:
            programs = _for_programs.get()
            _for_programs.reset(token)
        if programs:
            typer.echo(to_json(result, indent=2))
        if status:
            raise typer.Exit(status)

    hints = get_type_hints(command, include_extras=True)
    signature = inspect.signature(command)
    own = [
        parameter.replace(annotation=hints.get(parameter.name, parameter.annotation))
        for parameter in signature.parameters.values()
    ]
    more = inspect.Parameter(
        _OPTION, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=option
    )
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*own, more], return_annotation=None
    )
    run.__annotations__ = {**hints, _OPTION: option, "return": None}
    return run


def say(text: str) -> None:
    """Print a line for people."""
    if not _for_programs.get():
        typer.echo(text)


def say_written(paths: Sequence[Path]) -> None:
    """Name the files that were written."""
    *first, last = map(str, paths)
    say(f"written: {', '.join(first)} and {last}" if first else f"written: {last}")


def make_console() -> Any:
    """A console of rich for people, as wide as the terminal; it prints nothing for programs."""
    from rich.console import Console

    return Console(quiet=_for_programs.get())


def print_table(renderable: Any) -> None:
    """Print what ``rich`` renders, for people."""
    make_console().print(renderable)
