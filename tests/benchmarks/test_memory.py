from __future__ import annotations

import pytest
from suite.memory import added_part

# Part of its own size that a prediction may add to a network.
MOST = 0.05


@pytest.mark.extension
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prediction_needs_little_memory(dtype: str) -> None:
    """134 million parameters; the memory that a prediction takes hardly grows with the network."""
    pytest.importorskip("resource")
    found = added_part(dtype, layers=2)
    assert found["skipped"] == 0
    assert found["parameters"] > 1.3e8
    assert found["part"] <= MOST
