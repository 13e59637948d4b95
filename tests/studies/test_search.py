"""Ranking a stream of architectures, limits, the front, and the command."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import ghn_fast
from command_line import Run
from ghn_fast.commands.search import networks_of
from ghn_fast.studies import regression as regressions
from ghn_fast.studies import search
from ghn_fast.studies.embeddings import embed_architectures
from ghn_fast.studies.labels import Labels
from ghn_fast.studies.networks import Network, find_networks
from ghn_fast.studies.regression import Regression
from ghn_fast.studies.search import (
    Limits,
    fit_scores,
    search_architectures,
    write_genotypes,
)
from ghn_fast.vision import ImageSplits

GRID = {"C": [10], "gamma": ["auto"], "epsilon": [0.1]}


@pytest.fixture(scope="module")
def ghn() -> ghn_fast.GHN:
    torch.manual_seed(0)
    config = ghn_fast.GHNConfig(hid=8, max_shape=(8, 8, 3, 3), num_classes=4)
    return ghn_fast.GHN(config)


def stream(count: int = 12) -> list[Network]:
    return list(networks_of("search", count, None, 0, 8))


def fitted(ghn: ghn_fast.GHN, monkeypatch: pytest.MonkeyPatch) -> Regression:
    monkeypatch.setattr(regressions, "GRID", GRID)
    networks = find_networks(["deepnets:val:0-9"], channels=8)
    labels = Labels("here", tuple(n.name for n in networks), {"top1": tuple(map(float, range(10)))})
    with pytest.raises(ValueError, match="none of the networks"):
        fit_scores(ghn, networks[:2], labels, "top1", num_classes=4, image_size=16)
    return fit_scores(ghn, networks, labels, "top1", num_classes=4, image_size=16)


def test_by_regression(ghn: ghn_fast.GHN, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    regression = fitted(ghn, monkeypatch)
    report = search_architectures(
        ghn, stream(), regression=regression, num_classes=4, image_size=16, keep=5
    )
    assert (report.seen, report.within, len(report.best)) == (12, 12, 5)
    graphs = [network.graph(4, 16) for network in stream()]
    scores = regression.predict(embed_architectures(ghn, graphs).double().numpy())
    order = [stream()[i].name for i in np.argsort(-scores)[:5]]
    assert [candidate.name for candidate in report.best] == order
    assert report.best[0].front
    for one in report.best:
        smaller = [c for c in report.best if c.parameters <= one.parameters and c.rank > one.rank]
        assert one.front == (not smaller)
        model = Network(one.name, one.config).build(4, 16)
        assert one.parameters == sum(p.numel() for p in model.parameters())
    paths = write_genotypes(report, tmp_path)
    assert find_networks([str(paths[0])])[0].config == report.best[0].config

    sizes = sorted(c.parameters for c in report.best)
    limited = search_architectures(
        ghn, stream(), regression=regression, num_classes=4, image_size=16,
        limits=Limits(parameters=sizes[2]),
    )  # fmt: skip
    assert limited.within < 12
    assert all(c.parameters <= sizes[2] for c in limited.best)
    flops = sorted(c.flops or 0 for c in report.best)[2]
    limited = search_architectures(
        ghn, stream(), regression=regression, num_classes=4, image_size=16,
        limits=Limits(flops=flops, seconds=100.0),
    )  # fmt: skip
    assert all((c.flops or 0) <= flops and c.seconds for c in limited.best)
    with pytest.raises(ValueError, match="none of the 12 architectures is within"):
        search_architectures(
            ghn, stream(), regression=regression, num_classes=4, image_size=16,
            limits=Limits(parameters=3),
        )  # fmt: skip


def test_by_predicted_accuracy_and_both(
    ghn: ghn_fast.GHN, splits: ImageSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"splits": splits, "num_classes": 4, "image_size": 16, "keep": 2, "evaluate": 3}
    report = search_architectures(ghn, stream(4), criterion="predicted", **options)  # type: ignore[arg-type]
    tops = [candidate.predicted_top1 for candidate in report.best]
    assert None not in tops
    assert tops == sorted(tops, reverse=True)  # type: ignore[type-var]
    regression = fitted(ghn, monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(ghn_fast.GHN, "embed", lambda *_: pytest.fail("embedded for nothing"))
        again = search_architectures(ghn, stream(4), criterion="predicted", **options)  # type: ignore[arg-type]
    assert [c.to_dict() for c in again.best] == [c.to_dict() for c in report.best]
    report = search_architectures(
        ghn, stream(4), criterion="both", regression=regression, **options  # type: ignore[arg-type]
    )  # fmt: skip
    assert all(c.score is not None and c.predicted_top1 is not None for c in report.best)
    with monkeypatch.context() as patched:
        failing = stream(4)[1].name
        whole = search._predicted

        def fail(ghn: ghn_fast.GHN, candidate: search.Candidate, splits: ImageSplits) -> float:
            if candidate.name == failing:
                raise RuntimeError("out of\nmemory")
            return whole(ghn, candidate, splits)

        patched.setattr(search, "_predicted", fail)
        report = search_architectures(ghn, stream(4), criterion="predicted", **options)  # type: ignore[arg-type]
        assert [(c.name, c.error) for c in report.failed] == [
            (failing, "RuntimeError: out of memory")
        ]
        assert len(report.best) == 2
        json.dumps(report.to_dict())
        with pytest.raises(ValueError, match=r"none could be evaluated.*out of memory"):
            search_architectures(
                ghn, stream(4)[1:2], criterion="predicted", **options  # type: ignore[arg-type]
            )  # fmt: skip
    stop = threading.Event()

    def end(done: int) -> None:
        if done == 3:
            stop.set()

    report = search_architectures(
        ghn, stream(40), regression=regression, num_classes=4, image_size=16, stop=stop,
        on_seen=end,
    )  # fmt: skip
    assert not report.finished
    assert report.within < 40
    for criterion, message in (
        ("luck", "needs one of regression"),
        ("regression", "needs labels"),
        ("predicted", "needs images"),
    ):
        with pytest.raises(ValueError, match=message):
            search_architectures(ghn, stream(2), criterion=criterion)
    with pytest.raises(ValueError, match="is not made of cells"):
        search_architectures(
            ghn, find_networks(["resnet18"]), regression=regression, num_classes=4
        )  # fmt: skip


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:

    monkeypatch.setattr(regressions, "GRID", GRID)

    table = tmp_path / "labels.csv"
    rows = [f"val-{i},{(i * 3) % 8}" for i in range(8)]
    table.write_text("\n".join(["network,top1", *rows]) + "\n")
    out = tmp_path / "out"
    status, printed, error = run(
        "search", "--count", 20, "--labels", table, "--keep", 3, "--channels", 8, "--out", out,
        "--image-size", 16,
    )  # fmt: skip
    assert status == 0, error
    assert "a second" in printed
    data = json.loads((out / "search.json").read_text())
    assert len(data["best"]) == len(list(out.glob("best-*.json"))) == 3
    assert (out / "search.png").stat().st_size > 1000
    for arguments, message in (
        ((), "needs --labels"),
        (("--by", "luck"), "needs one of regression"),
        (("--labels", table, "--label", "size"), "label: got 'size'"),
        (("--labels", table, "--split", "huge", "--channels", 8), "needs one of train"),
    ):
        status, _, error = run("search", *arguments, "--out", tmp_path / "no")
        assert status == 2
        assert message in error
        assert not (tmp_path / "no").exists()
