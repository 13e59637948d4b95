"""Progress in logs: a line now and then, and one at the end."""

from __future__ import annotations

import pytest

from ghn_fast.commands.common import make_progress
from ghn_fast.commands.lines import ProgressLines


def test_lines_come_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with ProgressLines(interval=30, clock=lambda: now) as progress:
        task = progress.add_task("steps", total=None, info="")
        progress.reset(task, total=100, completed=40)
        for completed in range(41, 101):
            now += 1
            progress.update(task, completed=completed, total=100, info=f"loss {completed}")
    assert capsys.readouterr().err.splitlines() == [
        "steps: 70 of 100, 30 s, 30 s left, loss 70",
        "steps: 100 of 100, 60 s, loss 100",
    ]


def test_without_a_terminal_there_are_lines() -> None:
    assert isinstance(make_progress(), ProgressLines)
    assert not isinstance(make_progress(show=False), ProgressLines)
