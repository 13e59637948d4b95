"""Meta-training steps on architectures that were never seen before, of two revisions in turn.

    python benchmarks/fresh_steps.py --base FOLDER [--size 32] [--precision float32] [--threads 2]

FOLDER is a checkout of the revision to compare with, whose extension is built. Each round runs
the same steps of both in processes of their own; a line gives the medians of a step and of the
ratios of the same step. Images are random numbers; nothing is kept of an architecture.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]


def steps(arguments: argparse.Namespace) -> list[float]:
    """Seconds of each step of the revision that is imported; the first one warms up."""
    import torch

    import ghn_fast
    from ghn_fast.deepnets import SampledNets, meta_batches
    from ghn_fast.metatrain.executor import Executor
    from ghn_fast.metatrain.memory import keep_freed_memory
    from ghn_fast.metatrain.step import MetaTrainer

    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    torch.manual_seed(0)
    ghn = ghn_fast.GHN(ghn_fast.GHNConfig(hid=32, max_shape=(64, 64, 11, 11))).train()
    trainer = MetaTrainer(
        ghn,
        torch.optim.Adam(ghn.parameters(), 1e-3, fused=True),
        meta_batch=8,
        grad_clip=5.0,
        executor=Executor("cpu", precision=arguments.precision),
    )
    batches = meta_batches(SampledNets("train", 10_000, seed=1), 8, seed=arguments.seed)
    images = torch.randn(64, 3, arguments.size, arguments.size)
    targets = torch.randint(0, 10, (64,))
    seconds = []
    for number in range(arguments.steps + 1):
        architectures = next(batches)
        start = time.perf_counter()
        trainer.step(architectures, images, targets, number)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def of_tree(folder: Path) -> list[float]:
    """The same in a process that imports ``ghn_fast`` from a folder."""
    command = [sys.executable, __file__, *sys.argv[1:], "--here"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seconds: list[float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--size", type=int, default=32, help="Pixels of an image's side.")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6, help="Of each process and round.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=3, help="Of the choice of architectures.")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(steps(arguments)))
        return
    pairs: list[tuple[float, float]] = []
    for _ in range(arguments.rounds):
        pairs += zip(of_tree(arguments.base.resolve()), of_tree(HERE), strict=True)
    base, ours = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(one / other for one, other in pairs)
    print(
        f"{arguments.size} px, {arguments.precision}, {arguments.threads} threads, "
        f"{len(pairs)} steps: base {base:.3f} s, ours {ours:.3f} s, ratio {ratio:.2f}"
    )


if __name__ == "__main__":
    main()
