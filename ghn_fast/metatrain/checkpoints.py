"""Checkpoints of a training run: written atomically, resumed exactly.

RUN/checkpoints/step-00000500/ holds ``config.json`` and ``model.safetensors`` (so that the folder
is itself a checkpoint for :func:`ghn_fast.from_pretrained`) and ``trainer.pt`` with the optimizer.
It is written under another name and renamed when it is complete.
"""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ghn_fast.hypernet.checkpoint import WEIGHTS_FILE, load_weights, save_pretrained
from ghn_fast.hypernet.ghn import GHN

_TRAINER_FILE = "trainer.pt"
_PARTIAL = ".partial-"


def save_checkpoint(
    run: Path, step: int, ghn: GHN, optimizer: torch.optim.Optimizer, keep: int
) -> Path:
    """Save the state after ``step`` steps and remove all but the newest ``keep`` checkpoints.

    Raises:
        OSError: If it cannot be written; earlier checkpoints stay as they are.
    """
    folder = run / "checkpoints" / f"step-{step:08d}"
    partial = folder.with_name(f"{_PARTIAL}{folder.name}-{os.getpid()}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_pretrained(ghn, partial)
        with open(partial / _TRAINER_FILE, "wb") as file:
            torch.save({"step": step, "optimizer": optimizer.state_dict()}, file)
            file.flush()
            os.fsync(file.fileno())
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _sync(folder.parent)
    for old in list_checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return folder


def list_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first; leftovers of interrupted writes are removed."""
    parent = run / "checkpoints"
    for partial in parent.glob(f"{_PARTIAL}*"):
        shutil.rmtree(partial, ignore_errors=True)
    return sorted(path for path in parent.glob("step-*") if (path / _TRAINER_FILE).is_file())


def load_checkpoint(folder: Path, ghn: GHN, optimizer: torch.optim.Optimizer) -> int:
    """Restore hypernetwork and optimizer; returns the number of steps done.

    Raises:
        ValueError: If the checkpoint is damaged or of another hypernetwork.
    """
    path = folder / WEIGHTS_FILE
    try:
        weights = load_file(path)
        path = folder / _TRAINER_FILE
        state: dict[str, Any] = torch.load(path, map_location=ghn.device, weights_only=True)
        load_weights(ghn, weights, str(folder / WEIGHTS_FILE))
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        KeyError,
        IndexError,
        TypeError,
    ) as error:
        raise ValueError(
            f"{path}: damaged, remove {folder} to resume from the one before"
        ) from error


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
