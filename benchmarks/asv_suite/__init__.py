"""Every case of benchmarks/suite/cases.py as a benchmark of asv; the guarded ones counted, too."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Before torch is imported, in the process that runs benchmarks: threads, and a quiet profiler.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
