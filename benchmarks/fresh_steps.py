"""Meta-training steps on architectures that were never seen before, of two revisions in turn.

    python benchmarks/fresh_steps.py --base FOLDER [--size 32] [--precision auto] [--threads 2]

FOLDER is a checkout of the revision to compare with, whose extension is built. Each round runs
the same steps of both in processes of their own; lines give the medians of a step and of the
ratios of the same step, by the clock, and by the processor's time, which says what the work is
where other programs run, too. Images are random numbers; nothing is kept of an architecture.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]


# Seconds of a step by the clock, and of all of the process's threads by the processor.
Step = tuple[float, float]


def steps(arguments: argparse.Namespace) -> list[Step]:
    """Each step of the revision that is imported; the first ones warm up."""
    import torch

    import ghn_fast
    from ghn_fast.deepnets import SampledNets, meta_batches
    from ghn_fast.metatrain import memory
    from ghn_fast.metatrain.executor import Executor
    from ghn_fast.metatrain.step import MetaTrainer

    torch.set_num_threads(arguments.threads)
    memory.keep_freed_memory()
    # Earlier revisions have nothing like it.
    getattr(memory, "keep_primitives", lambda: None)()
    torch.manual_seed(0)
    ghn = ghn_fast.GHN(ghn_fast.GHNConfig(hid=32, max_shape=(64, 64, 11, 11))).train()
    trainer = MetaTrainer(
        ghn,
        torch.optim.Adam(ghn.parameters(), 1e-3, fused=True),
        meta_batch=8,
        grad_clip=5.0,
        executor=Executor("cpu", precision=arguments.precision),
    )
    nets, widths = SampledNets("train", 10_000, seed=1), tuple(arguments.widths)
    batches = meta_batches(nets, 8, seed=arguments.seed, image_size=arguments.size, num_ch=widths)
    images = torch.randn(64, 3, arguments.size, arguments.size)
    targets = torch.randint(0, 10, (64,))
    seconds = []
    with getattr(memory, "settled", nullcontext)():
        for number in range(arguments.warmup + arguments.steps):
            architectures = next(batches)
            start = time.perf_counter(), time.process_time()
            trainer.step(architectures, images, targets, number)
            seconds.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return seconds[arguments.warmup :]


def of_tree(folder: Path, precision: str) -> list[Step]:
    """The same in a process that imports ``ghn_fast`` from a folder."""
    command = [sys.executable, __file__, *sys.argv[1:], "--here", "--precision", precision]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seconds: list[Step] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--size", type=int, default=32, help="Pixels of an image's side.")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--base-precision", default="float32")
    parser.add_argument("--widths", type=int, nargs=2, default=(32, 128), help="Of the networks.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6, help="Of each process and round.")
    parser.add_argument("--warmup", type=int, default=1, help="Steps before these.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=3, help="Of the choice of architectures.")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(steps(arguments)))
        return
    pairs: list[tuple[Step, Step]] = []
    for _ in range(arguments.rounds):
        base = of_tree(arguments.base.resolve(), arguments.base_precision)
        pairs += zip(base, of_tree(HERE, arguments.precision), strict=True)
    low, high = arguments.widths
    print(
        f"{arguments.size} px, widths {low} to {high}, {arguments.threads} threads, {len(pairs)} "
        f"steps: {arguments.base_precision} of the base, {arguments.precision} of this checkout"
    )
    for which, name in enumerate(("clock", "processor")):
        before = [pair[0][which] for pair in pairs]
        now = [pair[1][which] for pair in pairs]
        ratio = statistics.median(one / other for one, other in zip(before, now, strict=True))
        print(
            f"  {name:9} base {statistics.median(before):.3f} s, ours {statistics.median(now):.3f} "
            f"s a step, ratio {ratio:.2f}"
        )


if __name__ == "__main__":
    main()
