"""Evaluations that are interrupted, and go on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

import ghn_fast
from command_line import Run
from ghn_fast.utils import distributed
from ghn_fast.vision import ArchitectureResult, evaluate
from ghn_fast.vision.record_file import RecordFile


def test_records_come_back(tmp_path: Path) -> None:
    results = [ArchitectureResult(i, f"net-{i}", top1=12.5 + i / 3, loss=0.1) for i in range(4)]
    results[2].error = "RuntimeError: out of memory"
    names = {i: f"architecture {i}" for i in range(4)}
    with pytest.raises(KeyboardInterrupt), RecordFile(tmp_path / "new", "test", {"a": 1}) as file:
        assert file.known(names) == {}
        for record in results:
            file.add(record, names[record.index])
        raise KeyboardInterrupt
    (path,) = (tmp_path / "new").iterdir()
    whole = path.read_bytes()
    # Cut off within a line, and with lines of something else: what is whole counts.
    path.write_bytes(whole[:-9])
    again = RecordFile(tmp_path / "new", "test", {"a": 1})
    assert again.known(names) == {i: results[i] for i in (0, 1)}
    again.add(results[3], names[3])
    path.write_bytes(path.read_bytes() + b'\n[]\n{"index": 7, "colour": 1}\n\xff\xfe\n')
    assert again.known(names) == {i: results[i] for i in (0, 1, 3)}
    # Other architectures, and fewer of them.
    assert again.known({0: "another", 3: names[3]}) == {3: results[3]}
    for other in (
        RecordFile(tmp_path / "new", "test", {"a": 2}),
        RecordFile(tmp_path / "new", "val", {"a": 1}),
    ):
        assert other.known(names) == {}
        with other:
            other.add(results[0], names[0])
        assert other.known(names) == {}
    with again:
        pass
    assert list((tmp_path / "new").iterdir()) == []


def test_a_disk_that_takes_nothing_does_not_end_an_evaluation(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    file = RecordFile(tmp_path / "file" / "below", "test", {})
    record = ArchitectureResult(0, "net")
    with pytest.warns(RuntimeWarning, match="results so far cannot be kept") as warned:
        file.add(record, "net")
        file.add(record, "net")
    assert len(warned) == 1


@pytest.fixture
def command(tmp_path: Path) -> tuple[Any, ...]:
    """Options of an evaluation of a small hypernetwork on a folder of images."""
    torch.manual_seed(0)
    config = ghn_fast.GHNConfig(hid=8, max_shape=(8, 8, 3, 3))
    ghn_fast.save_pretrained(ghn_fast.GHN(config), tmp_path / "ghn")
    for part in ("train", "test"):
        for label in range(10):
            folder = tmp_path / "images" / part / f"c{label}"
            folder.mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (8, 8), (25 * label, 80 * i, 0)).save(folder / f"{i}.png")
    return (
        "--ckpt", tmp_path / "ghn", "--dataset", f"folder:{tmp_path / 'images'}",
        "--image-size", 16, "--statistics-batches", 1, "--json", "--limit", 3,
    )  # fmt: skip


class Interruption:
    """Interrupts an evaluation when a number of networks was evaluated, and counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[str] = []
        self.after = 10**6
        self._evaluate = evaluate._evaluate_item
        monkeypatch.setattr(evaluate, "_evaluate_item", self)

    def __call__(self, record: ArchitectureResult, *args: Any) -> None:
        if len(self.seen) == self.after:
            raise KeyboardInterrupt
        self.seen.append(record.name)
        self._evaluate(record, *args)

    def restart(self, after: int = 10**6) -> None:
        self.seen, self.after = [], after


def without_times(report: dict[str, Any]) -> Any:
    """A report without its seconds, which no two evaluations share."""

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            timed = ("seconds", "seconds_predict", "seconds_evaluate", "written")
            return {k: cleaned(v) for k, v in value.items() if k not in timed}
        return [cleaned(v) for v in value] if isinstance(value, list) else value

    return cleaned(report)


def test_evaluate_goes_on(
    tmp_path: Path, run: Run, command: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = Interruption(monkeypatch)
    status, whole, error = run("evaluate", *command, "--out", tmp_path / "whole")
    assert status == 0, error
    assert networks.seen == ["test-0", "test-1", "test-2"]
    out = tmp_path / "out"
    networks.restart(after=2)
    status, printed, error = run("evaluate", *command, "--out", out)
    assert status == 130
    assert "interrupted; the same command goes on" in error
    assert json.loads(printed) == {"finished": False}

    networks.restart()
    status, printed, error = run("evaluate", *command, "--out", out)
    assert status == 0, error
    assert networks.seen == ["test-2"]
    assert without_times(json.loads(printed)) == without_times(json.loads(whole))
    assert not list(out.glob("*.jsonl"))


def test_what_changes_the_numbers_begins_anew(
    tmp_path: Path, run: Run, command: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ghn_fast.deepnets import generate

    networks = Interruption(monkeypatch)
    networks.restart(after=1)
    out = tmp_path / "out"
    assert run("evaluate", *command, "--out", out)[0] == 130
    other = ghn_fast.from_pretrained(tmp_path / "ghn")
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1.0
    ghn_fast.save_pretrained(other, tmp_path / "other")
    generate("test", 2, tmp_path / "files", seed=3)

    def first(*more: Any) -> bool:
        """Whether the first architecture is evaluated again."""
        networks.restart(after=1)
        status, _, error = run("evaluate", *command, "--out", out, *more)
        assert status == 130, error
        return networks.seen == ["test-0"]

    assert not first()
    for more in (
        ("--seed", 1), ("--batch-size", 7), ("--noise", 0.1), ("--no-baseline",),
        ("--statistics-batches", 0), ("--image-size", 18), ("--precision", "bf16"),
        ("--ckpt", tmp_path / "other"), ("--deepnets", tmp_path / "files"), ("--split", "wide"),
    ):  # fmt: skip
        networks.restart(after=1)
        assert run("evaluate", *command, "--out", out, *more)[0] == 130, more
        assert networks.seen in (["test-0"], ["wide-0"]), more
    picture = tmp_path / "images" / "test" / "c0" / "0.png"
    Image.new("RGB", (8, 8), (1, 2, 3)).save(picture)
    assert first()


def test_evaluate_splits_goes_on(
    tmp_path: Path, run: Run, command: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = Interruption(monkeypatch)
    command = ("evaluate-splits", *command, "--split", "test", "--split", "bnfree")
    status, whole, error = run(*command, "--out", tmp_path / "whole")
    assert status == 0, error
    out = tmp_path / "out"
    networks.restart(after=4)
    status, printed, error = run(*command, "--out", out)
    assert status == 130
    assert "the same command goes on" in error
    assert [row["name"] for row in json.loads(printed)["rows"]] == ["test"]
    networks.restart()
    status, printed, error = run(*command, "--out", out)
    assert status == 0, error
    assert networks.seen == ["bnfree-1", "bnfree-2"]
    rows = json.loads(printed)["rows"]
    assert rows[0]["diversity"] is not None
    assert without_times(json.loads(printed)) == without_times(json.loads(whole))
    assert not list(out.glob("*.jsonl"))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_missing_architectures_are_shared_out_evenly(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    items = [SimpleNamespace(index=i, name=f"net-{i}") for i in range(11)]
    known = {i: ArchitectureResult(i, f"net-{i}", top1=float(i)) for i in (0, 2, 4, 6, 8, 30)}
    known[10] = ArchitectureResult(10, "another")
    monkeypatch.setattr(distributed, "world_size", lambda: size)
    seen: dict[int, Any] = {}
    missing = []
    for rank in range(size):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares = list(evaluate._share(items, 11, known))  # type: ignore[arg-type]
        missing.append(sum(before is None for _, _, before in shares))
        for position, item, before in shares:
            assert item is items[position] and position not in seen
            seen[position] = before
    assert sorted(seen) == list(range(11))
    assert {i for i, before in seen.items() if before is not None} == {0, 2, 4, 6, 8}
    assert all(before == known[i] for i, before in seen.items() if before is not None)
    assert max(missing) - min(missing) <= 1
