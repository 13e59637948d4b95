"""docs/architecture.md speaks of files that exist, and of every room."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text()
PATHS = sorted(
    set(re.findall(r"`((?:ghn_fast|csrc|kernels|tests|benchmarks|docs)/[^`\s]*)`", PAGE))
)
NAMED = [path for path in PATHS if "X" not in Path(path).name]
# Where a file of a new name goes, the folder exists.
PLACES = sorted({str(Path(path).parent) for path in PATHS if "X" in Path(path).name})


@pytest.mark.parametrize("path", [*NAMED, *PLACES])
def test_the_paths_exist(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("word", re.findall(r"`(\w+)` in `([^`]+)`", PAGE), ids=lambda w: w[0])
def test_the_functions_are_where_the_page_says(word: tuple[str, str]) -> None:
    name, path = word
    assert re.search(rf"^(?:def|class) {name}\b", (ROOT / path).read_text(), re.M)


def test_every_room_is_in_the_table() -> None:
    rooms = {p.parent.name for p in (ROOT / "ghn_fast").glob("*/__init__.py")} - {"kernels"}
    assert {f"ghn_fast/{room}/" for room in rooms} <= set(PATHS)


def test_ten_changes_are_listed() -> None:
    table = PAGE.partition("## Where something new belongs")[2]
    rows = [line for line in table.splitlines() if line.startswith("| a")]
    assert len(rows) >= 10
    assert all(re.search(r"`[\w/]+[./]", row) for row in rows)
