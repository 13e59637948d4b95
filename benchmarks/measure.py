"""What the measurements share: clocks, statistics, targets, and what they were measured with."""

from __future__ import annotations

import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
COMMIT_VARIABLE = "GHN_FAST_COMMIT"
# What tells processors apart that have one name, as it is called here and by the system.
_NUMBERS = {"family": "cpu family", "model": "model"}


@dataclass(frozen=True)
class Measurement:
    """One figure and what it should reach.

    Attributes:
        name: What was measured.
        value: The figure; ``None`` if the case failed.
        unit: Its unit.
        at_least: Least value that meets the target, if it is to be large.
        at_most: Largest value that meets the target, if it is to be small.
        details: Spread, sizes, and whatever else was measured along with it.
        error: Why the case failed.
    """

    name: str
    value: float | None
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    details: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; ``None`` where there is none. A failed case meets none."""
        if self.value is None:
            return False
        if self.at_least is None and self.at_most is None:
            return None
        low = -math.inf if self.at_least is None else self.at_least
        return low <= self.value <= (math.inf if self.at_most is None else self.at_most)

    def to_dict(self) -> dict[str, Any]:
        """Turn the figure into plain values for JSON, with ``met``."""
        return {**asdict(self), "met": self.met}

    def line(self) -> str:
        """Write the figure for people, on one line."""
        if self.error is not None or self.value is None:
            return f"{self.name}: FAILED, {self.error}"
        aim = ""
        if self.at_least is not None:
            aim = f", target at least {self.at_least:g}"
        elif self.at_most is not None:
            aim = f", target at most {self.at_most:g}"
        return f"{self.name}: {self.value:.4g} {self.unit}{aim}" + (
            "" if self.met is None else ": met" if self.met else ": MISSED"
        )


def attempt(name: str, run: Callable[[], Sequence[Measurement]]) -> list[Measurement]:
    """Measure a case; if it fails, one measurement says why."""
    try:
        found = list(run())
        for measurement in found:
            if measurement.value is None or not math.isfinite(measurement.value):
                raise RuntimeError(f"{measurement.name} gave {measurement.value}")
        return found
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return [Measurement(name, None, "", error=" ".join(reason.split())[:500])]


def seconds(run: Callable[[], Any], least: float) -> float:
    """Measure one call: the mean over as many as take ``least`` seconds."""
    count = 0
    start = time.perf_counter()
    while True:
        run()
        count += 1
        elapsed = time.perf_counter() - start
        if elapsed >= least:
            return elapsed / count


def cuda_seconds(run: Callable[[], Any], least: float) -> float:
    """Measure as :func:`seconds` does, between two events of the current CUDA stream."""
    import torch

    run()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    end.synchronize()
    count = max(1, round(1e3 * least / max(begin.elapsed_time(end), 1e-3)))
    begin.record()
    for _ in range(count):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / count


Clock = Callable[[Callable[[], Any], float], float]


def spread(times: Sequence[float]) -> dict[str, float]:
    """Median and extremes of times in seconds, in milliseconds."""
    return {
        "median_ms": 1e3 * statistics.median(times),
        "least_ms": 1e3 * min(times),
        "most_ms": 1e3 * max(times),
        "repeats": len(times),
    }


def compare(
    fast: Callable[[], Any], slow: Callable[[], Any], repeats: int, clock: Clock = seconds
) -> dict[str, float]:
    """Medians in milliseconds and the median of the ratios of neighbouring measurements."""
    fast(), slow()
    pairs = [(clock(fast, 0.05), clock(slow, 0.0)) for _ in range(repeats)]
    ratios = sorted(slow / fast for fast, slow in pairs)
    return {
        "native_ms": 1e3 * statistics.median(fast for fast, _ in pairs),
        "baseline_ms": 1e3 * statistics.median(slow for _, slow in pairs),
        "ratio": statistics.median(ratios),
        "ratio_least": ratios[0],
        "ratio_most": ratios[-1],
    }


def commit_of(root: Path = ROOT, named: str | None = None) -> str:
    """The commit that is measured: as named, from the environment, or from git.

    Raises:
        ValueError: If none of them tells.
    """
    given = named or os.environ.get(COMMIT_VARIABLE)
    if given:
        return given
    if (root / ".git").exists():
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True
        )
        if result.returncode == 0:
            return result.stdout.strip()
    raise ValueError(
        f"commit: {root} is no git checkout; name the commit with --commit or {COMMIT_VARIABLE}"
    )


def processor() -> str:
    """Model and number of the processors, with family and model number: some names say little."""
    if not Path("/proc/cpuinfo").is_file():
        return platform.processor()
    blocks = Path("/proc/cpuinfo").read_text().strip().split("\n\n")
    fields = [line.partition(":") for line in blocks[0].splitlines()]
    first = {name.strip(): value.strip() for name, _, value in fields}
    if "model name" not in first:
        return platform.processor()
    numbers = [f"{n} {first[key]}" for n, key in _NUMBERS.items() if key in first]
    return " ".join([first["model name"], *numbers, f"x {len(blocks)}"])


def about(threads: int, commit: str | None = None) -> dict[str, Any]:
    """Say what the figures were measured with."""
    import torch

    return {
        "commit": commit if commit is not None else commit_of(),
        "cpu": processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
