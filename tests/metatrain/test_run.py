from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import ghn_fast
from ghn_fast.metatrain import TrainConfig, train
from ghn_fast.metatrain import run as run_module
from ghn_fast.metatrain.candidate_run import Job
from ghn_fast.metatrain.candidates import FunctionalNetwork
from ghn_fast.metatrain.metrics import JsonLines, read_metrics
from ghn_fast.metatrain.resume import list_checkpoints
from ghn_fast.utils.json_lines import read_lines
from ghn_fast.utils.locks import FolderLock

TINY = TrainConfig(
    dataset="digits",
    image_size=16,
    deepnets="20",
    meta_batch=1,
    batch_size=8,
    steps=4,
    hid=8,
    max_nodes=150,
    min_channels=32,
    max_channels=32,
    checkpoint_every=2,
)


def losses(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_metrics(run)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return ghn_fast.from_pretrained(run).state_dict()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reference") / "run"
    train(TINY, out)
    return out


class Killed(Exception):
    """Stands for a process that dies."""


def killed_at(step: int) -> Any:
    def on_step(metrics: dict[str, Any], total: int) -> None:
        if metrics["step"] == step:
            raise Killed

    return on_step


def test_a_run_leaves_metrics_checkpoints_and_settings(reference: Path) -> None:
    lines = [json.loads(line) for line in (reference / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all({"loss", "top1", "seconds", "lr", "skipped"} <= set(line) for line in lines)
    assert [path.name for path in list_checkpoints(reference)] == ["step-00000002", "step-00000004"]
    assert list((reference / "tensorboard").glob("events*"))
    assert TrainConfig.from_dict(json.loads((reference / "train.json").read_text())) == TINY
    assert ghn_fast.from_pretrained(reference).config.hid == 8


@pytest.mark.parametrize("step", [1, 2, 3])
def test_killed_run_continues_to_the_same_numbers(
    reference: Path, tmp_path: Path, step: int
) -> None:
    with pytest.raises(Killed):
        train(TINY, tmp_path, on_step=killed_at(step))
    train(TINY, tmp_path)
    assert losses(tmp_path) == losses(reference)
    for name, value in weights(reference).items():
        assert torch.equal(weights(tmp_path)[name], value), name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_with_a_checkpoint(reference: Path, tmp_path: Path, number: int) -> None:
    def on_step(metrics: dict[str, Any], total: int) -> None:
        if metrics["step"] == 3:
            os.kill(os.getpid(), number)

    result = train(TINY, tmp_path, on_step=on_step)
    assert (result.step, result.interrupted) == (3, True)
    assert result.checkpoint.name == "step-00000003"
    assert not train(TINY, tmp_path).interrupted
    assert losses(tmp_path) == losses(reference)


def test_finished_run_does_nothing(reference: Path) -> None:
    before = (reference / "metrics.jsonl").read_bytes()
    result = train(TINY, reference)
    assert (result.step, result.total) == (4, 4)
    assert (reference / "metrics.jsonl").read_bytes() == before


def test_line_cut_off_by_a_crash_is_repaired(reference: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "lo')
    (run / "checkpoints" / ".partial-step-00000004-1").mkdir()
    train(TINY, run)
    assert losses(run) == losses(reference)
    assert sorted(os.listdir(run / "checkpoints")) == ["step-00000002", "step-00000004"]


def test_other_settings_are_refused(reference: Path) -> None:
    changed = TrainConfig.from_dict({**TINY.to_dict(), "lr": 0.01})
    with pytest.raises(ValueError, match=r"lr: got 0.01, but the run in .* started with 0.001"):
        train(changed, reference)


def full(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


def test_full_disk_at_the_end_keeps_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_step(metrics: dict[str, Any], total: int) -> None:
        if metrics["step"] == 3:
            monkeypatch.setattr(torch, "save", full)

    with (
        pytest.warns(RuntimeWarning, match="step 4 could not be saved: .*No space left"),
        pytest.raises(OSError, match="No space left"),
    ):
        train(TINY, tmp_path, on_step=on_step)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000002"]
    assert ghn_fast.from_pretrained(tmp_path).config.hid == 8


def test_full_disk_on_the_way_is_told_and_survived(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, write = torch.save, JsonLines._write_all

    def part(self: JsonLines, data: bytes) -> None:
        self._file.write(data[:20])
        full()

    def on_step(metrics: dict[str, Any], total: int) -> None:
        if metrics["step"] == 1:
            monkeypatch.setattr(torch, "save", full)
            monkeypatch.setattr(JsonLines, "_write_all", part)
        if metrics["step"] == 3:
            monkeypatch.setattr(torch, "save", save)
            monkeypatch.setattr(JsonLines, "_write_all", write)

    with pytest.warns(RuntimeWarning) as warned:
        train(TINY, tmp_path, on_step=on_step)
    messages = [str(warning.message) for warning in warned]
    assert any("metrics.jsonl" in m and "kept in memory" in m for m in messages)
    assert any("step 2 could not be saved" in m and "none before it" in m for m in messages)
    assert losses(tmp_path) == losses(reference)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000004"]


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [("nan", "the loss is not finite"), ("memory", "out of memory")],
)
def test_planted_architectures_are_skipped_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str, reason: str
) -> None:
    run, count = FunctionalNetwork.__call__, [0]

    def planted(self: FunctionalNetwork, parameters: Any, images: Any) -> Any:
        count[0] += 1
        if count[0] == 3:
            if trouble == "memory":
                raise torch.OutOfMemoryError("planted")
            for tensor in parameters.values():
                tensor.data.fill_(torch.nan)
        return run(self, parameters, images)

    monkeypatch.setattr(FunctionalNetwork, "__call__", planted)
    monkeypatch.setattr(Job, "compiled", False)
    result = train(TINY, tmp_path)
    assert (result.step, result.interrupted) == (4, False)
    assert [line["skipped"] for line in read_metrics(tmp_path)] == [0, 0, 1, 0]
    assert [line["loss"] is None for line in read_metrics(tmp_path)] == [False, False, True, False]
    (line,) = read_lines(tmp_path / "skipped.jsonl")
    assert (line["step"], line["reason"]) == (3, reason)
    assert line["name"].startswith("train-")
    config = ghn_fast.deepnets.NetworkConfig.from_dict(line["config"])
    assert config.n_cells > 0
    assert ghn_fast.from_pretrained(tmp_path).encoder.op.weight.isfinite().all()


def test_too_many_skipped_architectures_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(self: FunctionalNetwork, parameters: Any, images: Any) -> None:
        raise torch.OutOfMemoryError("planted")

    monkeypatch.setattr(FunctionalNetwork, "__call__", out_of_memory)
    monkeypatch.setattr(Job, "compiled", False)
    monkeypatch.setattr(run_module, "SKIP_WINDOW", 3)
    with pytest.raises(RuntimeError, match="max_skip_rate: 3 of the last 3 architectures"):
        train(TINY, tmp_path)
    assert len(read_metrics(tmp_path)) == 3


def test_periodic_evaluation_is_resumed_too(tmp_path: Path) -> None:
    config = TrainConfig.from_dict({**TINY.to_dict(), "eval_every": 2, "eval_networks": 2})
    train(config, tmp_path / "whole")
    with pytest.raises(Killed):
        train(config, tmp_path / "killed", on_step=killed_at(3))
    train(config, tmp_path / "killed")
    found = [
        [(line["step"], line["top1"], line["networks"]) for line in read_lines(path)]
        for path in sorted(tmp_path.glob("*/evaluations.jsonl"))
    ]
    assert found[0] == found[1]
    assert [(line[0], line[2]) for line in found[0]] == [(2, 2), (4, 2)]


@pytest.mark.parametrize("pool_size", [0, 3])
def test_numbers_do_not_depend_on_graph_workers(tmp_path: Path, pool_size: int) -> None:
    settings = {**TINY.to_dict(), "pool_size": pool_size}
    train(TrainConfig.from_dict(settings), tmp_path / "whole")
    for workers, step in ((1, 1), (3, 3)):
        with pytest.raises(Killed):
            config = TrainConfig.from_dict({**settings, "graph_workers": workers})
            train(config, tmp_path / "killed", on_step=killed_at(step))
    train(TrainConfig.from_dict({**settings, "graph_workers": 2}), tmp_path / "killed")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_pool_of_architectures_is_resumed_too(tmp_path: Path) -> None:
    config = TrainConfig.from_dict(
        {**TINY.to_dict(), "pool_size": 3, "pool_refresh": 2, "checkpoint_every": 3}
    )
    train(config, tmp_path / "whole")
    with pytest.raises(Killed):
        train(config, tmp_path / "killed", on_step=killed_at(4))
    train(config, tmp_path / "killed")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_checkpoints_at_intervals_of_time(tmp_path: Path) -> None:
    config = TrainConfig.from_dict(
        {**TINY.to_dict(), "checkpoint_every": 1000, "checkpoint_minutes": 1e-9}
    )
    train(config, tmp_path)
    names = [path.name for path in list_checkpoints(tmp_path)]
    assert names == ["step-00000002", "step-00000003", "step-00000004"]


def test_numbers_do_not_depend_on_threads(tmp_path: Path) -> None:
    config = TrainConfig.from_dict({**TINY.to_dict(), "meta_batch": 2, "max_nodes": 300})
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            train(config, tmp_path / str(threads))
    finally:
        torch.set_num_threads(before)
    assert losses(tmp_path / "1") == losses(tmp_path / "2")


def test_killed_process_continues_to_the_same_numbers(reference: Path, tmp_path: Path) -> None:
    settings = tmp_path / "tiny.yaml"
    settings.write_text(json.dumps({**TINY.to_dict(), "deepnets": "20"}))
    out = tmp_path / "run"
    command = [sys.executable, "-m", "ghn_fast", "train", "--config", settings, "--out", out]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
    while not losses(out) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert losses(out) == losses(reference)
    for name, value in weights(reference).items():
        assert torch.equal(weights(out)[name], value), name


@pytest.mark.parametrize("name", ["trainer.pt", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"garbage"])
def test_damaged_checkpoint_is_named(
    reference: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    path = run / "checkpoints" / "step-00000004" / name
    path.write_bytes(path.read_bytes()[:500] if content is None else content)
    longer = TrainConfig.from_dict({**TINY.to_dict(), "steps": 6})
    with pytest.raises(ValueError, match=rf"{name}: damaged, remove"):
        train(longer, run)


def test_auto_stays_what_it_was_when_the_run_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen() -> str:
        return json.loads((tmp_path / "run" / "train.json").read_text())["precision"]

    def auto(steps: int) -> TrainConfig:
        return TrainConfig.from_dict({**TINY.to_dict(), "precision": "auto", "steps": steps})

    monkeypatch.setattr(run_module, "choose", lambda device: ("bf16", "the test says so"))
    assert "bf16 on cpu (the test says so)" in run_module.networks_run_in(auto(2), tmp_path / "run")
    train(auto(2), tmp_path / "run")
    assert chosen() == "bf16"
    monkeypatch.setattr(run_module, "choose", lambda device: ("float32", "the test says so"))
    assert "bf16 on cpu (as the run" in run_module.networks_run_in(auto(3), tmp_path / "run")
    assert train(auto(3), tmp_path / "run").step == 3
    assert chosen() == "bf16"
    with pytest.raises(ValueError, match="precision: got float32, but the run"):
        train(TrainConfig.from_dict({**TINY.to_dict(), "steps": 4}), tmp_path / "run")


def test_mistakes_leave_no_run_behind(tmp_path: Path) -> None:
    bad = TrainConfig.from_dict({**TINY.to_dict(), "dataset": "mnist9"})
    with pytest.raises(ValueError, match="digits"):
        train(bad, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_starting_weights(reference: Path, tmp_path: Path) -> None:
    config = TrainConfig.from_dict({**TINY.to_dict(), "init": str(reference), "lr": 1e-12})
    train(config, tmp_path / "run")
    for name, value in weights(reference).items():
        # compared by hand: steps of 1e-12 must not show, where the table would let 1e-5 pass.
        torch.testing.assert_close(weights(tmp_path / "run")[name], value, rtol=0, atol=1e-9)


def test_a_folder_that_another_run_holds_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    lock = FolderLock(tmp_path / "run")
    with pytest.raises(ValueError, match=r"process \d+ on .* is writing into it"):
        train(TINY, tmp_path / "run")
    lock.release()


def test_a_folder_that_is_removed_is_written_again(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def remove(metrics: dict[str, Any], total: int) -> None:
        if metrics["step"] == 1:
            # Moved first: TensorBoard's thread may write into the folder while it is emptied.
            run.rename(tmp_path / "removed")
            shutil.rmtree(tmp_path / "removed")

    with pytest.warns(RuntimeWarning, match=r"metrics.jsonl was removed .* anew with step 2"):
        train(TINY, run, on_step=remove)
    assert [line["step"] for line in read_metrics(run)] == [2, 3, 4]
    assert (run / "train.json").is_file()
    assert list_checkpoints(run)
