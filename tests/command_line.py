"""The type of the fixture ``run``, which runs ``ghn-fast`` in the process of the tests."""

from __future__ import annotations

from collections.abc import Callable

# Takes arguments; returns exit status, standard output, standard error.
Run = Callable[..., tuple[int, str, str]]
