"""The precision that ``auto`` stands for."""

from __future__ import annotations

import pytest
import torch

from ghn_fast.metatrain.executor import Executor
from ghn_fast.vision import precision

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with the compiled ops and all instructions."""
    monkeypatch.setattr(precision, "extension_problem", lambda: None)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    has = {"amx_bf16": True, "avx512_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    return monkeypatch


def test_bfloat16_where_the_processor_multiplies_it(machine: pytest.MonkeyPatch) -> None:
    assert precision.choose(CPU) == ("bf16", "the processor has AMX")
    machine.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert precision.choose(CPU) == ("bf16", "the processor has AVX512-BF16")
    assert Executor(precision="auto").precision == "bf16"


def test_float32_elsewhere(machine: pytest.MonkeyPatch) -> None:
    for name in ("AVX2", "DEFAULT"):
        machine.setattr(torch.backends.cpu, "get_cpu_capability", lambda name=name: name)
        assert precision.choose(CPU)[0] == "float32"
    machine.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    machine.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True})
    assert precision.choose(CPU)[0] == "float32"
    machine.setattr(precision, "extension_problem", lambda: "there is no compiler")
    assert precision.choose(CPU) == ("float32", "no compiled ops: there is no compiler")
    assert Executor(precision="auto").precision == "float32"
    assert Executor(precision="bf16").precision == "bf16"
