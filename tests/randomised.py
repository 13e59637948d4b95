"""hypothesis for tests of random inputs; where it is not installed, those tests alone are skipped.

A machine may have torch and pytest alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

try:
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st
except ImportError:

    class _Anything:
        """Whatever is asked of a strategy, another one."""

        def __getattr__(self, name: str) -> Any:
            return self

        def __call__(self, *arguments: Any, **named: Any) -> Any:
            return self

    def given(*arguments: Any, **named: Any) -> Callable[[Any], Any]:
        """A test that is skipped; pytest cannot give it the arguments of hypothesis."""

        def skipped(test: Any) -> Any:
            def nothing() -> None:
                pass

            nothing.__name__ = test.__name__
            return pytest.mark.skip(reason="hypothesis is not installed")(nothing)

        return skipped

    def settings(*arguments: Any, **named: Any) -> Callable[[Any], Any]:
        """Nothing to set."""
        return lambda test: test

    st = HealthCheck = _Anything()

__all__ = ["HealthCheck", "given", "settings", "st"]
