"""Optimizers of the hypernetwork: what Muon takes, steps against a reference, states."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ghn_fast import GHN, GHNConfig
from ghn_fast.metatrain import TrainConfig, train
from ghn_fast.metatrain.optimizer_state import check_optimizer_state
from ghn_fast.metatrain.optimizers import MuonWithAdam, make_optimizer
from tolerances import assert_close


def hypernetwork() -> GHN:
    torch.manual_seed(0)
    return GHN(GHNConfig(hid=8, max_shape=(8, 8, 3, 3)))


def with_gradients(model: nn.Module, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


def test_muon_takes_the_matrices_of_layers() -> None:
    ghn = hypernetwork()
    optimizer = MuonWithAdam(ghn, 1e-3, 0.0)
    of = {parameter: name for name, parameter in ghn.named_parameters()}
    matrices, others = ([of[p] for p in group["params"]] for group in optimizer.param_groups)
    assert "blocks.hidden.weight" in matrices and "propagator.update.weight_ih" in matrices
    assert {"encoder.op.weight", "blocks.head.weight", "vectors.head.weight"} <= set(others)
    assert all(dict(ghn.named_parameters())[name].ndim == 2 for name in matrices)
    assert sorted(matrices + others) == sorted(of.values())


def orthogonal(matrix: Tensor) -> Tensor:
    """U V^T of the singular value decomposition, which Muon's iteration comes near."""
    u, _, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (u @ v).to(matrix.dtype)


def test_a_step_goes_along_the_orthogonal_factor_of_the_momentum() -> None:
    """The iteration leaves singular values between 0.5 and 1.5: directions are compared."""
    model = with_gradients(nn.Linear(24, 40), 1)
    before = copy.deepcopy(model)
    optimizer = MuonWithAdam(model, 1e-2, 0.0)
    momentum = torch.zeros(40, 24)
    expected = torch.zeros(40, 24)
    for seed in range(3):
        with_gradients(model, seed)
        gradient = model.weight.grad
        momentum = momentum + 0.05 * (gradient - momentum)
        looked_ahead = gradient + 0.95 * (momentum - gradient)
        expected -= 1e-2 * 0.2 * 40**0.5 * orthogonal(looked_ahead)
        optimizer.step()
    moved = (model.weight - before.weight).detach()
    cosine = torch.cosine_similarity(moved.flatten(), expected.flatten(), dim=0)
    assert cosine > 0.97
    # compared by hand: the iteration is no exact factorisation
    assert 0.75 < moved.norm() / expected.norm() < 1.25


def test_the_rest_is_adam() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Embedding(3, 4))
    other = copy.deepcopy(model)
    optimizer = make_optimizer("muon", model, 1e-2, 1e-3)
    adam = make_optimizer("adam", other, 1e-2, 1e-3)
    for seed in range(3):
        for each in (model, other):
            with_gradients(each, seed)
        optimizer.step()
        adam.step()
    for name, value in model.named_parameters():
        if name != "0.weight":
            assert_close(value, dict(other.named_parameters())[name])


def test_groups_and_state_are_those_of_both() -> None:
    model = hypernetwork()
    optimizer = MuonWithAdam(model, 1e-3, 0.0)
    before = copy.deepcopy(model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    with_gradients(model, 0)
    optimizer.step()
    for now, then in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(now, then)
    assert len(optimizer.state) == len(list(model.parameters()))
    with pytest.raises(ValueError, match="closure"):
        optimizer.step(lambda: 0.0)


def test_copies_and_wrong_use() -> None:
    model = hypernetwork()
    optimizer = MuonWithAdam(model, 1e-3, 0.0)
    with_gradients(model, 0)
    optimizer.step()
    both, expected = copy.deepcopy((model, optimizer)), copy.deepcopy(model)
    other = both[0]
    for each, of in ((model, optimizer), both):
        with_gradients(each, 1)
        of.step()
    for ours, theirs, before in zip(
        model.parameters(), other.parameters(), expected.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)
        assert not torch.equal(ours, before)
    with pytest.raises(ValueError, match="its model alone"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    with pytest.raises(ValueError, match="algorithm: got 'sgd', needs one of adam, adamw, muon"):
        make_optimizer("sgd", model, 1e-3, 0.0)


def trained(steps: list[int], state: dict[str, Any] | None, model: nn.Module) -> dict[str, Any]:
    optimizer = MuonWithAdam(model, 1e-3, 1e-5)
    if state is not None:
        check_optimizer_state(state, optimizer, 2)
        optimizer.load_state_dict(copy.deepcopy(state))
    for seed in steps:
        with_gradients(model, seed)
        optimizer.step()
    return copy.deepcopy(optimizer.state_dict())


def test_a_state_goes_on_as_if_it_had_never_stopped() -> None:
    whole, parts = hypernetwork(), hypernetwork()
    trained([0, 1, 2, 3], None, whole)
    state = trained([0, 1], None, parts)
    trained([2, 3], state, parts)
    for ours, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_state_of_another_optimizer_is_refused() -> None:
    model = hypernetwork()
    state = trained([0], None, model)
    adam = make_optimizer("adam", model, 1e-3, 1e-5)
    with_gradients(model, 0)
    adam.step()
    with pytest.raises(ValueError, match="param_groups: has 2, needs 1"):
        check_optimizer_state(state, adam, 1)
    muon = MuonWithAdam(model, 1e-3, 1e-5)
    with pytest.raises(ValueError, match="param_groups: has 1, needs 2"):
        check_optimizer_state(adam.state_dict(), muon, 1)
    check_optimizer_state(state, muon, 1)
    first = next(iter(state["state"]))
    state["state"][first]["momentum_buffer"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"momentum_buffer: got \[3\]"):
        check_optimizer_state(state, muon, 1)


def test_a_run_with_muon_is_continued_exactly(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "dataset": "digits", "image_size": 16, "batch_size": 8, "meta_batch": 2, "hid": 8,
        "max_channels": 32, "algorithm": "muon", "eval_every": 0, "checkpoint_every": 2,
        "deepnets": 50, "max_nodes": 300,
    }  # fmt: skip
    train(TrainConfig.from_dict({**settings, "steps": 4}), tmp_path / "whole")
    for steps in (2, 4):
        train(TrainConfig.from_dict({**settings, "steps": steps}), tmp_path / "parts")

    def losses(run: str) -> list[float]:
        lines = (tmp_path / run / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    assert len(losses("whole")) == 4
    assert losses("parts") == losses("whole")
