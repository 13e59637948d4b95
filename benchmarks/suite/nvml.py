"""What a GPU did while it was measured: its clock, and what kept the clock down (NVML).

NVML is read through the package nvidia-ml-py, where it is installed; without it, or on a CPU,
nothing is known and nothing is dropped.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

# Bits of nvmlClocksEventReasons (nvml.h) that slow a kernel down for reasons that are not its own.
# An idle GPU, clocks set by the user and clocks set by an application are none of them.
SLOWING = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal slowdown (software)",
    0x40: "thermal slowdown (hardware)",
    0x80: "power brake",
}


@dataclass
class State:
    """What is known of the time in which a sample was taken.

    Attributes:
        reasons: What slowed the GPU down before or after the sample.
        clock: Clock of the multiprocessors after the sample, in MHz; ``None`` if it is not known.
    """

    reasons: list[str] = field(default_factory=list)
    clock: int | None = None


@functools.cache
def library() -> Any:
    """The NVML bindings, initialised; ``None`` where there are none or no driver answers."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:
        return None
    return nvml


def handle(nvml: Any) -> Any:
    """The GPU that torch uses: looked up by its UUID, since NVML counts devices in its own way."""
    import torch

    name = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    return nvml.nvmlDeviceGetHandleByUUID(name if name.startswith("GPU-") else f"GPU-{name}")


def reasons(nvml: Any, device: Any) -> list[str]:
    """Name what slows a GPU down at this moment."""
    # The older name of the same function, for older bindings.
    read = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
    read = read or nvml.nvmlDeviceGetCurrentClocksThrottleReasons
    bits = read(device)
    return [name for bit, name in SLOWING.items() if bits & bit]


@contextmanager
def watch(device: str) -> Iterator[State]:
    """Look at the GPU before and after a sample; what is found is there after the block."""
    state = State()
    nvml = library() if device == "cuda" else None
    if nvml is None:
        yield state
        return
    gpu = handle(nvml)
    before = reasons(nvml, gpu)
    yield state
    state.reasons = list(dict.fromkeys([*before, *reasons(nvml, gpu)]))
    state.clock = int(nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM))
