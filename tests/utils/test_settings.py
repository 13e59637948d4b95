"""Values that do not fit what a configuration declares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from ghn_fast.utils.settings import checked, shown


@dataclass(frozen=True)
class Settings:
    rate: float = 1.0
    sizes: tuple[int, ...] = ()
    name: str | None = None


def nested(depth: int) -> Any:
    """9 ** depth elements in a few hundred bytes: every list holds the one before it nine times."""
    value: Any = ["l"]
    for _ in range(depth):
        value = [value] * 9
    return value


@pytest.mark.parametrize("name", ["rate", "sizes", "name", "unknown"])
def test_nested_values_are_not_visited(name: str) -> None:
    with pytest.raises(ValueError, match=name) as error:
        checked(Settings, {name: nested(200)}, "setting")
    assert len(str(error.value)) < 1000


def test_short_values_are_shown_whole() -> None:
    assert shown("cosine") == "'cosine'"
    assert shown([1, 2]) == "[1, 2]"
    assert len(shown("x" * 10**6)) < 100


def test_names_of_any_type_are_unknown() -> None:
    with pytest.raises(ValueError, match="unknown setting 3, known are"):
        checked(Settings, {3: 1, "x": 2}, "setting")  # type: ignore[dict-item]
