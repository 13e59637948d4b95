"""Errors on one line."""

from __future__ import annotations

import pytest

from ghn_fast.utils.errors import one_line


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("a:\n  b"), "ValueError: a: b"),
        (RuntimeError(), "RuntimeError"),
        (KeyError("x"), "KeyError: 'x'"),
    ],
)
def test_kind_and_message(error: Exception, text: str) -> None:
    assert one_line(error) == text
