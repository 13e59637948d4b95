"""Memory that a prediction needs on top of the network, measured in a process of its own.

The network is a stack of wide linear layers, whose storage has been touched before, so that what
the process grows by is what the prediction needs. A small network is predicted first, which loads
libraries and fills caches once.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

_BENCHMARKS = Path(__file__).resolve().parent.parent


def added_part(dtype: str = "float32", layers: int = 4) -> dict[str, Any]:
    """Measure by how much one prediction enlarges the process, as a part of the network's size.

    Raises:
        RuntimeError: If the process fails.
    """
    import ghn_fast

    paths = [str(Path(ghn_fast.__file__).parent.parent), str(_BENCHMARKS)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-m", "suite.memory", dtype, str(layers)],
        env=env,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip()[-500:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure(dtype: str, layers: int) -> dict[str, Any]:
    import torch

    import ghn_fast
    from suite.setups import stack

    def peak() -> int:
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    kind = getattr(torch, dtype)
    ghn = ghn_fast.GHN()
    ghn.predict(stack(1, dtype=kind)[:4], input_shape=(64,))
    network = stack(layers, dtype=kind)
    size = sum(p.numel() * p.element_size() for p in network.parameters())
    before = peak()
    report = ghn.predict(network, input_shape=(64,))
    grown = peak() - before
    return {
        "part": grown / size,
        "parameters": sum(p.numel() for p in network.parameters()),
        "bytes": size,
        "grown_bytes": grown,
        "skipped": len(report.skipped),
    }


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], int(sys.argv[2]))))
