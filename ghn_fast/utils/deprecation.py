"""Names that go away: they warn for a while, and say what to use."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

DEPRECATED: list[tuple[str, str]] = []
"""What is deprecated, and the version that no longer has it: a test sees when that is reached."""


def deprecated(
    instead: str, *, since: str, removed_in: str
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a function or method as one that goes away.

    Args:
        instead: What to use, as in ``"ghn.predict(model)"``.
        since: The first version that warns.
        removed_in: The version that no longer has it.

    Returns:
        A decorator. Calls warn with a DeprecationWarning at the caller's line.
    """

    def mark(function: Callable[P, R]) -> Callable[P, R]:
        name = f"{function.__module__}.{function.__qualname__}"
        DEPRECATED.append((name, removed_in))
        text = f"{name} is deprecated since {since} and goes away in {removed_in}; use {instead}"

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            warnings.warn(text, DeprecationWarning, stacklevel=2)
            return function(*args, **kwargs)

        call.__doc__ = (
            f"{inspect.getdoc(function) or ''}\n\nDeprecated since {since}: use {instead}."
        )
        return call

    return mark


def renamed_arguments(
    *, since: str, removed_in: str, **new_names: str
) -> Callable[[Callable[P, R]], Callable[..., R]]:
    """Let a function take arguments by the names that they had.

    Args:
        since, removed_in: As in :func:`deprecated`.
        new_names: Former name to the name of today.

    Raises:
        TypeError: By the function, if an argument is given under both names.
    """

    def mark(function: Callable[P, R]) -> Callable[..., R]:
        name = f"{function.__module__}.{function.__qualname__}"
        DEPRECATED.extend((f"{name}({former})", removed_in) for former in new_names)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> R:
            for former, new in new_names.items():
                if former not in kwargs:
                    continue
                if new in kwargs:
                    raise TypeError(f"{name}: got {new} and {former}, its former name; needs one")
                warnings.warn(
                    f"{name}: the argument {former} is called {new} since {since}; the former name "
                    f"goes away in {removed_in}",
                    DeprecationWarning,
                    stacklevel=2,
                )
                kwargs[new] = kwargs.pop(former)
            return function(*args, **kwargs)

        return call

    return mark
