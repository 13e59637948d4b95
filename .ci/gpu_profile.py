"""A trace of one step of meta-training, and where its time goes.

python .ci/gpu_profile.py TRACE.json.gz [--device cuda]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gpu_parts import ROOT

# Files of more bytes may not come back from a borrowed machine.
MOST_BYTES = 15 * 2**20


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", type=Path)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    import torch
    from gpu_steps import Steps, Way

    small = arguments.device == "cpu"
    steps = Steps(Way("bf16", True, not small), arguments.device, small=small)
    for _ in range(1 if small else 6):
        steps.take()
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if not small:
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profile:
        steps.take()
        if not small:
            torch.cuda.synchronize()
    steps.close()
    by = "self_cpu_time_total" if small else "self_cuda_time_total"
    print(profile.key_averages().table(sort_by=by, row_limit=40, max_name_column_width=80))
    profile.export_chrome_trace(str(arguments.trace))
    size = arguments.trace.stat().st_size
    if size > MOST_BYTES:
        print(f"the trace of {size} bytes is too large, and was removed")
        arguments.trace.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
