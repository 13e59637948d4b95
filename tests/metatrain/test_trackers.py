"""Experiment trackers: they get the numbers, and their failures never end a run."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ghn_fast.metatrain import TrainConfig
from ghn_fast.metatrain.metrics import RunLog
from ghn_fast.metatrain.trackers import TRACKERS, WANDB_ID


class Notebook:
    """Writes down what it is given; fails at a step if told to."""

    made: list[Notebook] = []  # noqa: RUF012 - what the test looks at

    def __init__(self, run: Path, start_step: int, settings: Mapping[str, Any]) -> None:
        self.start_step, self.settings = start_step, settings
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.closed = False
        Notebook.made.append(self)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if step == 3:
            raise RuntimeError("no network")
        self.rows.append((step, dict(values)))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> type[Notebook]:
    monkeypatch.setattr(Notebook, "made", [])
    monkeypatch.setitem(TRACKERS, "notebook", Notebook)
    return Notebook


def test_a_tracker_gets_numbers_and_settings(notebook: type[Notebook], tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0, ("notebook",), {"lr": 1})
    log.write({"step": 1, "loss": 2.0, "what": "text"})
    log.write_evaluation({"step": 1, "top1": 50.0, "best": None})
    log.close()
    made = notebook.made[0]
    assert made.settings == {"lr": 1}
    assert made.rows == [(1, {"loss": 2.0}), (1, {"evaluation/top1": 50.0})]
    assert made.closed


def test_a_tracker_that_fails_does_not_end_the_run(
    notebook: type[Notebook], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = RunLog(tmp_path, 0, ("notebook",))
    with caplog.at_level(logging.WARNING, "ghn_fast"):
        for step in (1, 2, 3, 4):
            log.write({"step": step, "loss": 1.0})
    log.close()
    assert [step for step, _ in notebook.made[0].rows] == [1, 2]
    assert [record.getMessage() for record in caplog.records] == [
        "notebook ends here: no network; the run goes on, its numbers are in its files"
    ]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


def test_weights_and_biases_continues_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    logged: list[tuple[int, dict[str, float]]] = []

    def init(**options: Any) -> Any:
        calls.append(options)
        return SimpleNamespace(
            id=options["id"] or "abc",
            log=lambda values, step: logged.append((step, values)),
            finish=lambda: calls.append({"finished": True}),
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))  # type: ignore[arg-type]
    for start in (0, 1):
        log = RunLog(tmp_path, start, ("wandb",), {"lr": 1})
        log.write({"step": start + 1, "loss": 1.0})
        log.close()
    assert [call.get("id") for call in calls] == [None, None, "abc", None]
    assert calls[0]["config"] == {"lr": 1}
    assert logged == [(1, {"loss": 1.0}), (2, {"loss": 1.0})]
    assert (tmp_path / WANDB_ID).read_text() == "abc\n"


def test_trackers_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert TrainConfig().records.trackers == ("tensorboard",)
    assert TrainConfig.from_dict({"trackers": []}).records.trackers == ()
    with pytest.raises(ValueError, match="trackers: got 'mlflow', needs some of tensorboard"):
        TrainConfig(trackers=("mlflow",))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError, match=r"ghn-fast\[wandb\]"):
        RunLog(tmp_path, 0, ("wandb",))
