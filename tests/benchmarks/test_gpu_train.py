"""Training in slices: what a slice leaves is what the next one continues from, exactly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu_train
import pytest

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    **{"dataset": "digits", "deepnets": 20, "meta_batch": 1, "batch_size": 8, "steps": 4},
    **{"hid": 8, "max_shape": [16, 16, 3, 3], "checkpoint_every": 1, "max_channels": 32},
}


@pytest.fixture
def slices() -> Any:
    """The module of the script."""
    return gpu_train


def losses(run: Path) -> list[tuple[int, float]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [(line["step"], line["loss"]) for line in map(json.loads, lines)]


def test_slices_give_the_numbers_of_one_run(slices: Any, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(SETTINGS))
    options = ["--config", str(config)]
    assert slices.train(tmp_path / "whole", options, 300) == 0
    archive = tmp_path / "archive"
    # A slice that is over after two steps, as far as its settings say.
    first = ["--archive", str(archive), "--seconds", "300", "--", *options]
    assert slices.main([*first, "--steps", "2"]) == 0
    assert json.loads((archive / "run.json").read_text())["step"] == 2
    assert all(path.is_file() for path in archive.iterdir())
    assert slices.main(first) == 0
    assert json.loads((archive / "run.json").read_text())["step"] == 4
    assert slices.unpack(archive, tmp_path / "sliced") == 4
    assert losses(tmp_path / "sliced") == losses(tmp_path / "whole")
    weights = "checkpoints/step-00000004/model.safetensors"
    assert (tmp_path / "sliced" / weights).read_bytes() == (
        tmp_path / "whole" / weights
    ).read_bytes()


def test_an_archive_is_cut_into_parts_and_put_together_again(
    slices: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "MOST_BYTES", 200)
    run, archive = tmp_path / "run", tmp_path / "archive"
    for step in (3, 12):
        folder = run / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(bytes((step * k * k) % 251 for k in range(999)))
        (run / "train.json").write_text("{}")
        manifest = slices.pack(run, archive)
        assert manifest["step"] == step and len(manifest["parts"]) > 2
        names = {part["name"] for part in manifest["parts"]}
        assert {path.name for path in archive.iterdir()} == {"run.json", *names}
        assert all(path.stat().st_size <= 200 for path in archive.glob("run-*"))
    again = tmp_path / "again"
    assert slices.unpack(archive, again) == 12
    assert [path.name for path in (again / "checkpoints").iterdir()] == ["step-00000012"]
    assert (again / "train.json").read_text() == "{}"
    damaged = archive / manifest["parts"][1]["name"]
    damaged.write_bytes(b"x")
    with pytest.raises(ValueError, match="damaged"):
        slices.unpack(archive, again)
    damaged.unlink()
    with pytest.raises(ValueError, match="missing"):
        slices.unpack(archive, again)
    assert slices.unpack(tmp_path / "nothing", again) == 0


def test_time_that_is_over_ends_training_with_a_checkpoint(
    slices: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import pathlib, signal, sys, time\n"
        "def end(*_):\n"
        f"    folder = pathlib.Path({str(tmp_path)!r}) / 'run/checkpoints/step-00000007'\n"
        "    folder.mkdir(parents=True)\n"
        "    sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "time.sleep(60)\n"
    )
    popen = subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        return popen([sys.executable, "-c", code], **options)

    monkeypatch.setattr(slices.subprocess, "Popen", start)
    assert slices.train(tmp_path / "run", [], 1.0) == 0
    assert slices.pack(tmp_path / "run", tmp_path / "archive")["step"] == 7
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        slices.pack(tmp_path / "other", tmp_path / "archive")
