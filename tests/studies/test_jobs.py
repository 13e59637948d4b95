"""Results and states of trainings are taken up for the same training alone."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import ghn_fast
from ghn_fast.studies.curves import Point, TrainingCurve
from ghn_fast.studies.finetune import finetune_networks
from ghn_fast.studies.identity import OtherTrainingError, fingerprint, images_digest
from ghn_fast.studies.jobs import Training
from ghn_fast.studies.networks import Network, find_networks
from ghn_fast.studies.sgd import SgdReport, train_networks
from ghn_fast.studies.training import TrainingSettings, train_network
from ghn_fast.vision import ImageSet, ImageSplits

QUICK = TrainingSettings(steps=3, batch_size=16, lr=0.05, evaluations=2)
Study = Callable[..., Any]


def hypernetwork(seed: int) -> ghn_fast.GHN:
    torch.manual_seed(seed)
    return ghn_fast.GHN(ghn_fast.GHNConfig(hid=8, max_shape=(16, 16, 5, 5)))


@pytest.fixture(params=["sgd", "finetune"])
def study(request: pytest.FixtureRequest, splits: ImageSplits, tmp_path: Path) -> Study:
    """One training by a study into a folder that all calls share."""

    def run(network: Network, init: str = "random", data: ImageSplits = splits, **more: Any) -> Any:
        more = {"seeds": (0,), "out": tmp_path / "out"} | more
        if request.param == "sgd":
            return train_networks([network], [init], data, QUICK, **more)
        return finetune_networks([network], [init], data, [4], QUICK, **more)

    return run


def test_another_hypernetwork_is_another_training(study: Study, network: Network) -> None:
    first = study(network, "predicted", ghn=hypernetwork(0))
    assert first.trainings[0].error is None
    again = study(network, "predicted", ghn=hypernetwork(0))
    assert again.to_dict() == first.to_dict()
    with pytest.raises(OtherTrainingError, match=r"hypernetwork: got .* holds a training with"):
        study(network, "predicted", ghn=hypernetwork(1))
    study(network, "random")
    study(network, "random", ghn=hypernetwork(1))  # which a random start does not see


def test_another_network_of_that_name_is_another_training(study: Study, tmp_path: Path) -> None:
    small = find_networks(["deepnets:val:1"], channels=4, cells=3)
    study(small[0])
    with pytest.raises(OtherTrainingError, match=r"network\.C: got 8, but .* with 4"):
        study(*find_networks(["deepnets:val:1"], channels=8, cells=3))
    code = """
import torch
def net(num_classes, image_size):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * image_size**2, num_classes))
"""
    file = tmp_path / "mine.py"
    file.write_text(code)
    study(*find_networks([f"{file}:net"]))
    file.write_text(code.replace("Flatten(),", "Flatten(), torch.nn.Tanh(),"))
    with pytest.raises(OtherTrainingError, match=r"network\.file"):
        study(*find_networks([f"{file}:net"]))


def test_other_data_is_another_training(
    study: Study, network: Network, splits: ImageSplits
) -> None:
    study(network)
    fewer = replace(splits, test=splits.test.subset(torch.arange(16)))
    with pytest.raises(OtherTrainingError, match=r"dataset\.test: got 16, but .* with 64"):
        study(network, data=fewer)


def test_other_images_of_one_folder_are_another_training(
    study: Study, network: Network, splits: ImageSplits
) -> None:
    study(network)
    study(network, data=replace(splits))
    test = splits.test
    assert test.images is not None
    images = test.images.clone()
    images[0, 0, 0, 0] ^= 1
    for changed in (replace(test, images=images), replace(test, targets=test.targets.flip(0))):
        with pytest.raises(OtherTrainingError, match=r"dataset\.contents: got "):
            study(network, data=replace(splits, test=changed))


def test_what_is_known_of_files_of_images(tmp_path: Path) -> None:
    def of(root: str, **texts: str) -> str:
        paths = []
        for name, text in texts.items():
            path = tmp_path / root / "a" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            paths.append(str(path))
        return images_digest(ImageSet(torch.zeros(len(paths)).long(), 16, paths=tuple(paths)))

    first = of("one", x="12", y="3")
    assert of("two", x="12", y="3") == first
    assert len({first, of("one", x="12", z="3"), of("one", x="1", y="3")}) == 3


def test_files_of_one_name_are_different_starts(
    study: Study, network: Network, tmp_path: Path
) -> None:
    found = []
    for folder, seed in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "x.safetensors"
        save_file(network.build(4, 16, seed=seed).state_dict(), path)
        found.append(study(network, str(path)).trainings[0])
    assert found[0].curve.points[0].loss != found[1].curve.points[0].loss
    # The same contents elsewhere are the same start, under the name that was asked for.
    moved = (tmp_path / "a" / "x.safetensors").rename(tmp_path / "x.safetensors")
    again = study(network, str(moved)).trainings[0]
    assert (again.init, again.curve.points) == (str(moved), found[0].curve.points)


def test_a_state_is_continued_for_the_same_training_alone(
    splits: ImageSplits, network: Network, tmp_path: Path
) -> None:
    stop = threading.Event()

    def run(init: str = "random", **more: Any) -> SgdReport:
        return train_networks([network], [init], splits, QUICK, out=tmp_path, stop=stop, **more)

    part = run(images="val", on_step=lambda *_: stop.set())
    assert part.trainings[0].error == "interrupted after 1 steps"
    assert part.labels().count("\n") == 1
    stop.clear()
    with pytest.raises(OtherTrainingError, match=r"images: got test, but .* with val"):
        run(images="test")
    run("predicted", ghn=hypernetwork(0), on_step=lambda *_: stop.set())
    stop.clear()
    with pytest.raises(OtherTrainingError, match="hypernetwork"):
        run("predicted", ghn=hypernetwork(1))
    assert run(images="val").finished
    # A state that says less than it must is not continued.
    stop.set()
    folder = tmp_path / "bare"
    train_network(network.build(4, 16), splits, QUICK, folder=folder, stop=stop)
    with pytest.raises(OtherTrainingError, match="does not say which one"):
        train_network(network.build(4, 16), splits, QUICK, folder=folder, about={"init": "he"})


def test_a_failure_is_no_result(
    study: Study, network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What failed is tried again; its message may say what it likes."""
    from ghn_fast.studies import finetune, sgd

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("out of memory, which holds a training with nothing")

    with monkeypatch.context() as patch:
        for module in (sgd, finetune):
            patch.setattr(module, "train_network", fail)
        report = study(network)
    assert report.finished
    assert report.trainings[0].error.startswith("RuntimeError: out of memory")
    assert not list((tmp_path / "out").rglob("*.json"))
    assert study(network).trainings[0].error is None


def test_a_failure_keeps_the_state(
    splits: ImageSplits, network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ghn_fast.studies import sgd

    def run() -> Training:
        return train_networks([network], ["random"], splits, QUICK, out=tmp_path).trainings[0]

    with monkeypatch.context() as patch:
        patch.setattr(sgd, "noisy_batches", lambda *_: 1 / 0)
        assert (run().error or "").startswith("ZeroDivisionError")
    (state,) = tmp_path.rglob("training.pt")
    monkeypatch.setattr("ghn_fast.studies.training._step", lambda *_: pytest.fail("a step"))
    assert run().error is None
    assert not state.exists()


def test_divergence_is_a_result(splits: ImageSplits, tmp_path: Path) -> None:
    """A network that gives NaN has a result without numbers, which can be read again."""

    class Lost(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(math.nan))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.weight * images.mean(dim=(2, 3)).repeat(1, 2)[:, :4]

    network = Network("lost", factory=lambda classes, size: Lost())
    first, again = (
        train_networks([network], ["random"], splits, QUICK, out=tmp_path) for _ in range(2)
    )
    assert first.trainings[0].error == "the loss became infinite after 0 steps"
    assert math.isnan(again.trainings[0].curve.points[0].loss)
    assert again.to_dict() == first.to_dict()
    assert len(list(tmp_path.rglob("result.json"))) == 1


def test_a_record_survives_json() -> None:
    curve = TrainingCurve([Point(0, 1.0, 2.0, math.nan)], [math.inf, 1.5], [0.0, 3.0], 8, 0.5)
    data = json.loads(json.dumps(Training("n", "he", 1, curve=curve).to_dict(), allow_nan=False))
    back = Training.from_dict(data)
    assert math.isnan(back.curve.points[0].loss)
    assert math.isnan(back.curve.train_loss[0])
    assert back.to_dict() == data


def test_a_result_of_a_former_version_is_refused(
    splits: ImageSplits, network: Network, tmp_path: Path
) -> None:
    train_networks([network], ["random"], splits, QUICK, out=tmp_path)
    (path,) = tmp_path.rglob("result.json")
    data = json.loads(path.read_text())
    path.write_text(json.dumps({"settings": {"steps": 3}, "training": data["training"]}))
    with pytest.raises(OtherTrainingError, match="does not say which one"):
        train_networks([network], ["random"], splits, QUICK, out=tmp_path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="is no result of a training"):
        train_networks([network], ["random"], splits, QUICK, out=tmp_path)


def test_seeds_may_be_an_iterator(splits: ImageSplits, network: Network) -> None:
    seeds = iter((0, 1))
    report = train_networks([network], ["random", "he"], splits, QUICK, seeds=seeds)
    assert [(t.init, t.seed) for t in report.trainings] == [
        *(("random", 0), ("random", 1), ("he", 0), ("he", 1)),
    ]


def test_fingerprints() -> None:
    assert fingerprint(hypernetwork(0)) == fingerprint(hypernetwork(0))
    other = hypernetwork(0)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-6
    assert fingerprint(other) != fingerprint(hypernetwork(0))


def test_a_comma_in_a_name_stays_in_its_column() -> None:
    curve = TrainingCurve([Point(0, 25.0, 100.0, 1.0)])
    report = SgdReport("d", {}, [Training('a,"b', "he", 0, curve=curve)])
    assert report.labels().splitlines()[1].startswith('"a,""b",he,0,0,25,,')


def test_too_few_images_are_refused(splits: ImageSplits, network: Network) -> None:
    model = network.build(4, 16)
    for count in (0, 1):
        few = replace(splits, train=splits.train.subset(torch.arange(count)))
        with pytest.raises(ValueError, match=f"squares has {count} training images"):
            train_network(model, few, QUICK)
    none = replace(splits, val=splits.val.subset(torch.arange(0)))
    with pytest.raises(ValueError, match="images: got 'val', but squares has none"):
        train_network(model, none, QUICK, images="val")
