from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import ghn_fast
from ghn_fast.commands import doctor
from ghn_fast.ops import backend, schemas
from ghn_fast.ops.schemas import other_schema
from ghn_fast.ops.shortest_distances import shortest_distances

ROOT = Path(__file__).parents[2]
needs_library = pytest.mark.skipif(
    backend.library_problem() is not None, reason="without the compiled ops"
)


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


DECLARED = """
#include <torch/library.h>
STABLE_TORCH_LIBRARY(ghn_fast, m) {{
  // A comment with "quotes".
  m.def("shortest_distances(Tensor edges, int num_nodes, int cutoff) -> Tensor");
  m.def(
      "gated_gnn_plan_to({plan}, Device device, bool pin=False)"
      " -> Tensor");{more}
}}
"""


@needs_library
@pytest.mark.parametrize(
    ("plan", "more", "found"),
    [
        ("Tensor plan", "", None),
        ("Tensor  plan ", "", None),
        ("Tensor? plan", "", "gated_gnn_plan_to"),
        ("Tensor plan, int one", "", "gated_gnn_plan_to"),
        ("Tensor plan", '\n  m.def("not_compiled_yet(Tensor x) -> Tensor");', "not_compiled_yet"),
    ],
)
def test_sources_that_are_newer_than_what_was_compiled(
    tmp_path: Path, plan: str, more: str, found: str | None
) -> None:
    (tmp_path / "ops.cpp").write_text(DECLARED.format(plan=plan, more=more))
    assert other_schema(tmp_path / "ops.cpp") == found


def test_sources_of_something_else_say_nothing(tmp_path: Path) -> None:
    assert other_schema(tmp_path / "ops.cpp") is None
    (tmp_path / "ops.cpp").write_text('TORCH_LIBRARY(other, m) { m.def("f(Tensor x) -> Tensor"); }')
    assert other_schema(tmp_path / "ops.cpp") is None


def test_every_definition_of_this_checkout_is_read() -> None:
    for source in ("ops.cpp", "aten/ops.cpp"):
        text = (ROOT / "csrc" / source).read_text()
        assert len(schemas._DEFINITION.findall(text)) == text.count("m.def(") > 3


@needs_library
def test_a_library_of_other_sources_is_not_used(tmp_path: Path) -> None:
    """A checkout whose schemas have changed since it was compiled says so, and computes slowly."""
    copy = tmp_path / "checkout"
    ignored = shutil.ignore_patterns("pretrained", "samples", "__pycache__")
    shutil.copytree(ROOT / "ghn_fast", copy / "ghn_fast", ignore=ignored)
    shutil.copytree(ROOT / "csrc", copy / "csrc")
    for source, op in (("ops.cpp", "shortest_distances"), ("aten/ops.cpp", "batch_norm_act")):
        path = copy / "csrc" / source
        path.write_text(path.read_text().replace(f'"{op}(', f'"{op}(int more, ', 1))
    program = """
import warnings, torch
import ghn_fast.ops.shortest_distances as op
from ghn_fast.ops import backend
for problem in (backend.library_problem(), backend.extension_problem()):
    print(problem)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    print(op.shortest_distances(torch.tensor([[0, 1]]), 2, 5).tolist())
print(caught[0].message)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    library, extension, result, warning = done.stdout.splitlines()
    assert "other sources than those in csrc (shortest_distances has another schema)" in library
    assert backend.extension_problem() is not None or "(batch_norm_act has another" in extension
    assert result == str(shortest_distances(torch.tensor([[0, 1]]), 2, 5).tolist())
    assert "compile again" in warning
