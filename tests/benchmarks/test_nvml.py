"""GPU discipline with an NVML of our own: what is read around a sample, and what it means."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import bench
import pytest
import torch
from suite import cases, nvml


class FakeNVML:
    """One GPU, whose reasons are read one after the other."""

    NVML_CLOCK_SM = 1

    def __init__(self, bits: list[int]) -> None:
        self.bits = bits
        self.started = 0
        self.asked: list[str] = []

    def nvmlInit(self) -> None:
        self.started += 1

    def nvmlDeviceGetHandleByUUID(self, name: str) -> str:
        self.asked.append(name)
        return name

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:
        return self.bits.pop(0)

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        return 1980


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(*bits: int, names: tuple[str, ...] = ()) -> FakeNVML:
        made = FakeNVML(list(bits))
        monkeypatch.setitem(sys.modules, "pynvml", made)  # type: ignore[arg-type]
        nvml.library.cache_clear()
        return made

    properties = SimpleNamespace(uuid="1234-abcd")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    yield install
    nvml.library.cache_clear()


def test_what_slows_the_gpu_before_or_after_a_sample_is_named(fake: Any) -> None:
    # Idle, and clocks set by an application, are no reasons.
    library = fake(0x1 | 0x2, 0x0)
    with nvml.watch("cuda") as state:
        assert state.reasons == []
    assert (state.reasons, state.clock) == ([], 1980)
    assert library.asked == ["GPU-1234-abcd"]
    fake(0x4, 0x4 | 0x40)
    with nvml.watch("cuda") as state:
        pass
    assert state.reasons == ["power cap", "thermal slowdown (hardware)"]


def test_older_bindings_have_another_name(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(0x8, 0x8)
    read = FakeNVML.nvmlDeviceGetCurrentClocksEventReasons
    monkeypatch.delattr(FakeNVML, "nvmlDeviceGetCurrentClocksEventReasons")
    monkeypatch.setattr(FakeNVML, "nvmlDeviceGetCurrentClocksThrottleReasons", read, raising=False)
    with nvml.watch("cuda") as state:
        pass
    assert state.reasons == ["hardware slowdown"]


def test_without_nvml_or_a_gpu_nothing_is_known(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    library = fake()
    with nvml.watch("cpu") as state:
        pass
    assert (state.reasons, state.clock, library.started) == ([], None, 0)
    monkeypatch.setitem(sys.modules, "pynvml", None)  # type: ignore[arg-type]
    nvml.library.cache_clear()
    with nvml.watch("cuda") as state:
        pass
    assert (state.reasons, state.clock) == ([], None)


def test_the_line_for_ncu_runs_the_case(capsys: pytest.CaptureFixture[str]) -> None:
    case = next(c for c in cases.guarded_cases() if c.device == "cuda")
    assert bench.main(["profile", case.name]) == 0
    line = capsys.readouterr().out
    assert line.startswith("ncu --set full") and "--profile-from-start off" in line
    assert f'"{case.name}" --run' in line
    if not torch.cuda.is_available():
        assert bench.main(["profile", case.name, "--run"]) == 2
        assert "no CUDA device" in capsys.readouterr().err


def test_cold_cases_are_apart_from_warm_ones() -> None:
    cold = [case for case in cases.all_cases() if case.cache == "cold"]
    assert {case.device for case in cold} == {"cpu", "cuda"}
    assert all(case.name.endswith(", cold)") for case in cold)
