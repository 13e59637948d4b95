"""Reading files of JSON lines, which a running or a killed process may have cut off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_lines(path: Path, entry: str = "step") -> list[dict[str, Any]]:
    """All complete lines that have an entry; one cut off by a crash is left out.

    A file that is not there has none.
    """
    if not path.is_file():
        return []
    result = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(values, dict) and entry in values:
            result.append(values)
    return result
