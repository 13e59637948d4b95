from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ghn_fast
from ghn_fast.hypernet import propagate

SMALL = ghn_fast.GHNConfig(max_shape=(8, 8, 3, 3), hid=8, num_classes=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return ghn_fast.save_pretrained(ghn_fast.GHN(SMALL), tmp_path / "ckpt")


def test_round_trip(tmp_path: Path) -> None:
    ghn = ghn_fast.GHN(SMALL)
    loaded = ghn_fast.from_pretrained(ghn_fast.save_pretrained(ghn, tmp_path / "ckpt"))
    assert loaded.config == SMALL
    assert not loaded.training
    for name, value in ghn.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    assert sorted(os.listdir(tmp_path / "ckpt")) == ["config.json", "model.safetensors"]


def test_published_layout_is_float32(small_fixtures_dir: Path) -> None:
    ghn = ghn_fast.from_pretrained(small_fixtures_dir / "parity" / "ghn2_cifar10.pt")
    assert all(p.dtype == torch.float32 for p in ghn.parameters())
    assert ghn.config == ghn_fast.GHNConfig()


def test_missing_key(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["blocks.head.bias"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"'blocks.head.bias' is missing, expected shape \(4,\)"):
        ghn_fast.from_pretrained(folder)


def test_other_shape(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["encoder.op.weight"] = torch.zeros(15, 12)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"'encoder.op.weight'.*\(15, 8\), got \(15, 12\)"
    ) as error:
        ghn_fast.from_pretrained(folder)
    assert "\n" not in str(error.value)


def test_unknown_key(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["extra"] = torch.zeros(2)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match="entry 'extra' is unknown"):
        ghn_fast.from_pretrained(folder)


def test_truncated_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a valid safetensors file"):
        ghn_fast.from_pretrained(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not valid JSON"), ("[]", "needs an object"), ('{"hid": 5}', "hid: got 5"),
     ('{"hidden": 5}', "unknown entry 'hidden'"), ('{"hid": "a"}', "config.json")],
)  # fmt: skip
def test_damaged_config(folder: Path, text: str, message: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        ghn_fast.from_pretrained(folder)


def test_missing_file_of_a_folder(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model.safetensors: missing"):
        ghn_fast.from_pretrained(folder)


def test_unknown_name() -> None:
    with pytest.raises(FileNotFoundError, match="got 'ghn9', needs a checkpoint file or folder"):
        ghn_fast.from_pretrained("ghn9")


def test_pickles_that_run_code_are_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"state_dict": Evil(), "config": {}}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="not a checkpoint that can be loaded safely"):
        ghn_fast.from_pretrained(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_foreign_files(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(1)}, tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match=r"published layout.*got \['weights'\]"):
        ghn_fast.from_pretrained(tmp_path / "foreign.pt")
    (tmp_path / "noise.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="loaded safely"):
        ghn_fast.from_pretrained(tmp_path / "noise.pt")


def test_published_config_entries_are_checked(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "config": {"hid": 32}}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="entry 'max_shape' is missing"):
        ghn_fast.from_pretrained(tmp_path / "c.pt")


def test_newest_checkpoint_of_a_run(tmp_path: Path) -> None:
    for step in (5, 20, 100):
        ghn = ghn_fast.GHN(SMALL)
        torch.nn.init.constant_(ghn.vectors.head.bias, step)
        ghn_fast.save_pretrained(ghn, tmp_path / "checkpoints" / f"step-{step:08d}")
    loaded = ghn_fast.from_pretrained(tmp_path)
    assert float(loaded.vectors.head.bias.detach()[0]) == 100


def test_hub_layout(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[str] = []

    def snapshot_download(name: str, **_: object) -> str:
        asked.append(name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert ghn_fast.from_pretrained("someone/ghn").config == SMALL
    assert asked == ["someone/ghn"]


def test_interrupted_save_leaves_the_old_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        ghn_fast.save_pretrained(ghn_fast.GHN(SMALL), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_config_is_readable_json(folder: Path) -> None:
    assert json.loads((folder / "config.json").read_text())["max_shape"] == [8, 8, 3, 3]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.complex64])
def test_weights_of_another_kind(folder: Path, dtype: torch.dtype) -> None:
    path = folder / "model.safetensors"
    state = {name: value.to(dtype) for name, value in load_file(path).items()}
    save_file(state, path)
    with pytest.raises(ValueError, match=f"has the wrong type, expected a floating.*got {dtype}"):
        ghn_fast.from_pretrained(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(folder: Path, value: float) -> None:
    state = load_file(folder / "model.safetensors")
    state["blocks.output.bias"][3] = value
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"'blocks.output.bias' has NaN or infinite values"):
        ghn_fast.from_pretrained(folder)


def test_weights_that_are_too_large_for_float32(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["blocks.output.bias"] = state["blocks.output.bias"].double() + 1e300
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"'blocks.output.bias' has NaN or infinite values"):
        ghn_fast.from_pretrained(folder)


def test_half_precision_weights_are_read(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({k: v.bfloat16() for k, v in state.items()}, folder / "model.safetensors")
    loaded = ghn_fast.from_pretrained(folder).state_dict()
    assert all(torch.equal(v.bfloat16().float(), loaded[k]) for k, v in state.items())


@pytest.mark.parametrize(
    "change",
    [{"hid": 10**6}, {"hid": 4 * 10**9}, {"max_shape": [8, 8, 10**6, 10**6]}, {"hid": 16000}],
)
def test_sizes_are_compared_before_they_are_allocated(
    folder: Path, change: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    devices: list[str] = []
    make = torch.nn.Linear.__init__

    def spy(self: torch.nn.Linear, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        devices.append(self.weight.device.type)

    monkeypatch.setattr(torch.nn.Linear, "__init__", spy)
    with pytest.raises(ValueError, match=r"wrong shape|no network can be as large"):
        ghn_fast.from_pretrained(folder)
    assert set(devices) <= {"meta"}


def test_endless_rounds_of_propagation_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "steps": 10**9}))
    with pytest.raises(ValueError, match="steps: got 1000000000, needs at most 1000"):
        ghn_fast.from_pretrained(folder)


def test_a_propagator_that_needs_values_when_it_is_built(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Values(torch.nn.Module):
        def __init__(self, config: ghn_fast.GHNConfig) -> None:
            super().__init__()
            self.scale = float(torch.linspace(0, 1, config.hid).sum())

        def forward(self, x: torch.Tensor, batch: Any) -> torch.Tensor:
            return x * self.scale

    monkeypatch.setitem(propagate._registry, "needs_values", Values)
    config = replace(SMALL, propagator="needs_values")
    loaded = ghn_fast.from_pretrained(ghn_fast.save_pretrained(ghn_fast.GHN(config), folder))
    assert loaded.config == config


def test_threads_that_save_into_one_folder(folder: Path) -> None:
    ghn = ghn_fast.GHN(SMALL)
    errors: list[Exception] = []

    def work(call: Callable[[], object]) -> None:
        for _ in range(10):
            try:
                call()
            except Exception as error:
                errors.append(error)

    calls = [
        *[lambda: ghn_fast.save_pretrained(ghn, folder)] * 3,
        *[lambda: ghn_fast.from_pretrained(folder)] * 2,
    ]
    threads = [threading.Thread(target=work, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]


def test_other_rules_for_the_graphs(folder: Path) -> None:
    ghn = ghn_fast.from_pretrained(folder, rules="ghn2-published")
    assert ghn.config == replace(SMALL, rules="ghn2-published")
    with pytest.raises(ValueError, match="rules: got 'other', needs one of ghn2"):
        ghn_fast.from_pretrained(folder, rules="other")
