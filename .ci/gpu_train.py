"""Meta-train for some seconds, and leave an archive with which the next call continues.

    python .ci/gpu_train.py --archive FOLDER --seconds 480 -- --config FILE [more of `train`]

For machines that are lent for minutes and keep nothing. The archive is a manifest, run.json, and
parts of at most 15 MB, flat in one folder: settings, metrics and the newest checkpoint of the run.
A call unpacks it, if there is one, trains (`ghn-fast train`), stops with a checkpoint when the
seconds are over, and writes the archive anew. A continued run gives the numbers of an uninterrupted
one.

Everything behind `--` goes to `ghn-fast train`, but for --out. It has to be the same in each call;
the data too, by the same name. The exit status is that of training, 0 also where seconds ended it.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from gpu_parts import ROOT, environment

MANIFEST = "run.json"
MOST_BYTES = 15 * 10**6
# What `ghn-fast train` returns when a signal has ended it, with a checkpoint.
INTERRUPTED = 130
# Seconds for the step in progress, the checkpoint, and the end of the process.
GRACE = 60.0
# What belongs to a run beside its checkpoints.
_FILES = ("train.json", "metrics.jsonl", "evaluations.jsonl", "skipped.jsonl")


def pack(run: Path, archive: Path) -> dict[str, Any]:
    """Write the archive of a run; the old one is gone when the new one is complete.

    Args:
        run: Folder of the run.
        archive: Folder of the archive, made if need be.

    Returns:
        The manifest: ``step``, and name, size and SHA-256 of each part.

    Raises:
        FileNotFoundError: If the run has no checkpoint.
    """
    checkpoints = sorted((run / "checkpoints").glob("step-*"))
    if not checkpoints:
        raise FileNotFoundError(f"{run}: there is no checkpoint, and nothing to continue from")
    newest = checkpoints[-1]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for path in [*(run / name for name in _FILES), newest]:
            if path.exists():
                tar.add(path, path.relative_to(run).as_posix())
    data = buffer.getvalue()
    archive.mkdir(parents=True, exist_ok=True)
    step = int(newest.name.removeprefix("step-"))
    parts = []
    for number, first in enumerate(range(0, len(data), MOST_BYTES)):
        piece = data[first : first + MOST_BYTES]
        # Another name than that of any part before: the old archive stays whole until the end.
        name = f"run-{step:08d}.{number:03d}"
        _write(archive / name, piece)
        parts.append(
            {"name": name, "bytes": len(piece), "sha256": hashlib.sha256(piece).hexdigest()}
        )
    manifest = {"step": step, "parts": parts}
    _write(archive / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
    kept = {part["name"] for part in parts}
    for path in archive.glob("run-*.*"):
        if path.name not in kept:
            path.unlink()
    return manifest


def unpack(archive: Path, run: Path) -> int:
    """Put an archive back into the folder of a run; the step to continue from, 0 without one.

    Raises:
        ValueError: If a part is missing or damaged.
    """
    if not (archive / MANIFEST).is_file():
        return 0
    manifest = json.loads((archive / MANIFEST).read_text())
    pieces = []
    for part in manifest["parts"]:
        path = archive / part["name"]
        piece = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(piece).hexdigest() != part["sha256"]:
            state = "damaged" if path.is_file() else "missing"
            raise ValueError(f"{path}: {state}; needs all parts as {MANIFEST} lists them")
        pieces.append(piece)
    run.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces)), mode="r:gz") as tar:
        tar.extractall(run, filter="data")
    step: int = manifest["step"]
    return step


def _write(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all."""
    part = path.with_name(f".{path.name}")
    part.write_bytes(data)
    os.replace(part, path)


def train(run: Path, options: list[str], seconds: float) -> int:
    """Train until the run or the seconds are over; the exit status, 0 for the latter."""
    command = [sys.executable, "-m", "ghn_fast", "train", "--out", str(run), *options]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), start_new_session=True)
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        # To the process alone: its loader's threads end with it.
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
    return 0 if status == INTERRUPTED else status


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--archive", type=Path, required=True, help="folder of the archive")
    parser.add_argument(
        "--from", dest="source", type=Path, help="folder to continue from, --archive if not set"
    )
    parser.add_argument("--seconds", type=float, default=480, help="of training")
    parser.add_argument("options", nargs="*", help="of `ghn-fast train`, behind --")
    arguments = parser.parse_args(argv)
    if arguments.seconds <= 0:
        parser.error(f"--seconds: got {arguments.seconds}, needs more than 0")
    folder = Path(tempfile.mkdtemp(prefix="gpu-train-"))
    try:
        run = folder / "run"
        step = unpack(arguments.source or arguments.archive, run)
        print(f"continuing after step {step}" if step else "a new run", flush=True)
        status = train(run, arguments.options, arguments.seconds)
        manifest = pack(run, arguments.archive)
        print(f"step {manifest['step']}, {len(manifest['parts'])} parts in {arguments.archive}")
        return status
    except (FileNotFoundError, ValueError) as error:
        print(f"gpu-train: {error}", file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
