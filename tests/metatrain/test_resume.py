"""Checkpoints of runs: what is damaged, or of another run, is refused by name before it is used."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ghn_fast import GHN, GHNConfig
from ghn_fast.metatrain.resume import read_checkpoint, restore, save_checkpoint

STEP = 30


def make() -> tuple[GHN, torch.optim.Optimizer]:
    torch.manual_seed(0)
    ghn = GHN(GHNConfig(hid=8, max_shape=(8, 8, 3, 3)))
    return ghn, torch.optim.Adam(ghn.parameters(), fused=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint after one update of step 30."""
    ghn, optimizer = make()
    for parameter in ghn.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return save_checkpoint(tmp_path, STEP, ghn, optimizer, 3)


def each(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    """Change the moments of every parameter."""

    def apply(state: dict[str, Any]) -> None:
        for moments in state["optimizer"]["state"].values():
            change(moments)

    return apply


def transposed(moments: dict[str, Any]) -> None:
    value = moments["exp_avg"]
    if value.ndim == 2:
        moments["exp_avg"] = value.t().contiguous().t()


def swapped(state: dict[str, Any]) -> None:
    moments = state["optimizer"]["state"]
    moments[0], moments[1] = moments[1], moments[0]


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "step inf": lambda s: s.update(step=float("inf")),
    "step of another folder": lambda s: s.update(step=25),
    "step true": lambda s: s.update(step=True),
    "no step": lambda s: s.pop("step"),
    "extra": lambda s: s.update(extra=3),
    "no optimizer": lambda s: s.update(optimizer=None),
    "no moments": lambda s: s["optimizer"].update(state={}),
    "moments are a list": lambda s: s["optimizer"].update(state=[1, 2]),
    "fewer moments": lambda s: s["optimizer"]["state"].pop(0),
    "groups": lambda s: s["optimizer"].update(param_groups=[]),
    "reversed": lambda s: s["optimizer"]["param_groups"][0]["params"].reverse(),
    "amsgrad": lambda s: s["optimizer"]["param_groups"][0].update(amsgrad=True),
    "swapped": swapped,
    "moment missing": each(lambda m: m.pop("exp_avg")),
    "moment too short": each(lambda m: m.update(exp_avg_sq=torch.zeros(1))),
    "moment of integers": each(lambda m: m.update(exp_avg=m["exp_avg"].long())),
    "moment in double": each(lambda m: m.update(exp_avg=m["exp_avg"].double())),
    "moment is a number": each(lambda m: m.update(exp_avg=1.0)),
    "moment with NaN": each(lambda m: m["exp_avg"].view(-1)[:1].fill_(float("nan"))),
    "moment in another order": each(transposed),
    "step of five elements": each(lambda m: m.update(step=torch.zeros(5))),
    "step of the moments": each(lambda m: m["step"].fill_(10**9)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_state_that_does_not_fit_is_refused(folder: Path, change: str) -> None:
    path = folder / "trainer.pt"
    state = copy.deepcopy(torch.load(path, weights_only=True))
    CHANGES[change](state)
    torch.save(state, path)
    (folder / "checksums.json").unlink()
    ghn, optimizer = make()
    with pytest.raises(ValueError, match=rf"trainer.pt: damaged, remove {folder} to resume"):
        restore(read_checkpoint(folder), ghn, optimizer)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "trainer.pt"])
def test_every_flipped_bit_is_noticed(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    for place in range(0, len(whole), max(len(whole) // 20, 1)):
        data = bytearray(whole)
        data[place] ^= 4
        (folder / name).write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name}: damaged.*not as it was written"):
            read_checkpoint(folder)


def test_what_was_saved_is_restored(folder: Path) -> None:
    ghn, optimizer = make()
    assert restore(read_checkpoint(folder), ghn, optimizer) == STEP
    expected = torch.load(folder / "trainer.pt", weights_only=True)["optimizer"]["state"]
    for number, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            assert torch.equal(value, expected[number][name])


def test_checkpoints_without_checksums_are_read(folder: Path) -> None:
    (folder / "checksums.json").unlink()
    assert restore(read_checkpoint(folder), *make()) == STEP


def test_steps_without_an_update_leave_no_moments(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, 3, *make(), 3)
    ghn, optimizer = make()
    assert restore(read_checkpoint(folder), ghn, optimizer) == 3
    assert not optimizer.state
