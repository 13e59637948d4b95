"""A run that is killed again and again at random moments has the numbers of one left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import ghn_fast
from ghn_fast.metatrain.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
KILLS, STEPS = 10, 60


def command(out: Path, processes: int) -> list[str]:
    """The command that starts or continues a run."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc-per-node", str(processes), "--max-restarts", "0"]
    return [
        *launcher,
        *("-m", "ghn_fast", "train", "--config", str(ROOT / "configs" / "digits-quick.yaml")),
        *("--steps", str(STEPS), "--checkpoint-every", "7", "--out", str(out)),
    ]


def run(out: Path, processes: int) -> None:
    """Start or continue a run, and wait for its end."""
    done = subprocess.run(command(out, processes), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run_and_kill(out: Path, processes: int, wait: float) -> bool:
    """Start or continue, kill a while after the first step; says whether it was still running."""
    metrics = out / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns if metrics.is_file() else 0
    process = subprocess.Popen(
        command(out, processes),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while process.poll() is None:
        if metrics.is_file() and metrics.stat().st_mtime_ns > before:
            break
        time.sleep(0.01)
    time.sleep(wait)
    is_running = process.poll() is None
    if is_running:
        # The whole job at once, as when a machine is lost.
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return is_running


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_losses_and_weights_survive_kills(tmp_path: Path, processes: int) -> None:
    """Kills the whole job at once; with two processes, losses are those of one."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    start = time.perf_counter()
    run(whole, 1)
    most = 2.5 * (time.perf_counter() - start) / KILLS
    rng = random.Random(0)
    kills = 0
    while kills < KILLS and run_and_kill(killed, processes, rng.uniform(0, most)):
        kills += 1
    assert kills > 0
    run(killed, processes)
    losses = [[line["loss"] for line in read_metrics(out)] for out in (whole, killed)]
    weights = [ghn_fast.from_pretrained(out).state_dict() for out in (whole, killed)]
    assert losses[0] == losses[1] and len(losses[0]) == STEPS
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())
