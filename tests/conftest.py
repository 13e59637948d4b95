"""Fixtures that every room's tests share: seeds, devices, NaN-filled memory, published numbers."""

from __future__ import annotations

import ctypes
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from command_line import Run
from ghn_fast.ops.backend import extension_problem, library_file, library_problem

ROOT = Path(__file__).resolve().parent.parent
SEED = 0


def why_no_cuda() -> str | None:
    """The reason why CUDA tests cannot run here, or None where they can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    if not torch.cuda.is_available():
        return "CUDA finds no device, or no driver that fits this torch"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked cuda, library or extension where that is not there, and say why."""
    library, extension = library_problem(), extension_problem()
    without = {
        "cuda": why_no_cuda(),
        "library": library and f"the compiled ops are not here: {library}",
        "extension": extension and f"what is compiled for one torch is not here: {extension}",
    }
    for marker, reason in without.items():
        for item in items if reason else ():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def seeded() -> int:
    """Seed torch, NumPy and random before every test; the seed, for generators of its own."""
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    return SEED


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device in turn; the test is skipped on one that is not there."""
    return torch.device(request.param)


@pytest.fixture
def nan_empty() -> Iterator[None]:
    """Fill fresh memory with NaN (integers: their maximum), in Python and in C++ alike.

    An op that leaves a part of its output unwritten then shows. torch does this in deterministic
    mode only; ops without a deterministic version warn rather than fail.
    """
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    file = library_file()
    library = None if library_problem() or file is None else ctypes.CDLL(os.fspath(file))
    if library is not None:
        library.ghn_fast_fill_new_memory(ctypes.c_bool(True))
    yield
    if library is not None:
        library.ghn_fast_fill_new_memory(ctypes.c_bool(False))
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    torch.utils.deterministic.fill_uninitialized_memory = before[2]


def find_fixtures() -> Path:
    """The folder with all published numbers; the test that asks is skipped where there is none."""
    named = os.environ.get("GHN_FAST_FIXTURES")
    if named:
        if not Path(named).is_dir():
            pytest.fail(f"GHN_FAST_FIXTURES is {named!r}, which is not a directory")
        return Path(named)
    beside = ROOT.parent / "shared" / "fixtures"
    if not beside.is_dir():
        pytest.skip(
            "the full set of published numbers is not here: GHN_FAST_FIXTURES is not set, and "
            "there is no ../shared/fixtures"
        )
    return beside


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """All published numbers: $GHN_FAST_FIXTURES, or shared/fixtures beside the repository."""
    return find_fixtures()


@pytest.fixture(scope="session")
def small_fixtures_dir() -> Path:
    """The subset of the published numbers that the repository carries."""
    return ROOT / "tests" / "fixtures"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command with arguments; returns exit status, standard output, standard error."""
    from ghn_fast import cli

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ghn-fast", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setenv("NO_COLOR", "1")
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return status, captured.out, captured.err

    return call
