"""Tables of architectures with labels: accuracies, seconds, and what else was measured."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Labels:
    """A table with one row per architecture.

    Attributes:
        path: The file it is from.
        networks: Names of the architectures.
        columns: Name of each label to its values, ``None`` where one is missing.
    """

    path: str
    networks: tuple[str, ...]
    columns: dict[str, tuple[float | None, ...]]

    def column(self, name: str) -> dict[str, float]:
        """Architecture to value of a label; those without a value are left out.

        Raises:
            ValueError: If there is no such label, or it has no values.
        """
        if name not in self.columns:
            raise ValueError(
                f"label: got {name!r}, but {self.path} has {', '.join(self.columns) or 'none'}"
            )
        values = zip(self.networks, self.columns[name], strict=True)
        found = {network: value for network, value in values if value is not None}
        if not found:
            raise ValueError(f"label: {name} has no values in {self.path}")
        return found


def read_labels(path: str | Path) -> Labels:
    """Read a table of labels.

    Args:
        path: A CSV file with a column ``network`` and one for each label, as ``ghn-fast sgd``
            writes it; or JSON, a list of objects with the same fields. Fields that are no numbers
            are passed over. Of several rows of a network (starts, seeds) labels are averaged.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such table; the message says why.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"labels: no such file: {path}")
    try:
        if path.suffix == ".json":
            rows = json.loads(path.read_text())
        else:
            with open(path, newline="") as file:
                rows = list(csv.DictReader(file))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as a table ({error})") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: holds no rows, needs one per architecture")
    if any(not isinstance(row.get("network"), str) or not row["network"] for row in rows):
        raise ValueError(f"{path}: a row has no 'network', needs the name of its architecture")
    networks = tuple(dict.fromkeys(row["network"] for row in rows))
    names = [name for name in dict.fromkeys(k for row in rows for k in row) if name != "network"]
    columns = {}
    for name in names:
        sums: dict[str, list[float]] = {network: [] for network in networks}
        for row in rows:
            value = _number(row.get(name))
            if value is not None:
                sums[row["network"]].append(value)
        if any(sums.values()):
            columns[name] = tuple(
                math.fsum(values) / len(values) if values else None for values in sums.values()
            )
    return Labels(str(path), networks, columns)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
