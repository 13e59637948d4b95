"""A process of a distributed run, for test_distributed.py: torchrun worker.py OUT SETTINGS KILL.

KILL is "RANK:STEP": that rank dies in that step, the first time the job is started. If there is no
such rank, a second run with a sharded hypernetwork follows, in the folder "sharded" beside OUT.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from ghn_fast.metatrain import TrainConfig, train
from ghn_fast.metatrain.step import MetaTrainer, StepResult
from ghn_fast.utils import distributed


def main() -> None:
    faulthandler.enable()
    torch.set_num_threads(1)
    out, settings, kill = sys.argv[1:4]
    here = distributed.launched()
    rank, at = (int(part) for part in kill.split(":"))
    step = MetaTrainer.step

    def dying(self: MetaTrainer, *arguments: Any, **options: Any) -> StepResult:
        if (here.rank, arguments[3], here.restarts) == (rank, at, 0):
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *arguments, **options)

    MetaTrainer.step = dying  # type: ignore[method-assign]
    values = json.loads(settings)
    # One job for both runs: starting processes takes longer than the steps.
    with distributed.job():
        train(TrainConfig.from_dict(values), Path(out))
        if rank >= here.size:
            sharded = {**values, "hypernetwork": "sharded", "eval_every": 0}
            train(TrainConfig.from_dict(sharded), Path(out).with_name("sharded"))


if __name__ == "__main__":
    main()
