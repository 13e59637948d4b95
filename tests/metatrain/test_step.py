from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ghn_fast
from ghn_fast.metatrain.step import meta_step
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
    losses = [
        meta_step(ghn, optimizer, architectures, images, targets, grad_clip=5.0).loss
        for _ in range(30)
    ]
    assert losses[-1] < 0.5 * losses[0]


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
