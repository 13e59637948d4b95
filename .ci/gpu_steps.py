"""A step of meta-training in the ways in which it can be run, measured."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from gpu_parts import Measurement

import ghn_fast
from ghn_fast.deepnets import SampledNets
from ghn_fast.metatrain.executor import Executor
from ghn_fast.metatrain.step import MetaTrainer


@dataclass(frozen=True)
class Way:
    """How candidate networks are run.

    Attributes:
        precision: Their precision.
        channels_last: Their layout.
        graphs: Whether they are replayed as CUDA graphs.
    """

    precision: str
    channels_last: bool
    graphs: bool

    def name(self) -> str:
        """The way in words."""
        layout = "channels last" if self.channels_last else "channels first"
        return f"step, {self.precision}, {layout}, {'CUDA graphs' if self.graphs else 'eager'}"


class Steps:
    """A pool of architectures, and a trainer that takes steps on meta-batches from it.

    Args:
        way: How candidate networks are run.
        device: Where.
        small: Whether it is a rehearsal: two architectures, two images.
    """

    def __init__(self, way: Way, device: str, *, small: bool = False) -> None:
        torch.manual_seed(0)
        self.count, batch, pool = (2, 2, 2) if small else (8, 64, 24)
        config = ghn_fast.GHNConfig(hid=8, max_shape=(16, 16, 5, 5)) if small else None
        ghn = ghn_fast.GHN(config or ghn_fast.GHNConfig()).to(device).train()
        optimizer = torch.optim.Adam(ghn.parameters(), 1e-3, weight_decay=1e-5, fused=True)
        executor = Executor(
            device,
            precision=way.precision,
            channels_last=way.channels_last,
            cuda_graphs=2 * pool if way.graphs else 0,
        )
        self.trainer = MetaTrainer(
            ghn, optimizer, meta_batch=self.count, grad_clip=5.0, executor=executor
        )
        nets = SampledNets("train", 24, seed=1)
        # Graphs are at hand, as a loader leaves them.
        found = sorted((nets[index] for index in range(24)), key=lambda net: net.graph.num_nodes)
        self.architectures = found[:pool]
        self.images = torch.randn(batch, 3, 32, 32, device=device)
        self.targets = torch.randint(0, 10, (batch,), device=device)
        self.number = 0

    def take(self) -> None:
        """Take the next step."""
        pool, first = self.architectures, self.number * self.count % len(self.architectures)
        chosen = (pool + pool)[first : first + self.count]
        result = self.trainer.step(chosen, self.images, self.targets, self.number)
        if result.skipped:
            raise RuntimeError(f"architectures were skipped: {result.failures}")
        self.number += 1

    def close(self) -> None:
        """End the trainer's threads."""
        self.trainer.close()


def measure_way(
    way: Way, device: str, repeats: int, least: float | None, *, small: bool = False
) -> list[Measurement]:
    """Steps a second of one way, on architectures that come again."""
    with contextlib.closing(Steps(way, device, small=small)) as steps:
        # Every architecture twice: graphs are captured at the second sight.
        rounds = -(-len(steps.architectures) // steps.count)
        for _ in range(2 * rounds if way.graphs else rounds):
            steps.take()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(repeats * rounds if not small else 1):
            start = time.perf_counter()
            steps.take()
            # A step ends with reading its losses; what it has queued behind that counts, too.
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        launches = count_launches(steps) if device == "cuda" else {}
    middle = statistics.median(times)
    details: dict[str, Any] = {
        "ms": 1e3 * middle,
        "least_ms": 1e3 * min(times),
        "most_ms": 1e3 * max(times),
        "architectures": steps.count,
        **launches,
    }
    if device == "cuda":
        details["peak_bytes"] = torch.cuda.max_memory_allocated()
    # The recommended way is what the target is for.
    if (way.precision, way.channels_last) != ("bf16", True):
        least = None
    return [Measurement(way.name(), 1 / middle, "a second", at_least=least, details=details)]


def count_launches(steps: Steps) -> dict[str, int]:
    """Kernels of one step, and calls of the CUDA runtime that start work."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    ) as profile:
        steps.take()
        torch.cuda.synchronize()
    events = profile.key_averages()
    return {
        "kernels": sum(e.count for e in events if e.device_type.name == "CUDA"),
        "launches": sum(
            e.count for e in events if "Launch" in e.key or e.key.startswith("cudaMemcpyAsync")
        ),
        "synchronisations": sum(e.count for e in events if "Synchronize" in e.key),
    }


def ratio(device: str, *, small: bool = False) -> list[Measurement]:
    """A step on architectures that were never seen against the straightforward loop, both eager."""
    from suite.cases import all_cases
    from suite.measuring import measure_case

    graph, count = ("train", 1) if small else ("fresh", 8)
    case = next(
        case
        for case in all_cases()
        if (case.path, case.backend, case.device) == ("meta_step", "auto", device)
        and (case.graph, case.meta_batch) == (graph, count)
    )
    with _one_thread():
        found = measure_case(case, replace(case, backend="straightforward"))
    return [
        Measurement(
            "step against the straightforward loop",
            found["peer"]["ratio"]["median"],
            "times",
            at_least=None if small else 20.0,
            details=found,
        )
    ]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
