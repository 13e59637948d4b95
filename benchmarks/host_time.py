"""The host's part of a meta-training step whose candidate networks are replayed, without a GPU.

    python benchmarks/host_time.py [--meta-batch 8] [--repeats 25] [--json report.json]

Everything runs as on a GPU, but the GPU is the CPU, and what a GPU would do is left out and
counted: recorded networks are replayed by doing nothing, operations that write into tensors return
at once, and the hypernetwork's own forward and backward pass are one operation each. What is left
is what the host does beside launches: plans, indices, Python. The launches of the hypernetwork are
counted apart, by running it. Milliseconds are those of the process on the processor.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import importlib
import json
import pstats
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from suite.machine import ROOT, about
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(ROOT))

import ghn_fast
from ghn_fast.deepnets import SampledNets
from ghn_fast.hypernet import pipeline
from ghn_fast.metatrain import candidate_run, cuda_networks
from ghn_fast.metatrain.cuda_device import CudaDevice
from ghn_fast.metatrain.executor import Executor
from ghn_fast.metatrain.step import MetaTrainer

TARGET_MS = 8.0


class LeaveOut(TorchDispatchMode):
    """Leaves out what a GPU would do, and counts it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name.endswith("_") and not name.startswith("_"):
            self.count += 1
            return args[0]
        if name in ("_fused_adam_", "_foreach_copy_"):
            self.count += 1
            return None
        if name == "zeros_like":
            self.count += 1
            return torch.empty_like(args[0])
        if name == "linalg_vector_norm":
            self.count += 1
            return torch.ones((), dtype=args[0].dtype)
        return func(*args, **(kwargs or {}))


class _Hypernetwork(torch.autograd.Function):
    """One operation in the place of the hypernetwork's."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
        """The flat buffer as it is."""
        return flat.view_as(flat)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        """No gradients."""
        return None, None


class _Nothing:
    """A stream or an event on which nothing happens."""

    def wait_stream(self, other: Any) -> None:
        """Nothing to wait for."""

    def record(self, stream: Any) -> None:
        """Nothing to record."""

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def elapsed_time(self, other: Any) -> float:
        """A millisecond."""
        return 1.0


class NoDevice(CudaDevice):
    """The calls of a GPU, of which none does anything."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def current(self) -> AbstractContextManager[Any]:
        """Nothing to make current."""
        return nullcontext()

    def stream(self) -> Any:
        """A stream."""
        return _Nothing()

    def main(self) -> Any:
        """A stream."""
        return _Nothing()

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        """Nothing to change to."""
        return nullcontext()

    def clock(self) -> Any:
        """An event."""
        return _Nothing()

    def pool(self) -> Any:
        """No memory."""
        return None

    def record(
        self, body: Callable[[], None], stream: Any, pool: Any, generator: torch.Generator
    ) -> Callable[[], None]:
        """What is recorded is replayed by doing nothing; the first time by its one result."""
        body()
        return lambda: None


class Case:
    """A trainer, and architectures that it has seen.

    Args:
        meta_batch: Architectures of a step.
        pool: Architectures in all.
    """

    def __init__(self, meta_batch: int, pool: int = 24) -> None:
        torch.manual_seed(0)
        self.ghn = ghn_fast.GHN(ghn_fast.GHNConfig()).train()
        optimizer = torch.optim.Adam(self.ghn.parameters(), 1e-3, weight_decay=1e-5, fused=True)
        executor = Executor(cuda=NoDevice(), cuda_graphs=2 * pool, precision="bf16")
        self.trainer = MetaTrainer(
            self.ghn, optimizer, meta_batch=meta_batch, grad_clip=5.0, executor=executor
        )
        nets = SampledNets("train", pool, seed=1)
        self.architectures = [nets[index] for index in range(pool)]
        for architecture in self.architectures:
            _ = architecture.graph
        self.images, self.targets = torch.empty(64, 3, 32, 32), torch.zeros(64).long()
        self.number = 0
        self.meta_batch = meta_batch

    def chosen(self) -> list[Any]:
        """The architectures of the next step."""
        first = self.number * self.meta_batch % len(self.architectures)
        return (self.architectures * 2)[first : first + self.meta_batch]

    def step(self) -> None:
        """Take a step."""
        self.trainer.step(self.chosen(), self.images, self.targets, self.number)
        self.number += 1

    def hypernetwork_operations(self) -> int:
        """Operations of the hypernetwork's forward and backward pass, views left out."""
        graphs = [architecture.graph for architecture in self.chosen()]
        views = ("view", "reshape", "transpose", "t", "split", "unbind", "slice", "as_strided")
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            flat, _ = self.ghn.predict_flat(graphs)
            flat.backward(torch.ones_like(flat))
        kernels = ("mm", "add", "mul", "sum", "cat", "copy_", "relu", "threshold", "fill_", "index")
        found = 0
        for event in profile.key_averages():
            name = event.key.removeprefix("aten::").removeprefix("ghn_fast::")
            if name not in views and (
                event.key.startswith("ghn_fast::") or any(part in name for part in kernels)
            ):
                found += event.count
        return found


@contextlib.contextmanager
def without_arithmetic() -> Iterator[LeaveOut]:
    """Leave out what a GPU would do."""
    modules: list[Any] = [candidate_run, cuda_networks]
    hypernet: Any = importlib.import_module("ghn_fast.hypernet.decode_plan")
    before = pipeline.forward, candidate_run.forward_backward, hypernet.expand_params
    buffers: dict[int, torch.Tensor] = {}

    def expand(blocks: list[torch.Tensor], plan: Any) -> torch.Tensor:
        _ = plan.table
        numel = plan.numel
        if numel not in buffers:
            buffers[numel] = torch.zeros(numel)
        weight = torch.zeros((), requires_grad=True)
        result: torch.Tensor = _Hypernetwork.apply(weight, buffers[numel])  # type: ignore[no-untyped-call]
        return result

    def no_pass(*arguments: Any) -> torch.Tensor:
        return torch.zeros(3)

    pipeline.forward = lambda ghn, prepared, clock=None: []  # type: ignore[assignment]
    hypernet.expand_params = expand
    for module in modules:
        module.forward_backward = no_pass
    try:
        with LeaveOut() as left_out:
            yield left_out
    finally:
        pipeline.forward, passes, hypernet.expand_params = before
        for module in modules:
            module.forward_backward = passes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--meta-batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    case = Case(arguments.meta_batch)
    operations = case.hypernetwork_operations()
    with without_arithmetic() as left_out:
        for _ in range(9):
            case.step()
        left_out.count = 0
        case.step()
        launches = left_out.count
        times = []
        for _ in range(arguments.repeats):
            start = time.process_time()
            case.step()
            times.append(1e3 * (time.process_time() - start))
        if arguments.profile:
            profile = cProfile.Profile()
            profile.enable()
            for _ in range(5):
                case.step()
            profile.disable()
            pstats.Stats(profile).sort_stats("cumulative").print_stats(60)
    report = {
        "about": about(1),
        "median_ms": statistics.median(times),
        "least_ms": min(times),
        "most_ms": max(times),
        "launches_beside": launches,
        "hypernetwork_operations": operations,
        "target_ms": TARGET_MS,
    }
    print(
        f"host, {arguments.meta_batch} replayed architectures: {report['median_ms']:.2f} ms "
        f"({min(times):.2f} to {max(times):.2f}), target at most {TARGET_MS:g} ms; "
        f"{launches} operations left out, and some {operations} of the hypernetwork"
    )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
