from __future__ import annotations

import torch

import ghn_fast
from ghn_fast.deepnets import SampledNets
from ghn_fast.metatrain.config import TrainConfig
from ghn_fast.metatrain.executor import Executor
from ghn_fast.metatrain.norm_penalty import add_norm_penalty
from ghn_fast.metatrain.step import MetaTrainer
from tolerances import assert_close


def test_the_gradient_is_that_of_the_sum_of_norms() -> None:
    shapes = [{"a": (3, 4), "b": (7,)}, {"a": (2, 2, 1, 3), "c": (5,), "none": (0,)}]
    ranges, end = [], 0
    for of_network in shapes:
        ranges.append({})
        for name, shape in of_network.items():
            ranges[-1][name] = (end, shape)
            end += -(-torch.Size(shape).numel() // 16) * 16
    flat = torch.randn(end, dtype=torch.float64, requires_grad=True)
    factors = torch.tensor([0.5, 0.25], dtype=torch.float64)
    with torch.no_grad():
        # A tensor of zeros has no direction.
        offset = ranges[1]["c"][0]
        flat[offset : offset + 5] = 0
    total = sum(
        factors[i] * flat[offset : offset + torch.Size(shape).numel()].norm()
        for i, of_network in enumerate(ranges)
        for name, (offset, shape) in of_network.items()
        if name not in ("c", "none")
    )
    (want,) = torch.autograd.grad(total, flat)
    start = torch.randn(end, dtype=torch.float64)
    got = start.clone()
    add_norm_penalty(flat, got, ranges, factors)
    assert_close(got, start + want, context="gradient")
    add_norm_penalty(flat, got, [], factors[:0])


def test_a_step_adds_it() -> None:
    """With a penalty that outweighs the loss all predicted parameters shrink."""
    config = ghn_fast.GHNConfig(max_shape=(16, 16, 3, 3), hid=8, normalize=False)
    nets = SampledNets("train", 2, 3)
    items = [net.with_config(net.config, image_size=8) for net in nets]
    images, targets = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    norms = {}
    for penalty in (0.0, 10.0):
        torch.manual_seed(0)
        ghn = ghn_fast.GHN(config).train()
        optimizer = torch.optim.AdamW(ghn.parameters(), 1e-3, weight_decay=0.0)
        trainer = MetaTrainer(ghn, optimizer, meta_batch=2, grad_clip=5.0, norm_penalty=penalty)
        for step in range(5):
            trainer.step(items, images, targets, step)
        trainer.close()
        with torch.no_grad():
            norms[penalty] = float(ghn.predict_flat([item.graph for item in items])[0].norm())
    assert norms[10.0] < norms[0.0]


def test_label_smoothing_is_part_of_the_loss() -> None:
    ghn = ghn_fast.GHN(ghn_fast.GHNConfig(max_shape=(16, 16, 3, 3), hid=8))
    item = SampledNets("train", 1, 3)[0]
    item = item.with_config(item.config, image_size=8)
    flat, plan = ghn.predict_flat([item.graph])
    images, targets = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    losses = []
    for smoothing in (0.0, 0.1):
        executor = Executor("cpu", label_smoothing=smoothing)
        outcome = executor.run(
            [item], plan.ranges, flat, images, targets, num_classes=10, factor=1.0
        )
        executor.close()
        losses.append(float(outcome.stats[0, 1]))
    assert losses[0] != losses[1]


def test_the_warm_up_begins_where_it_is_told() -> None:
    config = TrainConfig(
        steps=100, lr=1.0, schedule="cosine", warmup_steps=10, warmup_lr=0.1, algorithm="adamw"
    )
    rates = [config.learning_rate(step, 100) for step in range(100)]
    assert 0.1 < rates[0] < 0.2
    assert rates[:9] == sorted(rates[:9])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert TrainConfig(propagator="graphormer", hid=16).ghn_config(10, 32).max_shape == (
        16, 16, 11, 11
    )  # fmt: skip
