"""Counts that are the same in every run: operator calls, launches, allocations, bytes moved.

- ``calls``: operators that Python or the autograd engine called, views included.
- ``moved_bytes``: size of what those operators read and wrote (views and tensors without memory
  left out), each distinct tensor of a call once.
- ``allocations``, ``allocated_bytes``: by torch's allocators of host and device, inside operators
  as well.
- ``launches``: kernels and CUDA graphs launched, copies and fills; on a GPU alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpy", "cudaMemset")
# What is made at the first calls and kept has been made after so many.
_WARM = 3


class _Calls(TorchDispatchMode):
    """Counts operator calls and the bytes of their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.moved_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls += 1
        if not func.is_view:
            tensors = {id(t): t for t in _tensors((args, kwargs or {}, out))}
            self.moved_bytes += sum(
                t.numel() * t.element_size() for t in tensors.values() if t.device.type != "meta"
            )
        return out


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(tuple(values.values()))


def count(run: Callable[[], Any], device: str) -> dict[str, int]:
    """Count what one call does, after warm-up calls; with one thread, for the same on each machine.

    Args:
        run: The call.
        device: ``cpu`` or ``cuda``.

    Raises:
        RuntimeError: If this process allocates memory by what torch's profiler does not see.
    """
    if not _profiled(lambda: torch.empty(1), "cpu")["allocations"]:
        raise RuntimeError(
            "allocations cannot be counted here: meta-training has installed the allocator that "
            "keeps freed memory; count in a process of its own"
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(_WARM):
            run()
        with _Calls() as seen:
            run()
        found = {"calls": seen.calls, "moved_bytes": seen.moved_bytes}
        return found | _profiled(run, device)
    finally:
        torch.set_num_threads(threads)


def _profiled(run: Callable[[], Any], device: str) -> dict[str, int]:
    on_gpu = device == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    if on_gpu:
        torch.cuda.synchronize()
    with profile(activities=activities, profile_memory=True) as profiler:
        run()
        if on_gpu:
            torch.cuda.synchronize()
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    sizes = [event.nbytes() for event in events if event.name() == "[memory]"]
    found = {
        "allocations": sum(size > 0 for size in sizes),
        "allocated_bytes": sum(size for size in sizes if size > 0),
    }
    if on_gpu:
        found["launches"] = sum(event.name().startswith(_LAUNCHES) for event in events)
    return found
