"""Candidate networks as CUDA graphs, on a GPU that is the CPU: replays, and what runs without."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ghn_fast
from fake_cuda import FakeCuda
from ghn_fast.deepnets import ArchItem, Genotype, NetworkConfig
from ghn_fast.metatrain import candidate_run
from ghn_fast.metatrain.candidate_run import (
    Job,
    Status,
    copy_gradients,
    is_out_of_memory,
    lacks_engine,
)
from ghn_fast.metatrain.costs import CostModel
from ghn_fast.metatrain.executor import Executor, Outcome
from ghn_fast.metatrain.step import MetaTrainer
from tolerances import assert_close

CONFIG = ghn_fast.GHNConfig(hid=8, max_shape=(16, 16, 5, 5))


def item(*primitives: str, **settings: Any) -> ArchItem:
    """A small network with four operations in its cells."""
    genes = tuple((name, k % 2) for k, name in enumerate(primitives))
    genotype = Genotype(genes, (2, 3), genes, (2, 3))
    config = NetworkConfig(genotype=genotype, n_cells=2, C=8, **settings)
    return ArchItem(0, "test", config, num_classes=10, image_size=16)


SMALL = item("conv_1x1", "conv_3x3", "none", "skip_connect")
DROPS = item("conv_1x1", "conv_3x3", "none", "skip_connect", fc_layers=2, fc_dim=64)
LARGE = item("conv_3x3", "sep_conv_3x3", "dil_conv_3x3", "max_pool_3x3")
ALL = [SMALL, DROPS, LARGE, DROPS]


def run(
    executor: Executor, architectures: list[ArchItem], batch: int = 0, **options: Any
) -> Outcome:
    """One call with predicted parameters; ``batch`` decides images, parameters and dropout."""
    torch.manual_seed(batch)
    ghn = ghn_fast.GHN(CONFIG)
    flat, plan = ghn.predict_flat([a.graph for a in architectures])
    images, targets = torch.randn(4, 3, 16, 16), torch.randint(0, 10, (4,))
    seeds = [100 * batch + k for k in range(len(architectures))]
    return executor.run(
        architectures,
        plan.ranges,
        flat.detach(),
        images,
        targets,
        num_classes=10,
        seeds=seeds,
        **{"factor": 0.25, **options},
    )


def same(one: Outcome, other: Outcome) -> bool:
    return torch.equal(one.gradient, other.gradient) and torch.equal(one.stats, other.stats)


def on_gpu(graphs: int = 16, **options: Any) -> tuple[Executor, FakeCuda]:
    cuda = FakeCuda()
    return Executor(cuda=cuda, cuda_graphs=graphs, parallel=2, **options), cuda


def test_replays_give_the_bits_of_plain_runs() -> None:
    executor, cuda = on_gpu()
    plain = Executor(parallel=1)
    for batch in range(4):
        assert same(run(executor, ALL, batch), run(plain, ALL, batch))
    # Seen twice in the first batch: the second sight captures it.
    assert cuda.recorded == 3
    assert executor.on_gpu is not None and executor.on_gpu.graphs is not None
    assert executor.on_gpu.graphs.replayed == 10
    # A larger network after smaller ones, in buffers that were too small for it.
    for batch in (4, 5):
        assert same(run(executor, [SMALL, LARGE], batch), run(plain, [SMALL, LARGE], batch))
    assert cuda.recorded == 3
    executor.on_gpu.forget()
    assert same(run(executor, ALL, 6), run(plain, ALL, 6))
    assert cuda.recorded == 6
    assert executor.on_gpu.graphs.refused == 0


def test_a_lane_whose_graphs_have_all_given_way_takes_others() -> None:
    # One graph is kept and there are two lanes: with each capture another lane loses its only one.
    executor, cuda = on_gpu(graphs=1)
    plain = Executor(parallel=1)
    for batch in range(4):
        for item in (SMALL, LARGE):
            for _ in range(2):
                assert same(run(executor, [item], batch), run(plain, [item], batch))
    assert executor.on_gpu is not None and executor.on_gpu.graphs is not None
    assert executor.on_gpu.graphs.refused == 0
    assert cuda.recorded == 8


def test_another_factor_is_no_reason_to_capture_again() -> None:
    executor, cuda = on_gpu()
    for batch in range(3):
        run(executor, [LARGE], batch)
    for factor, scale in ((0.25, 1024.0), (0.5, 1.0)):
        options = {"factor": factor, "loss_scale": scale}
        expected = run(Executor(parallel=1), [LARGE], 1, **options)
        assert same(run(executor, [LARGE], 1, **options), expected)
    assert cuda.recorded == 1


def test_other_images_are() -> None:
    executor, cuda = on_gpu()
    for _ in range(2):
        run(executor, [SMALL])
    flat, plan = ghn_fast.GHN(CONFIG).predict_flat([SMALL.graph])
    for _ in range(2):
        images, targets = torch.randn(2, 3, 16, 16), torch.zeros(2, dtype=torch.int64)
        executor.run(
            [SMALL], plan.ranges, flat.detach(), images, targets, num_classes=10, factor=1.0
        )
    assert cuda.recorded == 2


@pytest.mark.parametrize("empty", [False, True])
def test_what_cannot_be_captured_runs_without(empty: bool) -> None:
    executor, cuda = on_gpu()
    cuda.empty = empty
    if not empty:
        cuda.error = RuntimeError("operation not permitted when stream is capturing")
    reason = "does nothing when it is replayed" if empty else "not permitted"
    plain = Executor(parallel=1)
    assert same(run(executor, [SMALL], 0), run(plain, [SMALL], 0))
    with pytest.warns(RuntimeWarning, match=reason):
        assert same(run(executor, [SMALL], 1), run(plain, [SMALL], 1))
    cuda.error, cuda.empty = None, False
    before = cuda.recorded
    # It is not tried again; another network is.
    assert same(run(executor, [SMALL], 2), run(plain, [SMALL], 2))
    assert cuda.recorded == before
    for batch in range(3):
        assert same(run(executor, [LARGE], batch), run(plain, [LARGE], batch))
    assert cuda.recorded == before + 1
    assert executor.on_gpu is not None and executor.on_gpu.graphs is not None
    assert executor.on_gpu.graphs.refused == 1


def test_too_little_memory_for_a_graph_forgets_all_of_them() -> None:
    executor, cuda = on_gpu()
    for batch in range(2):
        run(executor, [SMALL], batch)
    cuda.error = torch.OutOfMemoryError("CUDA out of memory.")
    plain = Executor(parallel=1)
    for batch in range(2):
        assert same(run(executor, [LARGE], batch), run(plain, [LARGE], batch))
    cuda.error = None
    assert executor.on_gpu is not None and executor.on_gpu.graphs is not None
    assert len(executor.on_gpu.graphs) == 0
    run(executor, [LARGE])
    assert len(executor.on_gpu.graphs) == 1


@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate 20.00 MiB",
        "CUDA error: out of memory",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_memory_is_short_by_any_name(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_out_of_memory(RuntimeError(message))
    assert not lacks_engine(RuntimeError(message))
    monkeypatch.setattr(Job, "compiled", False)
    fail_for(LARGE, RuntimeError(message), monkeypatch)
    expected = run(Executor(parallel=1), [SMALL])
    outcome = run(Executor(parallel=1), [SMALL, LARGE])
    assert outcome.stats[:, 0].tolist() == [Status.OK, Status.MEMORY]
    assert outcome.stats[1, 1].isnan()
    numel = len(expected.gradient)
    assert torch.equal(outcome.gradient[:numel] != 0, expected.gradient != 0)
    assert not outcome.gradient[numel:].any()


def test_layers_without_an_engine_are_tried_plainly_then_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Job, "compiled", False)
    calls = fail_for(
        LARGE, RuntimeError("GET was unable to find an engine to execute this"), monkeypatch
    )
    outcome = run(Executor(parallel=1), [SMALL, LARGE])
    assert outcome.stats[:, 0].tolist() == [Status.OK, Status.ENGINE]
    assert calls == [(True, True), (False, False)]
    with pytest.raises(RuntimeError, match="something else"):
        fail_for(LARGE, RuntimeError("something else"), monkeypatch)
        run(Executor(parallel=1), [LARGE])


def fail_for(
    architecture: ArchItem, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[bool, bool]]:
    """Let a network's passes fail; returns whether each had channels last, and cuDNN."""
    calls: list[tuple[bool, bool]] = []
    names = [target.name for target in architecture.graph.targets]
    original: Callable[..., Tensor] = candidate_run.forward_backward

    def forward_backward(network: Any, leaves: dict[str, Tensor], *rest: Any) -> Tensor:
        if list(leaves) != names:
            return original(network, leaves, *rest)
        images = rest[-1].images
        channels_last = images.is_contiguous(memory_format=torch.channels_last)
        calls.append((channels_last, torch.backends.cudnn.enabled))
        raise error

    monkeypatch.setattr(candidate_run, "forward_backward", forward_backward)
    return calls


def trainer_of(executor: Executor) -> MetaTrainer:
    torch.manual_seed(0)
    ghn = ghn_fast.GHN(CONFIG).train()
    optimizer = torch.optim.Adam(ghn.parameters(), 1e-3)
    return MetaTrainer(ghn, optimizer, meta_batch=4, grad_clip=5.0, executor=executor)


def batch_of(number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(4, 3, 16, 16, generator=generator)
    return images, torch.randint(0, 10, (4,), generator=generator)


def test_steps_are_those_of_a_trainer_without_a_gpu() -> None:
    executor, _ = on_gpu()
    fast, plain = trainer_of(executor), trainer_of(Executor(parallel=1))
    for number in range(4):
        architectures = ALL if number != 2 else ALL[:3]
        results = [t.step(architectures, *batch_of(number), number) for t in (fast, plain)]
        assert results[0].loss == results[1].loss and results[0].top1 == results[1].top1
        # Seconds of a step are known in the next one.
        assert (fast.costs.state_dict() == CostModel().state_dict()) == (number == 0)
        assert results[0].network_seconds > 0
    for have, want in zip(fast.ghn.parameters(), plain.ghn.parameters(), strict=True):
        assert torch.equal(have, want)


def test_too_little_memory_for_the_hypernetworks_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = trainer_of(Executor(parallel=1))
    before = [p.detach().clone() for p in trainer.ghn.parameters()]

    def backward(self: Tensor, gradient: Tensor) -> None:
        first = next(trainer.ghn.parameters())
        assert first.grad is not None
        first.grad.fill_(math.nan)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "backward", backward)
        result = trainer.step(ALL, *batch_of(0))
    assert result.failures == tuple((i, "out of memory") for i in range(4))
    for have, want in zip(trainer.ghn.parameters(), before, strict=True):
        assert torch.equal(have, want)
    assert trainer.step(ALL, *batch_of(0)).skipped == 0
    trainer.replicated = True
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "backward", backward)
        with pytest.raises(RuntimeError, match="ran out of memory on process 0"):
            trainer.step(ALL, *batch_of(1))


def test_gradients_in_any_layout_are_copied() -> None:
    last = torch.randn(6, 4, 3, 3).to(memory_format=torch.channels_last)
    one = torch.randn(6, 4, 1, 1).to(memory_format=torch.channels_last)
    found = [last, one, None, torch.randn(5), torch.randn(3, 2).t(), torch.randn(4).bfloat16()]
    into = [torch.zeros(t.shape) if t is not None else torch.zeros(3) for t in found]
    copy_gradients(into, found)
    for have, want in zip(into, found, strict=True):
        assert torch.equal(have, torch.zeros(3) if want is None else want.float())


def test_reduced_precision_of_products_is_on_request() -> None:
    from ghn_fast.vision.precision import tensor_cores

    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    for precision, allowed in (("float32", False), ("tf32", True), ("bf16", False)):
        with tensor_cores(precision, torch.device("cuda")):
            assert torch.backends.cudnn.allow_tf32 is allowed
            assert torch.backends.cuda.matmul.allow_tf32 is allowed
        assert before == (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    plain, tf32 = (run(Executor(precision=p), [SMALL]) for p in ("float32", "tf32"))
    assert_close(plain.gradient, tf32.gradient, context="gradient")
