"""Training on a GPU: what has to hold before a run there can be trusted."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ghn_fast
from ghn_fast.deepnets import ArchItem, Genotype, NetworkConfig
from ghn_fast.metatrain import TrainConfig, train
from ghn_fast.metatrain.executor import Executor, Outcome
from ghn_fast.metatrain.metrics import read_metrics
from ghn_fast.metatrain.step import MetaTrainer
from ghn_fast.vision.precision import tensor_cores
from tolerances import assert_close

pytestmark = pytest.mark.cuda

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ghn_fast.GHNConfig(hid=8, max_shape=(16, 16, 5, 5))
TINY = TrainConfig(
    **{"dataset": "digits", "image_size": 16, "deepnets": "20", "meta_batch": 2, "batch_size": 8},
    **{"steps": 6, "hid": 8, "max_nodes": 300, "max_channels": 32, "checkpoint_every": 1},
    **{"device": "cuda", "pool_size": 3, "cuda_graphs": 6, "max_shape": (16, 16, 3, 3)},
)


def item(*primitives: str, **settings: Any) -> ArchItem:
    """A small network with four operations in its cells."""
    genes = tuple((name, k % 2) for k, name in enumerate(primitives))
    genotype = Genotype(genes, (2, 3), genes, (2, 3))
    config = NetworkConfig(genotype=genotype, n_cells=3, C=16, **settings)
    return ArchItem(0, "test", config, num_classes=10, image_size=16)


SMALL = item("conv_1x1", "conv_3x3", "none", "skip_connect")
DROPS = item("conv_1x1", "conv_3x3", "none", "skip_connect", fc_layers=2, fc_dim=64)
LARGE = item("conv_3x3", "sep_conv_3x3", "dil_conv_3x3", "max_pool_3x3")
ATTENDS = item("msa", "conv_1x1", "cse", "skip_connect", stem_pool=False)
ALL = [SMALL, DROPS, LARGE, ATTENDS, DROPS]


def run(
    executor: Executor,
    architectures: list[ArchItem],
    batch: int = 0,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Outcome:
    """One call with predicted parameters; ``batch`` decides images, parameters and dropout."""
    torch.manual_seed(batch)
    ghn = ghn_fast.GHN(CONFIG)
    with ghn_fast.backend("reference"):
        flat, plan = ghn.predict_flat([a.graph for a in architectures])
    images, targets = torch.randn(8, 3, 16, 16), torch.randint(0, 10, (8,))
    device = executor.device
    return executor.run(
        architectures,
        plan.ranges,
        flat.detach().to(device, dtype),
        images.to(device, dtype),
        targets.to(device),
        num_classes=10,
        seeds=[100 * batch + k for k in range(len(architectures))],
        **{"factor": 0.25, **options},
    )


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("architecture", [SMALL, LARGE, ATTENDS], ids=["small", "large", "msa"])
def test_gradients_are_those_of_the_cpu(architecture: ArchItem, channels_last: bool) -> None:
    outcomes = [
        run(Executor(device, channels_last=channels_last), [architecture], dtype=torch.float64)
        for device in ("cpu", "cuda")
    ]
    assert outcomes[1].stats[:, 0].tolist() == [0]
    want = outcomes[0].gradient
    # Gradients of single elements can be sums that cancel: the loss is in single precision.
    scale = float(want.abs().max())
    assert_close(outcomes[1].gradient.cpu().float(), want.float(), context="gradient", scale=scale)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_replays_give_the_bits_of_plain_runs(precision: str, channels_last: bool) -> None:
    options = {"precision": precision, "channels_last": channels_last, "parallel": 2}
    eager, graphs = Executor("cuda", **options), Executor("cuda", cuda_graphs=8, **options)
    with torch.backends.cudnn.flags(deterministic=True), warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for batch in range(4):
            scale = 2.0**batch
            have, want = (run(e, ALL, batch, loss_scale=scale) for e in (graphs, eager))
            torch.cuda.synchronize()
            assert want.stats[:, 0].tolist() == [0] * len(ALL)
            assert torch.equal(have.stats, want.stats)
            assert torch.equal(have.gradient, want.gradient)
            seconds = graphs.late_seconds()
            assert seconds is not None and min(seconds) > 0
    assert graphs.on_gpu is not None and graphs.on_gpu.graphs is not None
    assert graphs.on_gpu.graphs.captured == 4 and graphs.on_gpu.graphs.refused == 0
    graphs.on_gpu.forget()
    for batch in (9, 10):
        assert torch.equal(
            run(graphs, ALL, batch).stats[:, 0], torch.zeros(len(ALL), device="cuda")
        )
    assert graphs.on_gpu.graphs.refused == 0


class Half(nn.Module):
    """One of two layers is used."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(3, 10), nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x.mean((2, 3)))


class One:
    """An architecture that is a module."""

    def build(self, *, num_classes: int, image_size: int) -> nn.Module:
        return Half()


def test_unused_parameters_have_zero_gradients() -> None:
    ranges = {"used.weight": (0, (10, 3)), "unused.weight": (30, (10, 3)), "used.bias": (60, (10,))}
    images, targets = torch.randn(4, 3, 8, 8).cuda(), torch.zeros(4, dtype=torch.int64).cuda()
    flat = torch.randn(70).cuda()
    outcome = Executor("cuda").run(
        [One()], [ranges], flat, images, targets, num_classes=10, factor=1.0
    )
    assert outcome.gradient[:30].abs().min() > 0
    assert torch.equal(outcome.gradient[30:60], torch.zeros(30, device="cuda"))


def test_a_network_that_does_not_fit_into_memory_is_skipped() -> None:
    executor = Executor("cuda", parallel=1)
    expected = run(executor, [SMALL])
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    huge = item("conv_3x3", "conv_5x5", "conv_7x7", "msa")
    used = torch.cuda.memory_reserved() + 48 * 2**20
    torch.cuda.set_per_process_memory_fraction(
        used / torch.cuda.get_device_properties(0).total_memory
    )
    try:
        torch.manual_seed(0)
        ghn = ghn_fast.GHN(CONFIG)
        with ghn_fast.backend("reference"):
            flat, plan = ghn.predict_flat([huge.graph])
        images = torch.randn(512, 3, 16, 16, device="cuda")
        targets = torch.zeros(512, dtype=torch.int64, device="cuda")
        outcome = executor.run(
            [huge], plan.ranges, flat.detach().cuda(), images, targets, num_classes=10, factor=1.0
        )
        assert outcome.stats[0, 0] == 3
        assert not outcome.gradient.any()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    again = run(executor, [SMALL])
    assert torch.equal(again.stats, expected.stats)


def test_a_loss_that_is_not_finite_is_skipped() -> None:
    executor = Executor("cuda", cuda_graphs=4)
    for batch in range(3):
        outcome = run(executor, [SMALL, LARGE], batch, factor=math.inf)
        assert set(outcome.stats[:, 0].tolist()) == {2.0}
        assert not outcome.gradient.any()


def trainer_on(device: str, **options: Any) -> MetaTrainer:
    torch.manual_seed(0)
    ghn = ghn_fast.GHN(CONFIG).to(device).train()
    optimizer = torch.optim.SGD(ghn.parameters(), 0.1)
    executor = Executor(device, **options)
    return MetaTrainer(ghn, optimizer, meta_batch=5, grad_clip=5.0, executor=executor)


@pytest.mark.parametrize("graphs", [0, 8])
def test_steps_are_those_of_the_cpu(graphs: int) -> None:
    trainers = [trainer_on("cpu"), trainer_on("cuda", cuda_graphs=graphs)]
    # The networks draw dropout from generators of their devices.
    architectures = [SMALL, LARGE, ATTENDS]
    with tensor_cores("float32", torch.device("cuda")):
        for number in range(3):
            torch.manual_seed(number)
            images, targets = torch.randn(8, 3, 16, 16), torch.randint(0, 10, (8,))
            results = [
                t.step(architectures, images.to(d), targets.to(d), number)
                for t, d in zip(trainers, ("cpu", "cuda"), strict=True)
            ]
            assert results[1].skipped == 0
            if number == 0:
                assert_close(results[1].loss, results[0].loss, context="ghn", dtype=torch.float32)
                norms = [
                    torch.cat([p.grad.flatten().cpu() for p in t.ghn.parameters()])
                    for t in trainers
                ]
                assert_close(
                    norms[1], norms[0], context="gradient", scale=float(norms[0].abs().max())
                )
            # compared by hand: signs near zero decide about gradients, and steps enlarge that.
            assert abs(results[1].loss - results[0].loss) < 0.05 * results[0].loss


def losses(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_metrics(run)]


class Killed(Exception):
    """Stands for a process that dies."""


@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_a_run_that_is_killed_continues_to_the_same_numbers(precision: str, tmp_path: Path) -> None:
    from dataclasses import replace

    config = replace(TINY, execution=replace(TINY.execution, precision=precision))

    def kill(metrics: dict[str, Any], total: int) -> None:
        if metrics["step"] == 4:
            raise Killed

    with torch.backends.cudnn.flags(deterministic=True):
        train(config, tmp_path / "whole")
        with pytest.raises(Killed):
            train(config, tmp_path / "killed", on_step=kill)
        result = train(config, tmp_path / "killed")
    assert result.step == 6
    whole, continued = losses(tmp_path / "whole"), losses(tmp_path / "killed")
    assert [step for step, _ in continued] == list(range(1, 7))
    for (_, have), (_, want) in zip(continued, whole, strict=True):
        assert_close(have, want, context="ghn", dtype=torch.float32)


def test_one_process_with_nccl_trains_and_evaluates(tmp_path: Path) -> None:
    code = (
        "import torch.distributed as dist, sys, json, pathlib\n"
        "from dataclasses import replace\n"
        "from ghn_fast.metatrain import TrainConfig, train\n"
        "values = json.loads(sys.argv[1])\n"
        "dist.init_process_group('nccl', rank=0, world_size=1, init_method=sys.argv[3])\n"
        "train(TrainConfig.from_dict(values), pathlib.Path(sys.argv[2]))\n"
        "dist.destroy_process_group()\n"
    )
    values = {**TINY.to_dict(), "eval_every": 3, "eval_networks": 2}
    address = f"file://{tmp_path}/store"
    command = [sys.executable, "-c", code, json.dumps(values), str(tmp_path / "run"), address]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert [step for step, _ in losses(tmp_path / "run")] == list(range(1, 7))
    evaluations = (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in evaluations] == [3, 6]
