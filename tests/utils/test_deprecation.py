"""What goes away warns at the caller's line, and is gone when it was said to be."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path

import pytest

from ghn_fast._version import __version__
from ghn_fast.utils import deprecation
from ghn_fast.utils.deprecation import deprecated, renamed_arguments


def release(version: str) -> tuple[int, ...]:
    """The numbers of a version."""
    return tuple(int(part) for part in version.split(".")[:3] if part.isdecimal())


@pytest.fixture(autouse=True)
def unlisted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests mark is no part of the package."""
    monkeypatch.setattr(deprecation, "DEPRECATED", [])


def test_a_deprecated_function_warns_and_works() -> None:
    @deprecated("new()", since="0.1", removed_in="0.3")
    def old(value: int) -> int:
        """Double it."""
        return 2 * value

    with pytest.warns(
        DeprecationWarning, match=r"since 0.1 and goes away in 0.3; use new\(\)"
    ) as w:
        assert old(4) == 8
    assert w[0].filename == __file__
    assert old.__name__ == "old"
    assert (old.__doc__ or "").startswith("Double it.")


def test_renamed_arguments() -> None:
    @renamed_arguments(since="0.1", removed_in="0.3", size="image_size")
    def build(image_size: int = 1) -> int:
        return image_size

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build(image_size=3) == 3
    with pytest.warns(DeprecationWarning, match="size is called image_size since 0.1"):
        assert build(size=3) == 3
    with pytest.raises(TypeError, match="image_size and size, its former name"):
        build(size=3, image_size=3)


def test_nothing_stays_longer_than_it_was_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    root = Path(deprecation.__file__).parents[1]
    using = [p for p in root.rglob("*.py") if "utils.deprecation import" in p.read_text()]
    for path in using:
        parts = path.relative_to(root.parent).with_suffix("").parts
        importlib.import_module(".".join(part for part in parts if part != "__init__"))
    late = [name for name, end in deprecation.DEPRECATED if release(end) <= release(__version__)]
    assert not late
