"""The table of coverage in the docs is one that the zoo job wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
from coverage_table import BEGIN, END, Row, read_table, render, total, write_table

DOCS = Path(__file__).resolve().parents[2] / "docs" / "graphs.md"
ROWS = [Row("a 1.0", 3, 2, 20, 15, 4, 1), Row("b 2.1", 1, 1, 10, 10)]


def test_the_table_of_the_docs_is_read_back() -> None:
    text = DOCS.read_text()
    rows = read_table(text)
    assert rows
    assert render(rows) in text
    assert all(0 <= row.captured <= row.networks for row in rows)
    assert all(row.predicted + row.tables + row.frozen <= row.tensors for row in rows)


def test_rows_are_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"before\n{render(ROWS)}\nafter\n")
    assert read_table(path.read_text()) == ROWS
    write_table(path, [Row("a 1.1", 3, 3, 30, 30)])
    assert read_table(path.read_text()) == [Row("a 1.1", 3, 3, 30, 30), ROWS[1]]
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    assert "| all | 4 | 4 | 40 | 40 | 100.00 | 0 | 0 | 0 | 100.00 |" in text


def test_networks_are_counted() -> None:
    row = Row("a", 2)
    row.count(5, {"w": "a table that is read by index", "f": "it is frozen", "g": "a number"})
    assert row == Row("a", 2, 1, 8, 5, 1, 1)
    assert row.line() == "| a | 2 | 1 | 8 | 5 | 62.50 | 1 | 1 | 1 | 83.33 |"
    assert total([row, row]) == Row("all", 4, 2, 16, 10, 2, 2)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("| 75.00 |", "| 76.00 |"),
        lambda text: text.replace("| 15 |", "| 16 |"),
        lambda text: text.replace(END, ""),
        lambda text: text.replace(BEGIN, ""),
        lambda text: text.replace("| networks", "| nets"),
    ],
)
def test_a_table_that_was_changed_by_hand_is_found(change: object) -> None:
    text = render(ROWS)
    assert change(text) != text  # type: ignore[operator]
    with pytest.raises(ValueError, match="coverage table"):
        read_table(change(text))  # type: ignore[operator]
