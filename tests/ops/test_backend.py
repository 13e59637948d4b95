from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator

import pytest

import ghn_fast
from ghn_fast.commands import doctor
from ghn_fast.ops import backend


@pytest.fixture
def ops(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two ops: one with everything, one whose compiled back ends cannot run."""
    monkeypatch.delenv(backend.VARIABLE, raising=False)
    monkeypatch.setattr(backend, "_implementations", {})
    monkeypatch.setattr(backend, "_on_host", set())
    monkeypatch.setattr(backend, "_warned", False)
    backend.register_op("all", dict.fromkeys(("cpu", "cuda", "triton"), lambda: None))
    backend.register_op("none", {"cpu": lambda: "not compiled", "cuda": lambda: "no device"})
    yield


def test_auto_takes_the_fastest_that_can_run(ops: None) -> None:
    assert backend.resolve("all", "cpu") == "cpu"
    assert backend.resolve("all", "cuda") == "cuda"
    assert backend.resolve("all", "mps") == "reference"


def test_an_op_on_the_host_takes_no_notice_of_other_devices(ops: None) -> None:
    backend.register_op("host", {"cpu": lambda: None}, on_host=True)
    for device in ("cpu", "cuda"):
        assert backend.resolve("host", device) == "cpu"
        for name in ("cuda", "triton"):
            with ghn_fast.backend(name):
                assert backend.resolve("host", device) == "cpu"
        with ghn_fast.backend("reference"):
            assert backend.resolve("host", device) == "reference"
    backend.register_op("host", {"cpu": lambda: "not compiled"}, on_host=True)
    with ghn_fast.backend("cpu"), pytest.raises(ValueError, match="not compiled"):
        backend.resolve("host", "cpu")


def test_a_missing_extension_is_one_warning(ops: None) -> None:
    with pytest.warns(RuntimeWarning, match="not compiled"):
        assert backend.resolve("none", "cpu") == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backend.resolve("none", "cpu") == "reference"


def test_the_reference_is_no_surprise_where_it_was_asked_for(ops: None) -> None:
    with warnings.catch_warnings(), ghn_fast.backend("reference"):
        warnings.simplefilter("error")
        assert backend.resolve("none", "cpu") == "reference"


def test_the_innermost_with_wins(ops: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backend.VARIABLE, "triton")
    assert backend.requested() == "triton"
    with ghn_fast.backend("cpu"):
        with ghn_fast.backend("reference"):
            assert backend.resolve("all", "cpu") == "reference"
        with ghn_fast.backend("auto"):
            assert backend.resolve("all", "cuda") == "cuda"
        assert backend.resolve("all", "cpu") == "cpu"
    assert backend.requested() == "triton"


def test_other_threads_do_not_see_it(ops: None) -> None:
    seen = []
    with ghn_fast.backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(backend.resolve("all", "cpu")))
        thread.start()
        thread.join()
        assert backend.resolve("all", "cpu") == "reference"
    assert seen == ["cpu"]


@pytest.mark.parametrize(
    ("op", "name", "device", "reason"),
    [
        ("none", "cpu", "cpu", "not compiled; available are auto, reference"),
        ("none", "triton", "cuda", "no such implementation"),
        ("all", "cuda", "cpu", "for other devices; available are auto, reference, cpu"),
        ("all", "cpu", "cuda", "for other devices; available are auto, reference, cuda, triton"),
    ],
)
def test_what_is_asked_for_and_cannot_run_raises(
    ops: None, op: str, name: str, device: str, reason: str
) -> None:
    with ghn_fast.backend(name), pytest.raises(ValueError, match=reason):
        backend.resolve(op, device)


def test_unknown_names_raise(ops: None, monkeypatch: pytest.MonkeyPatch) -> None:
    message = "got 'cpp', needs one of auto, reference, cpu, cuda"
    with pytest.raises(ValueError, match=message), ghn_fast.backend("cpp"):
        pass
    monkeypatch.setenv(backend.VARIABLE, "fast")
    with pytest.raises(ValueError, match="GHN_FAST_BACKEND: got 'fast'"):
        backend.resolve("all", "cpu")
    with pytest.raises(ValueError, match="backends: got 'cpp'"):
        backend.register_op("op", {"cpp": lambda: None})


def test_an_extension_for_another_torch_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Module:
        torch_version = "1.2.3"

    monkeypatch.setattr(backend.importlib, "import_module", lambda name: Module)
    assert "compiled for torch 1.2.3" in (backend._load_extension().problem or "")

    def broken(name: str) -> None:
        raise ImportError("undefined symbol: x")

    monkeypatch.setattr(backend.importlib, "import_module", broken)
    assert "undefined symbol: x" in (backend._load_extension().problem or "")


def test_the_command_doctor_prints_it() -> None:
    from typer.testing import CliRunner

    from ghn_fast.cli import app

    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    assert "gated_gnn on cpu: " in result.output


def test_the_doctor_says_what_every_op_uses(ops: None, monkeypatch: pytest.MonkeyPatch) -> None:
    text = doctor.report()
    assert "all on cpu: cpu" in text
    assert "none on cpu: reference (back end 'cpu': not compiled)" in text
    monkeypatch.setenv(backend.VARIABLE, "cpu")
    assert "none on cpu: cpu is asked for and cannot run: not compiled" in doctor.report()
    monkeypatch.setenv(backend.VARIABLE, "fast")
    assert "got 'fast'" in doctor.report()
