from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ghn_fast

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
