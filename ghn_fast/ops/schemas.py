"""Whether a compiled library has the ops that the sources beside it declare."""

from __future__ import annotations

import re
from pathlib import Path

import torch

# m.def("name(arguments)" " -> results"), the text in one piece or several.
_DEFINITION = re.compile(r'm\.def\(\s*((?:"[^"]*"\s*)+)\)')
_LIBRARY = re.compile(r"TORCH_LIBRARY\w*\(ghn_fast,")


def other_schema(source: Path) -> str | None:
    """The first op that is registered otherwise than a file of C++ declares it, ``None`` if none.

    That is so in a checkout whose sources are newer than what was compiled of them. An installed
    package has no sources beside it, and then nothing to compare with.

    Args:
        source: The file with the ``m.def`` of the library's ops.
    """
    try:
        text = source.read_text(encoding="utf-8")
    except OSError:
        return None
    if not _LIBRARY.search(text):
        return None
    for pieces in _DEFINITION.findall(text):
        declared = "ghn_fast::" + "".join(re.findall(r'"([^"]*)"', pieces))
        name = declared.partition("(")[0]
        registered = torch._C._jit_get_schemas_for_operator(name)
        if [str(torch._C.parse_schema(declared))] != [str(schema) for schema in registered]:
            return name.removeprefix("ghn_fast::")
    return None
