"""The table of docs/graphs.md that says what of known networks is predicted.

``GHN_FAST_ZOO_TABLE=docs/graphs.md pytest -m zoo tests/zoo`` writes the rows of the collections
that it ran; rows of others stay as they are.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from pathlib import Path

BEGIN = "<!-- coverage table, written by tests/zoo -->"
END = "<!-- end of coverage table -->"
_HEAD = (
    "| collection | networks | captured | tensors | predicted | % | tables kept | frozen | others "
    "kept | % without tables and frozen |"
)


@dataclass
class Row:
    """One collection of networks.

    Attributes:
        collection: Its name, with its version.
        networks: Networks that were tried.
        captured: Networks whose graph was captured.
        tensors: Parameter tensors of the captured networks.
        predicted: Of them, those that are predicted.
        tables: Those that are read by index, or are summands for positions or for pairs of them.
        frozen: Those that are frozen in a network with trainable ones.
    """

    collection: str
    networks: int = 0
    captured: int = 0
    tensors: int = 0
    predicted: int = 0
    tables: int = 0
    frozen: int = 0

    def count(self, predicted: int, kept: dict[str, str]) -> None:
        """Add a captured network.

        Args:
            predicted: Number of its predicted tensors.
            kept: Name of each other tensor, to the reason.
        """
        self.captured += 1
        self.tensors += predicted + len(kept)
        self.predicted += predicted
        frozen = sum("frozen" in reason for reason in kept.values())
        self.tables += sum("table" in r and "frozen" not in r for r in kept.values())
        self.frozen += frozen

    def line(self) -> str:
        """The row in the table."""
        meant = self.tensors - self.tables - self.frozen
        cells = (
            self.collection,
            self.networks,
            self.captured,
            self.tensors,
            self.predicted,
            _percent(self.predicted, self.tensors),
            self.tables,
            self.frozen,
            meant - self.predicted,
            _percent(self.predicted, meant),
        )
        return f"| {' | '.join(map(str, cells))} |"

    @classmethod
    def read(cls, line: str) -> Row:
        """The row of a line of the table."""
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) != _HEAD.count("|") - 1:
            raise ValueError(f"coverage table: got a row of {len(cells)} cells: {line}")
        numbers = [int(cells[place]) for place in (1, 2, 3, 4, 6, 7)]
        row = cls(cells[0], *numbers)
        if row.line() != line.strip():
            raise ValueError(f"coverage table: got {line.strip()}, needs {row.line()}")
        return row


def total(rows: list[Row]) -> Row:
    """The sums of all rows."""
    sums = [sum(column) for column in zip(*(astuple(row)[1:] for row in rows), strict=True)]
    return Row("all", *sums) if rows else Row("all")


def read_table(text: str) -> list[Row]:
    """The rows of the table in a text, without their sum.

    Raises:
        ValueError: If there is not exactly one table, or it is not what would be written.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError("coverage table: needs one pair of marks")
    block = text.partition(BEGIN)[2].partition(END)[0]
    lines = [line for line in block.splitlines() if line.startswith("|")]
    rows = [Row.read(line) for line in lines[2:]]
    if render(rows[:-1]) != BEGIN + block + END:
        raise ValueError("coverage table: its head, order or sum is not what is written")
    return rows[:-1]


def render(rows: list[Row]) -> str:
    """The table with its marks."""
    rule = "|" + "---|" * (_HEAD.count("|") - 1)
    rows = sorted(rows, key=lambda row: row.collection)
    lines = [row.line() for row in (*rows, total(rows))]
    return "\n".join((BEGIN, "", _HEAD, rule, *lines, "", END))


def write_table(path: Path, rows: list[Row]) -> None:
    """Put rows into the table of a file; they replace those of the same collection.

    A collection is told by its name without the version.
    """
    text = path.read_text()
    names = {row.collection.split()[0] for row in rows}
    others = [row for row in read_table(text) if row.collection.split()[0] not in names]
    before, _, rest = text.partition(BEGIN)
    path.write_text(before + render(others + rows) + rest.partition(END)[2])


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f}" if whole else "-"
