from __future__ import annotations

import torch
from torch import nn

from ghn_fast.metatrain.gradients import GradientBuffer
from tolerances import assert_close


def test_gradients_are_views_of_one_buffer() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    model(x).square().sum().backward()
    want = [p.grad.clone() for p in model.parameters()]
    buffer = GradientBuffer(list(model.parameters()), extra=2)
    for _ in range(2):
        buffer.start()
        buffer.stats[0] = 7.0
        model(x).square().sum().backward()
        buffer.finish()
        for parameter, gradient in zip(model.parameters(), want, strict=True):
            assert_close(parameter.grad, gradient, context="gradient")
        assert buffer.stats.tolist() == [7.0, 0.0]
    storage = {p.grad.untyped_storage().data_ptr() for p in model.parameters()}
    assert len(storage) == 1


def test_clipping_is_that_of_torch() -> None:
    model = nn.Linear(3, 4)
    buffer = GradientBuffer(list(model.parameters()), extra=3)
    for largest in (0.1, 1e6):
        buffer.start()
        buffer.stats.fill_(1e9)
        model(torch.ones(2, 3)).sum().backward()
        want = [p.grad.clone() for p in model.parameters()]
        clones = [nn.Parameter(torch.zeros_like(g)) for g in want]
        for clone, gradient in zip(clones, want, strict=True):
            clone.grad = gradient
        norm = nn.utils.clip_grad_norm_(clones, largest)
        assert_close(buffer.clip(largest), norm)
        for parameter, clone in zip(model.parameters(), clones, strict=True):
            assert_close(parameter.grad, clone.grad)
        assert buffer.stats.tolist() == [1e9] * 3
