"""Generation of files: the same with any number of processes, and interruptible."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from ghn_fast.deepnets import (
    DeepNets,
    SampledNets,
    architecture_key,
    generate,
    held_out_keys,
    sample_config,
)
from ghn_fast.deepnets.files.generate import make_record
from ghn_fast.deepnets.files.hdf5 import Record


def stop_at(number: int, step: int) -> Callable[[int], None]:
    def progress(done: int) -> None:
        if done == step:
            os.kill(os.getpid(), number)

    return progress


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


FILES = {"deepnets1m_test.hdf5", "deepnets1m_test_meta.json"}


def test_files_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    seen: list[int] = []
    one = generate("test", 9, tmp_path / "1", seed=4)
    two = generate("test", 9, tmp_path / "2", seed=4, workers=2, progress=seen.append)
    assert one == tmp_path / "1" / "deepnets1m_test.hdf5"
    assert seen == list(range(1, 10))
    assert names(tmp_path / "1") == names(tmp_path / "2") == FILES
    for name in FILES:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    configs = [item.config for item in DeepNets(two, "test")]
    assert configs == [sample_config("test", index, 4) for index in range(9)]


def test_a_shorter_run_is_the_beginning_of_a_longer_one(tmp_path: Path) -> None:
    generate("test", 3, tmp_path / "3", seed=4)
    generate("test", 5, tmp_path / "5", seed=4)
    short, long = (DeepNets(tmp_path / name, "test") for name in ("3", "5"))
    assert [item.config for item in short] == [item.config for item in long[:3]]


@pytest.mark.parametrize("workers", [1, 2])
def test_interrupts_keep_what_is_finished(tmp_path: Path, workers: int) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        generate("test", 500, tmp_path, workers=workers, seed=4, progress=stop_at(signal.SIGINT, 5))
    assert names(tmp_path) == FILES
    nets = DeepNets(tmp_path, "test")
    assert len(nets) == 5
    assert [item.config for item in nets] == [sample_config("test", i, 4) for i in range(5)]
    assert all(item.graph.num_nodes == item.num_nodes for item in nets)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_termination_keeps_what_is_finished(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as info:
        generate("test", 500, tmp_path, progress=stop_at(signal.SIGTERM, 3))
    assert info.value.code == 128 + signal.SIGTERM
    assert len(DeepNets(tmp_path, "test")) == 3


def test_errors_leave_nothing_behind(tmp_path: Path) -> None:
    def fail(done: int) -> None:
        if done == 3:
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        generate("test", 5, tmp_path, progress=fail)
    assert names(tmp_path) == set()


def test_a_dead_process_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def records(*_: Any) -> Iterator[Record]:
        yield make_record("test", 0, 0)
        raise BrokenProcessPool("gone")

    module = sys.modules[generate.__module__]
    monkeypatch.setattr(module, "_parallel", records)
    with pytest.raises(RuntimeError, match=r"a process died, .* 1 of 5 architectures are kept"):
        generate("test", 5, tmp_path, workers=2)
    assert len(DeepNets(tmp_path, "test")) == 1


def test_works_outside_the_main_thread(tmp_path: Path) -> None:
    thread = threading.Thread(target=generate, args=("test", 2, tmp_path))
    thread.start()
    thread.join()
    assert len(DeepNets(tmp_path, "test")) == 2


def test_excluded_architectures(tmp_path: Path) -> None:
    key = architecture_key(sample_config("test", 1, 0))
    generate("test", 3, tmp_path, exclude={key})
    configs = [item.config for item in DeepNets(tmp_path, "test")]
    assert configs[0] == sample_config("test", 0, 0)
    assert configs[1] == sample_config("test", 1, 0, exclude={key}) != sample_config("test", 1, 0)


def test_existing_files_are_not_replaced_by_accident(tmp_path: Path) -> None:
    generate("test", 2, tmp_path)
    with pytest.raises(FileExistsError, match=r"deepnets1m_test.hdf5 exists"):
        generate("test", 3, tmp_path)
    assert len(DeepNets(tmp_path, "test")) == 2
    generate("test", 3, tmp_path, overwrite=True)
    assert len(DeepNets(tmp_path, "test")) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "predefined"}, "split: got 'predefined', needs one of train"),
        ({"count": 0}, "count: got 0, needs an integer of at least 1"),
        ({"count": -3}, "count: got -3"),
        ({"workers": 0}, "workers: got 0"),
        ({"seed": -1}, "seed: got -1, needs an integer of at least 0"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(**{"split": "test", "count": 1, "out": tmp_path / "new", **arguments})
    assert not (tmp_path / "new").exists()


# --- packed files


def test_packed_files_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    seen: list[int] = []
    one = generate("train", 150, tmp_path / "1", seed=4)
    two = generate("train", 150, tmp_path / "2", seed=4, workers=2, progress=seen.append)
    assert one == tmp_path / "1" / "deepnets1m_train.ghnpack"
    assert names(tmp_path / "1") == names(tmp_path / "2") == {one.name}
    assert one.read_bytes() == two.read_bytes()
    assert seen == sorted(seen)
    assert seen[-1] == 150
    configs = [item.config for item in DeepNets(one, "train")]
    assert configs == [sample_config("train", index, 4) for index in range(150)]


def test_training_splits_are_packed_unless_asked_otherwise(tmp_path: Path) -> None:
    for split in ("train", "search", "val", "wide"):
        for layout in ("auto", "packed", "hdf5"):
            path = generate(split, 1, tmp_path / split / layout, format=layout)
            packed = layout == "packed" or (layout == "auto" and split in ("train", "search"))
            assert path.suffix == (".ghnpack" if packed else ".hdf5")
    with pytest.raises(ValueError, match="format: got 'json', needs one of auto, packed, hdf5"):
        generate("val", 1, tmp_path / "new", format="json")
    assert not (tmp_path / "new").exists()


def test_interrupts_keep_packed_files(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        generate("train", 5000, tmp_path, progress=stop_at(signal.SIGINT, 128))
    assert names(tmp_path) == {"deepnets1m_train.ghnpack"}
    nets = DeepNets(tmp_path, "train")
    assert len(nets) == 128
    assert nets[127].config == sample_config("train", 127, 0)


def test_packed_files_exclude_architectures(tmp_path: Path) -> None:
    key = architecture_key(sample_config("train", 1, 0))
    nets = DeepNets(generate("train", 3, tmp_path, exclude={key}), "train")
    assert nets[1].config == sample_config("train", 1, 0, exclude={key})
    assert nets[1].config != sample_config("train", 1, 0)
    assert nets[2].config == sample_config("train", 2, 0)


def test_files_of_train_hold_no_architecture_for_testing(tmp_path: Path) -> None:
    # The first that is in `test`, too.
    clash = 1106
    assert architecture_key(sample_config("train", clash, 0)) in held_out_keys()
    nets = DeepNets(generate("train", clash + 1, tmp_path), "train")
    assert architecture_key(nets[clash].config) not in held_out_keys()
    assert nets[clash].config == SampledNets("train", clash + 1, 0)[clash].config
    assert nets[clash - 1].config == sample_config("train", clash - 1, 0)
    # Whoever says what to leave out gets just that.
    everything = SampledNets("train", clash + 1, 0, exclude=())
    assert everything[clash].config == sample_config("train", clash, 0)
