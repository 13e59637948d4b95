"""Errors as text, where one of many tasks fails and the others go on."""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """The kind of an error and its message, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
