"""Ctrl-C: a command ends with status 130 and has written what was done."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ghn_fast import cli
from ghn_fast.utils import signals

SMALL = ("--image-size", "8", "--channels", "8", "--steps", "4", "--batch-size", "8")


@pytest.mark.parametrize(
    ("command", "file", "entry"),
    [
        (("sgd", "deepnets:val:1", "deepnets:val:2", "--cells", "3", *SMALL), "sgd", "trainings"),
        (
            ("finetune", "deepnets:val:1", "--shots", "2", "--cells", "3", *SMALL),
            *("finetune", "trainings"),
        ),
    ],
)
def test_what_was_done_is_kept(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: tuple[str, ...],
    file: str,
    entry: str,
) -> None:
    from ghn_fast.studies import jobs

    stop = threading.Event()

    @contextmanager
    def requests() -> Iterator[threading.Event]:
        yield stop

    monkeypatch.setattr(signals, "stop_requests", requests)
    # The signal comes when the first result is written.
    write = jobs.write_json

    def note(path: Path, value: object) -> None:
        write(path, value)
        stop.set()

    monkeypatch.setattr(jobs, "write_json", note)
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["ghn-fast", *command, "--init", "random", "--out", str(out)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == cli.INTERRUPTED
    assert "interrupted; the same command continues" in capsys.readouterr().err
    data = json.loads((out / f"{file}.json").read_text())
    assert not data["finished"]
    assert len(data[entry]) == 1
