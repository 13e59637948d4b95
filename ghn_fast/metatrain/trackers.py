"""Where the curves of a run go beside its own files: TensorBoard, Weights & Biases.

A tracker is an experiment tracker: it gets every number that the run writes, and its failures never
end a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ghn_fast.utils.logs import get_logger
from ghn_fast.utils.optional import installed, require

_LOG = get_logger(__name__)
WANDB_ID = "wandb.txt"


class Tracker(Protocol):
    """What takes the numbers of a run."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a step, by name."""

    def close(self) -> None:
        """Write what is pending."""


class TensorBoard:
    """Events for TensorBoard in RUN/tensorboard.

    Args:
        run: Folder of the run.
        start_step: Number of steps that are done already; later events are dropped.
        settings: Not used: they are in the run's own files.
    """

    def __init__(self, run: Path, start_step: int, settings: Mapping[str, Any]) -> None:
        require("tensorboard", "tensorboard", "curves for TensorBoard")
        from torch.utils.tensorboard import SummaryWriter

        self._folder = run / "tensorboard"
        self._writer = SummaryWriter(str(self._folder), purge_step=start_step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        # Its thread appends to a file in there, and ends if somebody has removed the folder.
        self._folder.mkdir(parents=True, exist_ok=True)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, continued when the run here is.

    Project, entity and mode are those of its environment variables (WANDB_PROJECT, WANDB_ENTITY,
    WANDB_MODE=offline, ...); the project is called ghn-fast otherwise.

    Args:
        run: Folder of the run; ``wandb.txt`` in it keeps the name by which it is continued.
        start_step: Not used: steps that come again are left out there.
        settings: All settings, shown beside the curves.
    """

    def __init__(self, run: Path, start_step: int, settings: Mapping[str, Any]) -> None:
        import os

        wandb = require("wandb", "wandb", "curves for Weights & Biases")
        file = run / WANDB_ID
        known = file.read_text().strip() if file.is_file() else None
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "ghn-fast"),
            name=run.name,
            id=known,
            resume="allow",
            dir=str(run),
            config=dict(settings),
        )
        file.write_text(f"{self._run.id}\n")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[Path, int, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}
"""Name of each tracker to what makes it from run, start step and settings."""


class Trackers:
    """The trackers of a run; one that fails is left out from then on, with a warning.

    Args:
        names: Names in :data:`TRACKERS`. TensorBoard, the default, is left out where it is not
            installed; another one that was asked for raises.
        run, start_step, settings: As each tracker takes them.

    Raises:
        ValueError: If there is no tracker of a name.
        ModuleNotFoundError: If the library of one is not installed.
    """

    def __init__(
        self, names: tuple[str, ...], run: Path, start_step: int, settings: Mapping[str, Any]
    ) -> None:
        check_trackers(names)
        self._active: dict[str, Tracker] = {}
        for name in names:
            if name == "tensorboard" and not installed(name):
                _LOG.info("curves are written to metrics.jsonl only: tensorboard is not installed")
                continue
            try:
                self._active[name] = TRACKERS[name](run, start_step, settings)
            except ModuleNotFoundError:
                raise
            except Exception as error:  # of whatever kind: the run's own files are enough
                self._give_up(name, error)

    def scalars(self, step: int, values: Mapping[str, Any], prefix: str = "") -> None:
        """Hand the numbers of a step on; what is no number is left out."""
        numbers = {
            prefix + name: value
            for name, value in values.items()
            if name != "step" and isinstance(value, int | float)
        }
        for name, tracker in list(self._active.items()):
            try:
                tracker.scalars(step, numbers)
            except Exception as error:  # as above
                self._give_up(name, error)

    def close(self) -> None:
        """Write what is pending."""
        for name, tracker in list(self._active.items()):
            try:
                tracker.close()
            except Exception as error:  # as above
                self._give_up(name, error)

    def _give_up(self, name: str, error: Exception) -> None:
        self._active.pop(name, None)
        _LOG.warning("%s ends here: %s; the run goes on, its numbers are in its files", name, error)


def check_trackers(names: tuple[str, ...]) -> None:
    """Refuse names of no tracker.

    Raises:
        ValueError: If there is one.
    """
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"trackers: got {name!r}, needs some of {', '.join(TRACKERS)}")
