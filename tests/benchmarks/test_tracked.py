"""Counts of the guarded cases: as recorded, and sensitive to what is planted."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from suite import cases, counting, plants, processes, setups, tracked

import ghn_fast
from ghn_fast.ops import backend

ROOT = Path(__file__).resolve().parent.parent.parent

GUARDED = cases.guarded_cases()


@functools.cache
def recorded() -> dict[str, dict[str, int]]:
    return tracked.read_record().get(tracked.release(), {})


@pytest.mark.parametrize("case", GUARDED, ids=lambda case: case.name)
def test_counts_have_not_grown(case: cases.Case) -> None:
    problem = setups.problem_of(case)
    if problem is not None:
        pytest.skip(problem)
    if not recorded():
        pytest.skip(f"no counts are recorded for {tracked.release()}: make bench-track")
    if case.device == "cuda" and case.name not in recorded():
        pytest.skip("recorded on a machine without a GPU: make bench-track")
    with_counts = {case.name: tracked.count_case(case)}
    found = tracked.grown(with_counts, recorded())
    assert not found, "\n".join([*found, tracked.UPDATE])


def test_the_record_holds_what_is_guarded_and_nothing_else() -> None:
    names = {case.name for case in GUARDED}
    for release, found in tracked.read_record().items():
        assert set(found) <= names, f"{release}: make bench-track removes what is no more"
        assert {case.name for case in GUARDED if case.device == "cpu"} <= set(found)
        for counts in found.values():
            assert counts["calls"] > 0


@pytest.mark.parametrize("key", ["calls", "allocations", "launches", "moved_bytes"])
def test_one_more_of_any_count_fails_and_one_less_passes(key: str) -> None:
    before = {"a": {"calls": 2, "allocations": 3, "launches": 4, "moved_bytes": 5}}
    assert tracked.grown(before, before) == tracked.shrunk(before, before) == []
    more = {"a": before["a"] | {key: before["a"][key] + 1}}
    less = {"a": before["a"] | {key: before["a"][key] - 1}}
    said = f"a: {key} was {before['a'][key]}, is {before['a'][key] + 1}"
    assert tracked.grown(more, before) == [said]
    assert tracked.shrunk(more, before) == []
    assert tracked.grown(less, before) == []
    assert len(tracked.shrunk(less, before)) == 1
    assert tracked.grown({"new": {key: 1}}, before) == [f"new: {key} was None, is 1"]


def test_recording_keeps_what_cannot_run_here_and_drops_what_is_no_more(tmp_path: Path) -> None:
    path = tmp_path / "tracked.json"
    here, elsewhere = GUARDED[0].name, GUARDED[1].name
    old = {tracked.release(): {elsewhere: {"calls": 7}, "gone": {"calls": 1}}, "torch 1.0": {}}
    path.write_text(json.dumps(old))
    tracked.write_record({here: {"calls": 2}}, path)
    record = tracked.read_record(path)
    assert record[tracked.release()] == {here: {"calls": 2}, elsewhere: {"calls": 7}}
    assert record["torch 1.0"] == {}


def test_counts_of_a_hand_counted_function() -> None:
    x, y = torch.ones(16), torch.ones(4, 4)

    def run() -> torch.Tensor:
        return (x.view(4, 4) + y).mul(y)

    found = counting.count(run, "cpu")
    # A view moves nothing; the sum reads 32 elements and writes 16, and so does the product.
    assert found == {"calls": 3, "moved_bytes": 384, "allocations": 2, "allocated_bytes": 128}


@pytest.mark.extension
def test_allocations_that_nobody_sees_are_not_counted_as_none() -> None:
    script = """
import torch
from ghn_fast.metatrain.memory import keep_freed_memory
from suite import counting
keep_freed_memory()
counting.count(lambda: torch.ones(2), "cpu")
"""
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "allocations cannot be counted here" in done.stderr


def planted_tree(folder: Path, plant: Callable[[Path], None]) -> Path:
    """A copy of the package with something planted."""
    skip = shutil.ignore_patterns("__pycache__", "pretrained")
    shutil.copytree(ROOT / "ghn_fast", folder / "ghn_fast", ignore=skip)
    plant(folder)
    return folder


@pytest.fixture
def case() -> Iterator[cases.Case]:
    (found,) = [c for c in GUARDED if (c.path, c.part, c.device) == ("gated_gnn", "forward", "cpu")]
    yield found


@pytest.mark.extension
def test_a_planted_call_and_allocation_make_the_counts_differ(
    tmp_path: Path, case: cases.Case
) -> None:
    tree = planted_tree(tmp_path, plants.plant_copy)
    with processes.RunningWorker(tree) as worker:
        worker.wait_ready()
        assert worker.ask("prepare", case=case.name) == {}
        counts = worker.ask("count")["counts"]
    before = tracked.count_case(case)
    assert counts["calls"] == before["calls"] + 1
    assert counts["allocations"] == before["allocations"] + 1
    lines = tracked.grown({case.name: counts}, {case.name: before})
    assert len(lines) == 4
    assert any("allocations" in line for line in lines)
    assert tracked.grown({case.name: before}, {case.name: counts}) == []


@pytest.mark.extension
def test_the_planted_slow_down_is_of_the_op_and_changes_nothing_else(
    tmp_path: Path, case: cases.Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = planted_tree(tmp_path, plants.plant_slowdown)
    module = plants.PLACES["gated_gnn"][0]
    source = (tree / module).read_text()
    assert source.startswith((ROOT / module).read_text())
    scope: dict[str, Any] = {"Any": Any, "gated_gnn": lambda: clock.pop(0)}
    # Begin 100, end 300: 200 taken, so that it ends at 330 at the earliest.
    clock = [100, "result", 300, 310, 329, 330, 999]
    fake = ModuleType("time")
    fake.thread_time_ns = lambda: clock.pop(0)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "time", fake)
    exec(plants.slower(percent=15), scope)
    assert scope["gated_gnn"]() == "result"
    assert clock == [999]


def test_a_worker_refuses_another_package(tmp_path: Path) -> None:
    (tmp_path / "ghn_fast").mkdir()
    (tmp_path / "ghn_fast" / "__init__.py").write_text("")
    other = tmp_path / "other"
    other.mkdir()
    with processes.RunningWorker(tmp_path) as worker:
        worker.tree = other
        with pytest.raises(
            processes.WorkerError, match=r"imports the package of .*, not of .*other"
        ):
            worker.wait_ready()


def test_children_answer_until_their_end_and_a_crash_is_reported(case: cases.Case) -> None:
    with processes.RunningWorker(ROOT) as worker:
        worker.wait_ready()
        assert worker.ask("warm", cases=[case.name]) == {}
        for _ in range(2):
            assert worker.ask("fork") == {}
            if setups.problem_of(case) is None:
                assert worker.ask("prepare", case=case.name) == {}
                assert worker.ask("measure", calls=1)["seconds"] > 0
            assert worker.ask("end") == {}
        assert worker.ask("fork") == {}
        with pytest.raises(processes.WorkerError, match="ended with status 3"):
            worker.ask("crash")
        assert worker.ask("end") == {}


def test_a_failing_case_is_an_error_with_its_reason() -> None:
    with processes.RunningWorker(ROOT) as worker:
        worker.wait_ready()
        with pytest.raises(processes.WorkerError, match="there is none named 'x'"):
            worker.ask("prepare", case="x")
        with pytest.raises(processes.WorkerError, match="AttributeError") as caught:
            worker.ask("no_such_request")
        assert caught.value.lacking


def test_a_case_without_its_device_is_skipped_by_name() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    (case,) = [c for c in GUARDED if (c.path, c.part, c.device) == ("gated_gnn", "forward", "cuda")]
    with pytest.raises(setups.SkippedError, match="no CUDA device"), setups.prepared(case):
        pass


def test_names_are_unique_and_every_path_has_a_setup() -> None:
    every = cases.all_cases()
    assert len({case.name for case in every}) == len(every)
    assert {case.path for case in every} == set(setups.SETUPS)
    # A network of a gigabyte is measured, not compared.
    assert {case.path for case in GUARDED} == set(setups.SETUPS) - {"predict_large"}
    assert cases.find_case(every[-1].name) == every[-1]
    with pytest.raises(ValueError, match="'nothing like it' is in the name of no case"):
        cases.choose(every, ["nothing like it"])


def test_the_back_end_of_a_case_is_the_one_that_runs() -> None:
    reference = next(c for c in cases.all_cases() if c.backend == "reference")
    with setups.prepared(reference):
        assert backend.requested() == "reference"
    assert ghn_fast.ops.backend.requested() == "auto"
