"""Names inside the package: found where they are today, and where older revisions have them."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from suite import names


@pytest.mark.parametrize("name", names.PLACES)
def test_the_first_place_of_a_name_is_where_this_checkout_has_it(name: str) -> None:
    module = importlib.import_module(names.PLACES[name][0])
    assert names.find(name) is getattr(module, name)


def test_later_places_count_where_earlier_ones_have_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # No such module, no such package, a module without the name.
    places = ("ghn_fast.no_module", "no_package.module", "ghn_fast.utils.files", "pathlib")
    monkeypatch.setitem(names.PLACES, "Path", places[:2])
    with pytest.raises(ImportError, match=r"Path is in none of ghn_fast\.no_module, no_package"):
        names.find("Path")
    monkeypatch.setitem(names.PLACES, "PurePath", places)
    assert names.find("PurePath").__name__ == "PurePath"


def test_a_library_that_a_place_lacks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needs_library.py").write_text("import no_such_library")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(names.PLACES, "x", ("needs_library", "pathlib"))
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        names.find("x")
