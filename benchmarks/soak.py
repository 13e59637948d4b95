"""Kill a run again and again at random moments; its metrics have to be those of a run left alone.

    python benchmarks/soak.py [--kills 10] [--steps 60] [--seed 0] [--processes 1]

Runs `ghn-fast train` with --steps steps once undisturbed, and once killed by SIGKILL --kills times,
each time a random while after it has begun its steps. Compares every loss and every weight; exits
with status 1 if one differs. With --processes above 1, torchrun starts the job, one of whose
processes is killed; losses are then compared with those of one process.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import ghn_fast
from ghn_fast.metatrain.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[1]


def command(arguments: argparse.Namespace, out: Path, processes: int) -> list[str]:
    """The command that starts or continues a run."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc-per-node", str(processes), "--max-restarts", "0"]
    return [
        *launcher,
        *("-m", "ghn_fast", "train", "--config", str(ROOT / "configs" / "digits-quick.yaml")),
        *("--steps", str(arguments.steps), "--checkpoint-every", "7", "--out", str(out)),
    ]


def run(arguments: argparse.Namespace, out: Path, processes: int) -> None:
    """Start or continue a run, and wait for its end."""
    done = subprocess.run(
        command(arguments, out, processes), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr)


def run_and_kill(arguments: argparse.Namespace, out: Path, wait: float) -> bool:
    """Start or continue, kill a while after the first step; says whether it was still running."""
    before = (out / "metrics.jsonl").stat().st_mtime_ns if (out / "metrics.jsonl").is_file() else 0
    process = subprocess.Popen(
        command(arguments, out, arguments.processes),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    metrics = out / "metrics.jsonl"
    while process.poll() is None:
        if metrics.is_file() and metrics.stat().st_mtime_ns > before:
            break
        time.sleep(0.01)
    time.sleep(wait)
    running = process.poll() is None
    # The whole job at once, as when a machine is lost.
    os.killpg(process.pid, signal.SIGKILL) if running else None
    process.wait()
    return running


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        start = time.perf_counter()
        run(arguments, whole, 1)
        most = 2.5 * (time.perf_counter() - start) / arguments.kills
        kills = 0
        for _ in range(arguments.kills):
            if not run_and_kill(arguments, killed, rng.uniform(0, most)):
                break
            kills += 1
            steps = [line["step"] for line in read_metrics(killed)]
            print(f"killed after step {steps[-1] if steps else 0}", flush=True)
        run(arguments, killed, arguments.processes)
        losses = [[line["loss"] for line in read_metrics(out)] for out in (whole, killed)]
        weights = [ghn_fast.from_pretrained(out).state_dict() for out in (whole, killed)]
    same = losses[0] == losses[1] and len(losses[0]) == arguments.steps
    same &= all(torch.equal(weights[1][name], value) for name, value in weights[0].items())
    print(f"{kills} kills, {arguments.steps} steps: {'identical' if same else 'DIFFERENT'}")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
