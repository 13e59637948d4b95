"""What something was measured with: the machine, its processors and GPU, versions, the commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
# Where builds and trees of revisions are kept; and what is measured, where no other place is named.
CACHE = Path(os.environ.get("GHN_FAST_BENCH_CACHE", ROOT / "build" / "benchmarks"))
RESULTS = Path(os.environ.get("GHN_FAST_BENCH_RESULTS", ROOT / ".asv"))
COMMIT_VARIABLE = "GHN_FAST_COMMIT"
# What tells processors apart that have one name, as it is called here and by the system.
_NUMBERS = {"family": "cpu family", "model": "model"}


def commit_of(root: Path = ROOT, named: str | None = None) -> str:
    """The commit that is measured: as named, from the environment, or from git.

    Raises:
        ValueError: If none of them tells.
    """
    given = named or os.environ.get(COMMIT_VARIABLE)
    if given:
        return given
    if (root / ".git").exists():
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True
        )
        if result.returncode == 0:
            return result.stdout.strip()
    raise ValueError(
        f"commit: {root} is no git checkout; name the commit with --commit or {COMMIT_VARIABLE}"
    )


def processor() -> str:
    """Model and number of the processors, with family and model number: some names say little."""
    if not Path("/proc/cpuinfo").is_file():
        return platform.processor()
    blocks = Path("/proc/cpuinfo").read_text().strip().split("\n\n")
    fields = [line.partition(":") for line in blocks[0].splitlines()]
    first = {name.strip(): value.strip() for name, _, value in fields}
    if "model name" not in first:
        return platform.processor()
    numbers = [f"{n} {first[key]}" for n, key in _NUMBERS.items() if key in first]
    return " ".join([first["model name"], *numbers, f"x {len(blocks)}"])


def gpu() -> str:
    """Name of the GPU, or ``none``."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"


def machine_name() -> str:
    """Name the machine by its processors and GPU, without the name of the host."""
    name = processor() + ("" if gpu() == "none" else f" {gpu()}")
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def about(threads: int, commit: str | None = None) -> dict[str, Any]:
    """Say what figures were measured with."""
    import torch

    return {
        "commit": commit if commit is not None else commit_of(),
        "cpu": processor(),
        "gpu": gpu(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
