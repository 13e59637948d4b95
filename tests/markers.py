"""Marks that several tests share."""

from __future__ import annotations

import pytest

from ghn_fast.ops.backend import extension_problem

_PROBLEM = extension_problem()
needs_extension = pytest.mark.skipif(
    _PROBLEM is not None, reason=f"the compiled ops are not here: {_PROBLEM}"
)
