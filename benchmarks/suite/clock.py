"""The clocks: every time that the suite takes is taken here.

A time on a CPU is of the processor where two pieces of code are compared, so that other processes
do not add to it by taking turns, and of the clock on the wall where several threads or processes
work. On a GPU it is between two events of the stream. A *cold* time is of calls before each of
which the caches were filled with other data, outside of what is timed.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Run = Callable[[], Any]
# More than the last cache of the machines at hand; a GPU says how large its own is.
COLD_BYTES = 64 * 2**20
LEAST_SECONDS = 1e-7


def seconds(run: Run, calls: int = 1, device: str = "cpu", wall: bool = False) -> float:
    """Measure the mean seconds of one call of ``calls``, without collecting garbage meanwhile.

    Args:
        run: The call.
        calls: How often it is called.
        device: ``cpu`` or ``cuda``.
        wall: Whether to take the clock on the wall on a CPU, not that of the processor.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        if device == "cuda":
            return _events(run, calls)
        clock = time.perf_counter_ns if wall else time.process_time_ns
        begin = clock()
        for _ in range(calls):
            run()
        return max((clock() - begin) / 1e9 / calls, LEAST_SECONDS)
    finally:
        if collects:
            gc.enable()


def _events(run: Run, calls: int) -> float:
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return max(begin.elapsed_time(end) / 1e3 / calls, LEAST_SECONDS)


def stream_clock() -> Callable[[], float]:
    """Make a clock for asv: seconds of the current CUDA stream since the first reading."""
    import torch

    first = torch.cuda.Event(enable_timing=True)
    first.record()

    def read() -> float:
        now = torch.cuda.Event(enable_timing=True)
        now.record()
        now.synchronize()
        return float(first.elapsed_time(now)) / 1e3

    return read


def flusher(device: str) -> Run:
    """Make the function that fills the caches of a device with other data."""
    import torch

    size = COLD_BYTES
    if device == "cuda":
        size = max(size, 2 * torch.cuda.get_device_properties(0).L2_cache_size)
    other = torch.zeros(size // 4, device=device)
    return lambda: other.add_(1.0)


def cold_seconds(run: Run, flush: Run, calls: int = 1, device: str = "cpu") -> float:
    """Measure the mean seconds of a call that finds none of its data in a cache."""
    total = 0.0
    for _ in range(calls):
        flush()
        total += seconds(run, 1, device)
    return total / calls


def calls_for(run: Run, least: float, device: str = "cpu", wall: bool = False) -> int:
    """Find how many calls take ``least`` seconds together."""
    run()
    return max(1, round(least / seconds(run, 1, device, wall)))


def in_turn(
    runs: Mapping[str, Run], repeats: int, least: float, device: str = "cpu", wall: bool = False
) -> dict[str, list[float]]:
    """Measure several calls in turn, so that what disturbs one disturbs its neighbours.

    Returns:
        Seconds of a call by name, ``repeats`` of each; the samples of one turn are neighbours.
    """
    calls = {name: calls_for(run, least, device, wall) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(seconds(run, calls[name], device, wall))
    return times


def quartile(times: Sequence[float]) -> float:
    """The lower quartile: others only add to a time, and the least one is a matter of luck.

    Raises:
        ValueError: If there are no times.
    """
    if not times:
        raise ValueError("times: got none, needs at least one")
    return sorted(times)[(len(times) - 1) // 4]


def percentile(times: Sequence[float], percent: float) -> float:
    """The least time that ``percent`` of the times do not exceed.

    Raises:
        ValueError: If there are no times, or ``percent`` is not within 0 and 100.
    """
    if not times or not 0 <= percent <= 100:
        raise ValueError(f"got {len(times)} times and percent {percent:g}, needs some and 0 to 100")
    ordered = sorted(times)
    return ordered[max(math.ceil(len(ordered) * percent / 100), 1) - 1]


def spread(times: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and extremes, in seconds."""
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    return {"median": middle, "low": low, "high": high, "least": min(times), "most": max(times)}


def ratios(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """Median, least and largest ratio of neighbouring samples."""
    found = sorted(a / b for a, b in zip(slow, fast, strict=True))
    return {"median": statistics.median(found), "least": found[0], "most": found[-1]}
