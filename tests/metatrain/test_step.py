from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ghn_fast
from ghn_fast.metatrain.executor import Executor
from ghn_fast.metatrain.step import MetaTrainer, StepResult
from networks import Branches, SmallCNN
from tolerances import assert_close

SMALL = ghn_fast.GHNConfig(max_shape=(16, 16, 5, 5), hid=8, num_classes=10)


class Fixed:
    """An architecture that is a given module class."""

    def __init__(self, kind: type[nn.Module], **arguments: int) -> None:
        self.kind, self.arguments = kind, arguments

    def build(self, *, num_classes: int, image_size: int) -> nn.Module:
        return self.kind(**self.arguments)

    def graph_for(self, *, num_classes: int, image_size: int) -> ghn_fast.ArchGraph:
        return ghn_fast.capture(self.kind(**self.arguments), (3, image_size, image_size))


class Exploding(SmallCNN):
    """Its loss is never finite."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * math.inf


def make(lr: float = 0.1) -> tuple[ghn_fast.GHN, torch.optim.Optimizer]:
    torch.manual_seed(0)
    ghn = ghn_fast.GHN(SMALL).train()
    return ghn, torch.optim.SGD(ghn.parameters(), lr)


def meta_step(
    ghn: ghn_fast.GHN,
    optimizer: torch.optim.Optimizer,
    architectures: list[Any],
    images: Tensor,
    targets: Tensor,
    *,
    grad_clip: float,
    executor: Executor | None = None,
    steps: int = 1,
) -> StepResult:
    """The last of some steps on one batch."""
    trainer = MetaTrainer(
        ghn, optimizer, meta_batch=len(architectures), grad_clip=grad_clip, executor=executor
    )
    results = [trainer.step(architectures, images, targets, k) for k in range(steps)]
    trainer.close()
    return results[-1]


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, 3, 16, 16, generator=generator)
    return images, torch.randint(0, 10, (8,), generator=generator)


def test_step_equals_plain_backpropagation_through_everything() -> None:
    images, targets = batch()
    architectures = [Fixed(SmallCNN, width=8), Fixed(Branches)]
    ghn, optimizer = make()
    result = meta_step(ghn, optimizer, architectures, images, targets, grad_clip=0.5)

    reference, sgd = make()
    graphs = [a.graph_for(num_classes=10, image_size=16) for a in architectures]
    losses = []
    for architecture, tensors in zip(architectures, reference.predict_tensors(graphs), strict=True):
        network = architecture.build(num_classes=10, image_size=16)
        ghn_fast.use_batch_statistics(network)
        logits = torch.func.functional_call(network, tensors, (images,))
        losses.append(F.cross_entropy(logits, targets))
    loss = torch.stack(losses).mean()
    loss.backward()
    nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
    sgd.step()

    assert_close(torch.tensor(result.loss), loss.detach(), context="ghn")
    assert result.skipped == 0
    for (name, have), want in zip(ghn.named_parameters(), reference.parameters(), strict=True):
        assert_close(have.detach(), want.detach(), context="ghn", name=name)
        assert_close(have.grad, want.grad, context="gradient", name=f"gradient of {name}")


def test_loss_falls() -> None:
    images, targets = batch()
    ghn, _ = make()
    optimizer = torch.optim.Adam(ghn.parameters(), 3e-3)
    architectures = [Fixed(SmallCNN, width=8), Fixed(Branches)]
    first = meta_step(ghn, optimizer, architectures, images, targets, grad_clip=5.0)
    last = meta_step(ghn, optimizer, architectures, images, targets, grad_clip=5.0, steps=29)
    assert last.loss < 0.5 * first.loss


def test_architecture_without_finite_loss_is_left_out() -> None:
    images, targets = batch()
    ghn, optimizer = make()
    architectures = [Fixed(Exploding, width=8), Fixed(SmallCNN, width=8)]
    result = meta_step(ghn, optimizer, architectures, images, targets, grad_clip=5.0)
    assert result.skipped == 1
    assert math.isfinite(result.loss)
    assert all(p.isfinite().all() for p in ghn.parameters())


def test_infinite_gradient_of_the_hypernetwork_changes_nothing() -> None:
    images, targets = batch()
    ghn, optimizer = make()
    ghn.encoder.op.weight.register_hook(lambda gradient: gradient * math.inf)
    before = [p.detach().clone() for p in ghn.parameters()]
    architectures = [Fixed(SmallCNN, width=8)]
    result = meta_step(ghn, optimizer, architectures, images, targets, grad_clip=5.0)
    assert result.skipped == 1
    assert math.isnan(result.loss)
    assert all(torch.equal(a, b) for a, b in zip(before, ghn.parameters(), strict=True))


def test_nothing_changes_when_no_loss_is_finite() -> None:
    images, targets = batch()
    ghn, optimizer = make()
    before = [p.detach().clone() for p in ghn.parameters()]
    result = meta_step(ghn, optimizer, [Fixed(Exploding)], images, targets, grad_clip=5.0)
    assert result.skipped == 1
    assert math.isnan(result.loss)
    assert all(torch.equal(a, b) for a, b in zip(before, ghn.parameters(), strict=True))


class Hungry(SmallCNN):
    """Asks for more memory than there is."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.empty(2**55).sum()


class BadGradient(SmallCNN):
    """Its loss is finite, its gradient is not."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x + (x - x.detach()).abs().sqrt()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Exploding, "the loss is not finite"),
        (BadGradient, "a gradient is not finite"),
        (Hungry, "out of memory"),
    ],
)
def test_others_get_the_gradient_that_they_get_beside_a_bad_one(
    kind: type[nn.Module], reason: str
) -> None:
    images, targets = batch()
    ghn, optimizer = make()
    result = meta_step(
        ghn, optimizer, [Fixed(kind, width=8), Fixed(Branches)], images, targets, grad_clip=1e9
    )
    assert result.failures == ((0, reason),)

    reference, sgd = make()
    meta_step(reference, sgd, [Fixed(Branches)], images, targets, grad_clip=1e9)
    for (name, have), want in zip(ghn.named_parameters(), reference.parameters(), strict=True):
        # Each loss counts for its share of the meta-batch, skipped or not.
        assert_close(2 * have.grad, want.grad, context="gradient", name=name)


def test_other_errors_are_not_hidden() -> None:
    class Broken(SmallCNN):
        def forward(self, x: Tensor) -> Tensor:
            # A capture takes a single image.
            if len(x) > 1:
                raise RuntimeError("shapes do not fit")
            return super().forward(x)

    images, targets = batch()
    ghn, optimizer = make()
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        meta_step(ghn, optimizer, [Fixed(Broken, width=8)], images, targets, grad_clip=5.0)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_is_near(precision: str) -> None:
    images, targets = batch()
    architectures = [Fixed(SmallCNN, width=8), Fixed(Branches)]
    losses = []
    for name in ("float32", precision):
        ghn, optimizer = make(lr=0.0)
        executor = Executor(precision=name)
        result = meta_step(
            ghn, optimizer, architectures, images, targets, grad_clip=5.0, executor=executor
        )
        assert result.skipped == 0
        losses.append(torch.tensor(result.loss))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    assert_close(losses[1], losses[0], context="ghn", dtype=dtype)


def test_overflow_halves_the_scale_of_the_loss() -> None:
    images, targets = batch()
    ghn, optimizer = make()
    trainer = MetaTrainer(
        ghn, optimizer, meta_batch=1, grad_clip=5.0, executor=Executor(precision="fp16")
    )
    trainer.loss_scale.value = 2.0**60
    result = trainer.step([Fixed(SmallCNN, width=8)], images, targets)
    assert result.failures == ((0, "a gradient is not finite"),)
    assert trainer.loss_scale.value == 2.0**59
    state = trainer.state_dict()
    trainer.loss_scale.value = 1.0
    trainer.load_state_dict(state)
    assert trainer.loss_scale.value == 2.0**59


def test_too_many_architectures_are_refused() -> None:
    images, targets = batch()
    ghn, optimizer = make()
    trainer = MetaTrainer(ghn, optimizer, meta_batch=1, grad_clip=5.0)
    with pytest.raises(ValueError, match="architectures: got 2, needs 1 to 1"):
        trainer.step([Fixed(Branches)] * 2, images, targets)
