"""The shared fixtures do what other tests rely on."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

import conftest

draws: list[tuple[float, float, float]] = []


@pytest.mark.parametrize("run", [0, 1])
def test_every_test_starts_from_the_same_seeds(run: int) -> None:
    draws.append((random.random(), float(np.random.rand()), torch.rand(()).item()))
    assert draws.count(draws[0]) == len(draws)


def test_device_is_usable(device: torch.device) -> None:
    assert torch.ones(2, device=device).sum().item() == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_fresh_memory_is_nan(nan_empty: None, device: torch.device, dtype: torch.dtype) -> None:
    assert torch.empty(1000, dtype=dtype, device=device).isnan().all()
    assert torch.ones(10, dtype=dtype, device=device).new_empty(1000).isnan().all()


def test_fresh_memory_is_left_alone_without_the_fixture() -> None:
    assert not torch.are_deterministic_algorithms_enabled()


def test_published_numbers_are_found_through_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GHN_FAST_FIXTURES", str(tmp_path))
    assert conftest.find_fixtures() == tmp_path
    monkeypatch.setenv("GHN_FAST_FIXTURES", str(tmp_path / "nowhere"))
    with pytest.raises(pytest.fail.Exception, match="nowhere"):
        conftest.find_fixtures()


def test_published_numbers_are_found_beside_the_repository(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("GHN_FAST_FIXTURES", raising=False)
    monkeypatch.setattr(conftest, "ROOT", tmp_path / "repository")
    with pytest.raises(pytest.skip.Exception, match="GHN_FAST_FIXTURES is not set"):
        conftest.find_fixtures()
    (tmp_path / "shared" / "fixtures").mkdir(parents=True)
    assert conftest.find_fixtures() == tmp_path / "shared" / "fixtures"
