"""The host's part of a meta-training step whose candidate networks are replayed, without a GPU.

    python benchmarks/host_time.py [--meta-batch 8] [--repeats 25] [--json report.json]

Everything runs as on a GPU, but the GPU is the CPU, and what a GPU would do is left out and
counted: recorded networks are replayed by doing nothing, operations that write into tensors return
at once, and the hypernetwork's own forward and backward pass are one operation each. What is left
is what the host does beside launches: plans, indices, Python, part by part. The launches of the
hypernetwork are counted apart, by running it. Milliseconds are those of the process on the
processor. What a launch costs cannot be measured without a GPU: the budget says what may be spent.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from suite.machine import ROOT, about
from suite.parts import Parts
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
# What is asked of a step on a GPU (meta-batch 8, 64 images).
STEPS_PER_SECOND = 60

_PLANS = "plans of the decoder and of the flat buffer"
_COSTS = "estimates of costs, shares of the processes"
_NORMS = "norms of the networks' gradients"
_GRADIENTS = "gradients of the hypernetwork: zeroed, clipped"
PLACES = {
    "ghn_fast.hypernet.pipeline:collate": "graphs as a batch, indices of their shapes",
    "ghn_fast.hypernet.pipeline:prepare": _PLANS,
    "ghn_fast.hypernet.ghn:GHN.predict_flat": _PLANS,
    "ghn_fast.metatrain.step:features": _COSTS,
    "ghn_fast.metatrain.step:spread": _COSTS,
    "ghn_fast.metatrain.costs:CostModel.predict": _COSTS,
    "torch:manual_seed": "random numbers seeded",
    "ghn_fast.metatrain.executor:Executor.run": "gradient buffer, weights cast at once, jobs",
    "ghn_fast.metatrain.cuda_networks:CudaNetworks.run": "streams, events, results",
    "ghn_fast.metatrain.cuda_networks:CudaNetworks._graph": "graphs found by architecture",
    "ghn_fast.metatrain.cuda_graphs:NetworkGraph.replay": "parameters in, replay, gradients out",
    "ghn_fast.metatrain.network_gradients:NetworkGradients.rescale": _NORMS,
    "ghn_fast.metatrain.network_gradients:NetworkGradients.observe": _NORMS,
    "ghn_fast.metatrain.step:MetaTrainer._backward": "backward pass, one operation in its place",
    "ghn_fast.metatrain.gradients:GradientBuffer.start": _GRADIENTS,
    "ghn_fast.metatrain.gradients:GradientBuffer.finish": _GRADIENTS,
    "ghn_fast.metatrain.gradients:GradientBuffer.clip": _GRADIENTS,
    "ghn_fast.metatrain.step:MetaTrainer._update": "losses and costs read",
    "torch.optim.adam:Adam.step": "optimizer",
}


class LeaveOut(TorchDispatchMode):
    """Leaves out what a GPU would do, and counts it."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name.endswith("_") and not name.startswith("_"):
            self.parts.count()
            return args[0]
        if name in ("_fused_adam_", "_foreach_copy_"):
            self.parts.count()
            return None
        if name == "zeros_like":
            self.parts.count()
            return torch.empty_like(args[0])
        if name == "linalg_vector_norm":
            self.parts.count()
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
    """The calls of a GPU, of which none does anything; replays are counted."""

    def __init__(self, parts: Parts) -> None:
        self.device = torch.device("cpu")
        self.parts = parts

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
        return self.parts.count


class Case:
    """A trainer, and architectures that it has seen.

    Args:
        meta_batch: Architectures of a step.
        parts: Counts what a GPU is asked to do.
        pool: Architectures in all.
    """

    def __init__(self, meta_batch: int, parts: Parts, pool: int = 24) -> None:
        torch.manual_seed(0)
        self.ghn = ghn_fast.GHN(ghn_fast.GHNConfig()).train()
        optimizer = torch.optim.Adam(self.ghn.parameters(), 1e-3, weight_decay=1e-5, fused=True)
        executor = Executor(cuda=NoDevice(parts), cuda_graphs=2 * pool, precision="bf16")
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
        """The architectures of the next step: in turn until all are recorded, then any."""
        if self.number >= self.warm_up:
            return random.Random(self.number).sample(self.architectures, self.meta_batch)
        first = self.number * self.meta_batch % len(self.architectures)
        return (self.architectures * 2)[first : first + self.meta_batch]

    @property
    def warm_up(self) -> int:
        """Steps after which each architecture has been seen three times."""
        return 3 * -(-len(self.architectures) // self.meta_batch)

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
def without_arithmetic(parts: Parts) -> Iterator[None]:
    """Leave out what a GPU would do."""
    modules: list[Any] = [candidate_run, cuda_networks]
    hypernet: Any = importlib.import_module("ghn_fast.hypernet.decode_plan")
    before = pipeline.forward, candidate_run.forward_backward, hypernet.expand_params
    # One for all sizes: memory that nobody has touched yet would be time of the CPU.
    buffer = torch.zeros(0)

    def expand(blocks: list[torch.Tensor], plan: Any) -> torch.Tensor:
        nonlocal buffer
        _ = plan.table
        if plan.numel > buffer.numel():
            buffer = torch.zeros(2 * plan.numel)
        weight = torch.zeros((), requires_grad=True)
        result: torch.Tensor = _Hypernetwork.apply(weight, buffer[: plan.numel])  # type: ignore[no-untyped-call]
        return result

    def no_pass(*arguments: Any) -> torch.Tensor:
        return torch.zeros(3)

    pipeline.forward = lambda ghn, prepared, clock=None: []  # type: ignore[assignment]
    hypernet.expand_params = expand
    for module in modules:
        module.forward_backward = no_pass
    try:
        with LeaveOut(parts):
            yield
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
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts = Parts(PLACES, "the step itself")
    case = Case(arguments.meta_batch, parts)
    operations = case.hypernetwork_operations()
    times = []
    with without_arithmetic(parts):
        for _ in range(case.warm_up):
            case.step()
        for _ in range(arguments.repeats):
            start = time.process_time()
            case.step()
            times.append(1e3 * (time.process_time() - start))
        # Apart from the whole: a timer at each part takes time as well.
        with parts.installed():
            for _ in range(arguments.repeats):
                with parts.call():
                    case.step()
    milliseconds = parts.milliseconds()
    calls = {name: parts.counted.get(name, 0) / arguments.repeats for name in milliseconds}
    for name, value in milliseconds.items():
        print(f"{value:7.2f} ms  {calls[name]:5.0f} calls  {name}")
    host, launches = statistics.median(times), sum(calls.values()) + operations
    left = 1000 / STEPS_PER_SECOND - host
    report = {
        "about": about(1),
        "median_ms": host,
        "least_ms": min(times),
        "most_ms": max(times),
        "parts_ms": milliseconds,
        "parts_calls": calls,
        "hypernetwork_operations": operations,
        "microseconds_left_per_call": 1000 * left / launches,
        "target_ms": TARGET_MS,
    }
    print(
        f"host, {arguments.meta_batch} replayed architectures: {host:.2f} ms "
        f"({min(times):.2f} to {max(times):.2f}), target at most {TARGET_MS:g} ms\n"
        f"calls of the GPU: {sum(calls.values()):.0f}, and some {operations} of the hypernetwork\n"
        f"{STEPS_PER_SECOND} steps a second leave {left:.1f} ms for them, "
        f"{1000 * left / launches:.0f} us each"
    )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
