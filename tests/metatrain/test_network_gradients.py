"""Gradients of candidate networks are brought to a common size, from step to step and on resume."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ghn_fast
from ghn_fast.metatrain import TrainConfig, train
from ghn_fast.metatrain.metrics import read_metrics
from ghn_fast.metatrain.network_gradients import NetworkGradients
from ghn_fast.metatrain.resume import list_checkpoints, read_checkpoint
from ghn_fast.metatrain.step import MetaTrainer
from networks import Branches, SmallCNN
from tolerances import assert_close

SMALL = ghn_fast.GHNConfig(max_shape=(16, 16, 5, 5), hid=8, num_classes=10)


class Fixed:
    """An architecture that is a given module class."""

    def __init__(self, kind: type[nn.Module]) -> None:
        self.kind = kind

    def build(self, *, num_classes: int, image_size: int) -> nn.Module:
        return self.kind()

    def graph_for(self, *, num_classes: int, image_size: int) -> ghn_fast.ArchGraph:
        return ghn_fast.capture(self.kind(), (3, image_size, image_size))


ARCHITECTURES = [Fixed(SmallCNN), Fixed(Branches)]


def small_ghn() -> ghn_fast.GHN:
    torch.manual_seed(0)
    return ghn_fast.GHN(SMALL).train()


def plain_gradients(ghn: ghn_fast.GHN, images: Tensor, targets: Tensor) -> list[list[Tensor]]:
    """Per network the gradients of half its loss for the tensors predicted for it, with them."""
    graphs = [a.graph_for(num_classes=10, image_size=16) for a in ARCHITECTURES]
    pairs = []
    for architecture, tensors in zip(ARCHITECTURES, ghn.predict_tensors(graphs), strict=True):
        network = architecture.build(num_classes=10, image_size=16)
        ghn_fast.use_batch_statistics(network)
        logits = torch.func.functional_call(network, tensors, (images,))
        values = list(tensors.values())
        found = torch.autograd.grad(F.cross_entropy(logits, targets) / 2, values, retain_graph=True)
        pairs.append([values, list(found)])
    return pairs


@pytest.mark.parametrize("rule", ["summed", "clipped", "scaled"])
def test_a_step_equals_one_with_gradients_rescaled_by_hand(rule: str) -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, 3, 16, 16, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 10, (8,), generator=generator)
    # In double precision, so that rounding does not count where gradients nearly cancel.
    ghn, limit = small_ghn().double(), 1.2
    optimizer = torch.optim.SGD(ghn.parameters(), 0.0)
    trainer = MetaTrainer(
        ghn,
        optimizer,
        meta_batch=2,
        grad_clip=1e9,
        network_gradients=NetworkGradients(rule, limit),
    )
    for number in range(2):
        trainer.step(ARCHITECTURES, images, targets, number)
    trainer.close()

    reference = small_ghn().double()
    pairs = plain_gradients(reference, images, targets)
    norms = [sum(float(g.square().sum()) for g in found) ** 0.5 for _, found in pairs]
    # The weights stay, so that both steps have the same norms: the two are all that is known.
    typical = median(norms)
    assert max(norms) > limit * typical, "the larger of the two has to be one that is clipped"
    factor = {
        "summed": lambda norm: 1.0,
        "clipped": lambda norm: min(1.0, limit * typical / norm),
        "scaled": lambda norm: typical / norm,
    }[rule]
    for (values, found), norm in zip(pairs, norms, strict=True):
        scaled = [gradient * factor(norm) for gradient in found]
        torch.autograd.backward(values, scaled, retain_graph=True)
    for (name, have), want in zip(ghn.named_parameters(), reference.parameters(), strict=True):
        # The loss is float32 whatever the weights are.
        assert have.grad is not None and want.grad is not None
        pair = have.grad.float(), want.grad.float()
        assert_close(*pair, context="gradient", name=f"gradient of {name}")


def test_the_first_step_and_networks_without_gradient_are_left_alone() -> None:
    gradients = NetworkGradients("scaled")
    region = torch.tensor([3.0, 4.0])
    (norm,) = gradients.rescale([region])
    assert norm.item() == 5.0 and region.tolist() == [3.0, 4.0]
    gradients.observe([norm.item(), 0.0])
    zeros, empty = torch.zeros(2), torch.zeros(0)
    gradients.rescale([zeros, empty])
    assert zeros.tolist() == [0.0, 0.0]
    assert gradients.state_dict() == {"norms": [5.0]}


TINY = TrainConfig(
    dataset="digits",
    image_size=16,
    deepnets="20",
    meta_batch=2,
    batch_size=8,
    steps=4,
    hid=8,
    max_nodes=600,
    min_channels=16,
    max_channels=16,
    checkpoint_every=2,
    network_gradients="clipped",
    network_clip=0.5,
)


def test_a_run_that_is_continued_goes_on_with_the_norms(tmp_path: Path) -> None:
    train(TINY, tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(metrics: dict[str, float], total: int) -> None:
        if metrics["step"] == 3:
            raise Stop

    with pytest.raises(Stop):
        train(TINY, tmp_path / "twice", on_step=stop)
    state = read_checkpoint(list_checkpoints(tmp_path / "twice")[-1])
    assert len(state["extra"]["network_gradients"]["norms"]) == 4
    train(TINY, tmp_path / "twice")
    have, want = read_metrics(tmp_path / "twice"), read_metrics(tmp_path / "whole")
    assert [line["loss"] for line in have] == [line["loss"] for line in want]


def test_a_rule_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match=r"network_gradients: got 'mean', needs one of summed, "):
        TrainConfig(network_gradients="mean")
