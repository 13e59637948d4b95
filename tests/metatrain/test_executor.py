"""Candidate networks on views of the flat buffer: the gradients of plain autograd."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ghn_fast
from ghn_fast.deepnets import ArchItem, Genotype, NetworkConfig
from ghn_fast.metatrain import candidate_run
from ghn_fast.metatrain.candidate_run import Job, Status, views
from ghn_fast.metatrain.cuda_graphs import GraphCache
from ghn_fast.metatrain.executor import Executor
from ghn_fast.ops.exact_batch_norm import batch_norm
from ghn_fast.utils.seeds import derive_seed
from tolerances import assert_close


def item(*primitives: str, **settings: Any) -> ArchItem:
    """A small network with four operations in its cells."""
    genes = tuple((name, k % 2) for k, name in enumerate(primitives))
    genotype = Genotype(genes, (2, 3), genes, (2, 3))
    config = NetworkConfig(genotype=genotype, n_cells=3, C=16, **settings)
    return ArchItem(0, "test", config, num_classes=10, image_size=16)


ARCHITECTURES = {
    "convolutions": item("conv_3x3", "sep_conv_3x3", "dil_conv_3x3", "max_pool_3x3"),
    "attention": item("msa", "conv_1x1", "cse", "skip_connect", stem_pool=False),
    "no norm": item("conv_5x5", "avg_pool_3x3", "skip_connect", "conv_1x1", norm=None),
    "hidden layer": item("conv_1x1", "conv_3x3", "none", "skip_connect", fc_layers=2, fc_dim=64),
}


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(8, 3, 16, 16), torch.randint(0, 10, (8,))


def predicted(architectures: list[ArchItem]) -> tuple[Tensor, Any]:
    torch.manual_seed(0)
    ghn = ghn_fast.GHN(ghn_fast.GHNConfig(hid=8, max_shape=(16, 16, 5, 5)))
    flat, plan = ghn.predict_flat([a.graph for a in architectures])
    return flat.detach(), plan.ranges


def run(
    executor: Executor, names: list[str], dtype: torch.dtype = torch.float32, **options: Any
) -> Any:
    architectures = [ARCHITECTURES[name] for name in names]
    flat, ranges = predicted(architectures)
    torch.manual_seed(1)
    images, targets = batch()
    return executor.run(
        architectures,
        ranges,
        flat.to(dtype),
        images.to(dtype),
        targets,
        num_classes=10,
        factor=0.5,
        **options,
    )


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - {"hidden layer"}))
def test_gradients_are_those_of_autograd(name: str, channels_last: bool) -> None:
    # In double precision: the sign of a value near zero decides about the gradient behind a ReLU,
    # and in single precision it depends on rounding.
    outcome = run(Executor(channels_last=channels_last), [name], torch.float64)
    architecture = ARCHITECTURES[name]
    flat, (ranges,) = predicted([architecture])
    torch.manual_seed(1)
    images, targets = batch()
    flat = flat.double().requires_grad_()
    values = {
        name: flat[offset : offset + math.prod(shape)].view(shape)
        for name, (offset, shape) in ranges.items()
    }
    network = architecture.build().train().double()
    logits = torch.func.functional_call(network, values, (images.double(),))
    loss = F.cross_entropy(logits, targets)
    (0.5 * loss).backward()
    status, value, correct = outcome.stats[0].tolist()
    assert status == 0
    assert outcome.seconds[0] > 0
    assert correct == int((logits.argmax(1) == targets).sum())
    assert_close(torch.tensor(value), loss.float(), context="ghn")
    assert flat.grad is not None
    # Gradients of single elements can be sums that cancel: their terms have the size of the tensor.
    for place, (offset, shape) in ranges.items():
        part = slice(offset, offset + math.prod(shape))
        scale = max(float(flat.grad[part].abs().max()), 1e-3 * float(flat.grad.abs().max()))
        # The loss itself is always computed in single precision.
        want = flat.grad[part].float()
        assert outcome.gradient.dtype == torch.float64
        assert_close(
            outcome.gradient[part].float(), want, context="gradient", scale=scale, name=place
        )


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate")]
)
def test_memory_is_short_in_the_compiled_run(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **more: Any) -> None:
        arguments[6].fill_(3.0)  # half of the gradients have been written
        raise error

    monkeypatch.setattr(Job, "compiled", True)
    monkeypatch.setattr(candidate_run, "program_gradient", fail)
    outcome = run(Executor(), [next(iter(ARCHITECTURES))])
    assert outcome.stats[0, 0] == Status.MEMORY
    assert not outcome.gradient.any()


@pytest.mark.extension
def test_compiled_networks_are_those_of_autograd_bit_for_bit_but_for_sums(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = sorted(name for name in ARCHITECTURES if isinstance(ARCHITECTURES[name], ArchItem))
    have = run(Executor(), names)
    monkeypatch.setattr(Job, "compiled", False)
    want = run(Executor(), names)
    assert torch.equal(have.stats, want.stats)
    assert_close(have.gradient, want.gradient, context="gradient")


def test_a_back_end_that_is_asked_for_holds_in_the_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: Any, **more: Any) -> None:
        raise AssertionError("the compiled op was called")

    monkeypatch.setattr(candidate_run, "program_gradient", fail)
    with ghn_fast.backend("reference"):
        outcome = run(Executor(parallel=2), sorted(ARCHITECTURES))
    assert not outcome.stats[:, 0].any()


def test_networks_side_by_side_give_what_they_give_alone() -> None:
    names = sorted(ARCHITECTURES)
    alone = run(Executor(parallel=1), names, seeds=[5, 6, 7, 8])
    executor = Executor(parallel=3)
    for _ in range(2):
        together = run(executor, names, seeds=[5, 6, 7, 8], costs=[1.0, 3.0, 2.0, 4.0])
        assert torch.equal(together.gradient, alone.gradient)
        assert torch.equal(together.stats, alone.stats)
    executor.close()
    other = run(Executor(), ["hidden layer"], seeds=[9])
    same = run(Executor(), ["hidden layer"], seeds=[9])
    assert torch.equal(other.gradient, same.gradient)
    assert not torch.equal(run(Executor(), ["hidden layer"], seeds=[8]).gradient, other.gradient)


def test_bfloat16_is_near_float32_and_the_same_for_any_number_of_networks_at_a_time() -> None:
    names = sorted(ARCHITECTURES)
    wide = run(Executor(), names, seeds=[5, 6, 7, 8])
    narrow = run(Executor(precision="bf16"), names, seeds=[5, 6, 7, 8])
    assert narrow.gradient.dtype == torch.float32
    assert (narrow.stats[:, 0] == 0).all()
    assert_close(narrow.stats[:, 1], wide.stats[:, 1], context="ghn", dtype=torch.bfloat16)
    # compared by hand: signs near zero decide about elements; the direction is that of the whole.
    assert float(F.cosine_similarity(narrow.gradient, wide.gradient, dim=0)) > 0.95
    executor = Executor(precision="bf16", parallel=3)
    together = run(executor, names, seeds=[5, 6, 7, 8])
    executor.close()
    assert torch.equal(together.gradient, narrow.gradient)
    assert torch.equal(together.stats[:, :3], narrow.stats[:, :3])


def test_loss_scale_is_taken_out_again() -> None:
    plain = run(Executor(), ["convolutions"])
    scaled = run(Executor(), ["convolutions"], loss_scale=1024.0)
    assert_close(scaled.gradient, plain.gradient, context="gradient")


def test_views_are_pieces_with_gaps() -> None:
    flat = torch.arange(20.0)[2:]
    first, second, third = views(flat, [(2, 3), (), (1, 2, 2, 1)], [0, 8, 10])
    assert torch.equal(first, torch.arange(2.0, 8.0).view(2, 3))
    assert second == 10
    assert torch.equal(third, torch.arange(12.0, 16.0).view(1, 2, 2, 1))
    assert all(view.is_contiguous() for view in (first, second, third))
    first.zero_()
    assert flat[:7].tolist() == [0.0] * 6 + [8.0]


@pytest.mark.parametrize("shape", [(4, 3, 5, 7), (64, 8, 32, 32), (2, 5, 1, 1)])
def test_batch_norm_is_exact(shape: tuple[int, ...]) -> None:
    x = (torch.randn(shape) + 10).to(memory_format=torch.channels_last).requires_grad_()
    weight, bias = torch.randn(shape[1]).requires_grad_(), torch.randn(shape[1]).requires_grad_()
    inputs = [x, weight, bias]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    have = batch_norm(*inputs, 1e-5)
    want = F.batch_norm(exact[0], None, None, exact[1], exact[2], True, 0.0, 1e-5)
    assert have.is_contiguous(memory_format=torch.channels_last)
    assert_close(have, want.float())
    direction = torch.randn(shape)
    found = torch.autograd.grad(have, inputs, direction)
    gradients = torch.autograd.grad(want, exact, direction.double())
    for one, other, name in zip(found, gradients, ("x", "weight", "bias"), strict=True):
        scale = float(direction.abs().mean()) * float(weight.detach().abs().mean())
        assert_close(one, other.float(), context="gradient", scale=scale, name=name)


def test_seeds_depend_on_every_number() -> None:
    seeds = {derive_seed(a, b, c) for a in range(5) for b in range(5) for c in range(5)}
    assert len(seeds) == 125
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_graphs_are_captured_at_the_second_sight_and_bounded() -> None:
    cache: GraphCache[str] = GraphCache(2)
    captured: list[str] = []

    def capture(name: str) -> str:
        captured.append(name)
        return name.upper()

    assert [cache.get("a", lambda: capture("a")) for _ in range(3)] == [None, "A", "A"]
    assert (cache.captured, cache.replayed) == (1, 1)
    for name in ("b", "b", "a", "c", "c"):
        cache.get(name, lambda name=name: capture(name))
    assert captured == ["a", "b", "c"]
    assert len(cache) == 2
    # "b" gave way to "c", and is captured again.
    assert cache.get("b", lambda: capture("b")) == "B"
    cache.clear()
    assert len(cache) == 0
    with pytest.raises(ValueError, match="capacity: got 0"):
        GraphCache(0)


def test_unused_parameters_have_zero_gradients() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Linear(3, 10)
            self.unused = nn.Linear(3, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x.mean((2, 3)))

    class One:
        def build(self, *, num_classes: int, image_size: int) -> nn.Module:
            return Half()

    ranges = {"used.weight": (0, (10, 3)), "unused.weight": (30, (10, 3)), "used.bias": (60, (10,))}
    images, targets = batch()
    outcome = Executor().run(
        [One()], [ranges], torch.randn(70), images, targets, num_classes=10, factor=1.0
    )
    assert outcome.gradient[:30].abs().min() > 0
    assert torch.equal(outcome.gradient[30:60], torch.zeros(30))
