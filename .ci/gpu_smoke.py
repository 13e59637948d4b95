"""The first minute on a GPU: each op, a replayed prediction, a step eager and replayed.

    python .ci/gpu_smoke.py [--device cuda]

It ends at the first thing that is wrong, with a line that says what.
"""

from __future__ import annotations

import argparse
import sys

import gpu_calls
from gpu_parts import ROOT


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    gpu_calls.run_all(arguments.device, compare=True)
    gpu_calls.predict(arguments.device)
    gpu_calls.steps(arguments.device)
    print("all of it is right")
    return 0


if __name__ == "__main__":
    sys.exit(main())
