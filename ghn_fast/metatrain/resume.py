"""Checkpoints of a training run: written atomically, resumed exactly.

RUN/checkpoints/step-00000500/ holds ``config.json`` and ``model.safetensors`` (so that the folder
is itself a checkpoint for :func:`ghn_fast.from_pretrained`), ``trainer.pt`` with the optimizer, the
scale of the loss and the measured costs, and ``checksums.json`` with the SHA-256 of the others.
Learning rate, order of images and architectures, augmentation and dropout are functions of the
settings and the number of the step.

A checkpoint is written under another name and renamed when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ghn_fast.hypernet.checkpoint import WEIGHTS_FILE, load_weights, save_pretrained
from ghn_fast.hypernet.ghn import GHN
from ghn_fast.metatrain.optimizer_state import check_optimizer_state
from ghn_fast.utils.files import sync_folder, write_atomically

_TRAINER_FILE = "trainer.pt"
_CHECKSUMS_FILE = "checksums.json"
_PARTIAL = ".partial-"


def save_checkpoint(
    run: Path,
    step: int,
    ghn: GHN,
    optimizer: torch.optim.Optimizer,
    keep: int,
    extra: dict[str, Any] | None = None,
) -> Path:
    """Save the state after ``step`` steps and remove all but the newest ``keep`` checkpoints.

    Args:
        run: Folder of the run.
        step: Steps done.
        ghn: The hypernetwork.
        optimizer: Its optimizer.
        keep: Number of checkpoints that stay.
        extra: Further state, plain values.

    Raises:
        OSError: If it cannot be written; earlier checkpoints stay as they are.
    """
    folder = run / "checkpoints" / _folder_name(step)
    partial = folder.with_name(f"{_PARTIAL}{folder.name}-{os.getpid()}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    updates = max((int(each.get("step", 0)) for each in optimizer.state.values()), default=0)
    state = {
        "step": step,
        "optimizer": optimizer.state_dict(),
        "updates": updates,
        "extra": extra or {},
    }
    try:
        save_pretrained(ghn, partial)
        with open(partial / _TRAINER_FILE, "wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:
                # What torch's archive writer makes of a failed write.
                raise OSError(f"{partial / _TRAINER_FILE}: {error}") from error
            file.flush()
            os.fsync(file.fileno())
        checksums = json.dumps(_checksums(partial), indent=2) + "\n"
        write_atomically(partial / _CHECKSUMS_FILE, checksums)
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync_folder(folder.parent)
    for old in list_checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return folder


class Saver:
    """Saves a run at intervals of steps and of time.

    Args:
        run: Folder of the run.
        every: Steps between checkpoints.
        minutes: Minutes between checkpoints at most, ``None`` for no such limit.
        keep: Number of checkpoints that stay.
        step: Steps done already.
        newest: Checkpoint of that step, if there is one.
    """

    def __init__(
        self, run: Path, *, every: int, minutes: float | None, keep: int, step: int,
        newest: Path | None,
    ) -> None:  # fmt: skip
        self.run = run
        self.every = every
        self.minutes = minutes
        self.keep = keep
        self.newest = newest
        self._saved = step
        self._time = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due after ``step`` steps."""
        if step % self.every == 0:
            return True
        return self.minutes is not None and time.monotonic() - self._time >= 60 * self.minutes

    def save(
        self,
        step: int,
        ghn: GHN,
        optimizer: torch.optim.Optimizer,
        extra: dict[str, Any],
        *,
        before: Callable[[], None] | None = None,
        last: bool = False,
    ) -> None:
        """Save the state after ``step`` steps, unless that is done.

        ``before`` is called first: what belongs to the steps up to the checkpoint is to be written
        before it is.

        A failure, of which a full disk is the usual one, is a warning: earlier checkpoints stay,
        training goes on, and the next interval tries again.

        Raises:
            OSError: If it fails and this was the last chance (``last``).
        """
        if self._saved == step:
            return
        self._time = time.monotonic()
        try:
            if before is not None:
                before()
            self.newest = save_checkpoint(self.run, step, ghn, optimizer, self.keep, extra)
            self._saved = step
        except OSError as error:
            if last:
                raise
            stays = self.newest.name if self.newest else "there is none before it"
            warnings.warn(
                f"the checkpoint of step {step} could not be saved: {error}; training goes on, the "
                f"newest checkpoint is still: {stays}",
                RuntimeWarning,
                stacklevel=2,
            )


def list_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first; leftovers of interrupted writes are removed."""
    parent = run / "checkpoints"
    for partial in parent.glob(f"{_PARTIAL}*"):
        shutil.rmtree(partial, ignore_errors=True)
    return sorted(path for path in parent.glob("step-*") if (path / _TRAINER_FILE).is_file())


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """Read a checkpoint: ``weights``, ``step``, ``optimizer`` and ``extra``, on the CPU.

    Raises:
        ValueError: If it is damaged.
    """
    path = folder / _CHECKSUMS_FILE
    try:
        changed = _changed_files(folder)
        if changed:
            path = changed[0]
            raise ValueError("it is not as it was written")
        path = folder / WEIGHTS_FILE
        weights = load_file(path)
        path = folder / _TRAINER_FILE
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        step, extra = state["step"], state.get("extra", {})
        if type(step) is not int or folder.name != _folder_name(step):
            raise ValueError(f"it is of step {step}")
        if not isinstance(extra, dict):
            raise ValueError(f"extra: got a {type(extra).__name__}, needs a dict")
        return {
            "weights": weights,
            "step": step,
            "optimizer": state["optimizer"],
            "updates": state.get("updates"),
            "extra": extra,
            "folder": str(folder),
        }
    except _DAMAGE as error:
        raise _damaged(path, folder, error) from error


def restore(state: dict[str, Any], ghn: GHN, optimizer: torch.optim.Optimizer) -> int:
    """Put what :func:`read_checkpoint` gave into hypernetwork and optimizer; the steps done.

    Raises:
        ValueError: If the checkpoint is damaged or of another hypernetwork.
    """
    folder = Path(state["folder"])
    load_weights(ghn, state["weights"], str(folder / WEIGHTS_FILE))
    try:
        check_optimizer_state(state["optimizer"], optimizer, state["step"], state["updates"])
        optimizer.load_state_dict(state["optimizer"])
    except _DAMAGE as error:
        raise _damaged(folder / _TRAINER_FILE, folder, error) from error
    return int(state["step"])


def _folder_name(step: int) -> str:
    return f"step-{step:08d}"


def _checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a checkpoint but the one that holds them."""
    names = sorted(path.name for path in folder.iterdir() if path.name != _CHECKSUMS_FILE)
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def _changed_files(folder: Path) -> list[Path]:
    """The files that differ from their checksums; none where no checksums were written."""
    path = folder / _CHECKSUMS_FILE
    if not path.is_file():
        return []
    stored, found = json.loads(path.read_text()), _checksums(folder)
    return [folder / name for name in stored if stored[name] != found.get(name)]


_DAMAGE = (
    SafetensorError,
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    ValueError,
)


def _damaged(path: Path, folder: Path, error: Exception) -> ValueError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return ValueError(
        f"{path}: damaged, remove {folder} to resume from the one before ({reason[:200]})"
    )
