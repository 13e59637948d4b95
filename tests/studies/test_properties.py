"""Predicting labels of architectures: tables, regression, the whole study, the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import ghn_fast
from command_line import Run
from ghn_fast.studies.features import architecture_features, count_flops
from ghn_fast.studies.labels import Labels, read_labels
from ghn_fast.studies.networks import find_networks, names_of, names_to_find
from ghn_fast.studies.properties import predict_properties
from ghn_fast.studies.regression import Regression, kendall_tau

GRID = {"C": [1, 100], "gamma": ["auto"], "epsilon": [0.1]}


def test_tables_of_labels(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("network,init,top1,seconds\na,random,50,\na,he,70,\nb,random,20,0.5\n")
    labels = read_labels(path)
    assert labels.networks == ("a", "b")
    assert labels.columns == {"top1": (60.0, 20.0), "seconds": (None, 0.5)}
    assert labels.column("seconds") == {"b": 0.5}
    (tmp_path / "labels.json").write_text('[{"network": "a", "top1": 1}]')
    assert read_labels(tmp_path / "labels.json").column("top1") == {"a": 1.0}
    with pytest.raises(ValueError, match="label: got 'size', but .* has top1, seconds"):  # noqa: RUF043
        labels.column("size")
    for text, message in (("", "holds no rows"), ("name,top1\na,1\n", "has no 'network'")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_labels(path)
    (tmp_path / "labels.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read as a table"):
        read_labels(tmp_path / "labels.json")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_labels(tmp_path / "gone.csv")


def test_regression_finds_a_smooth_function() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 3))
    y = 1e-3 * (x[:, 0] + x[:, 1] ** 2)
    model = Regression(grid=GRID).fit(x[:60], y[:60])
    assert kendall_tau(model.predict(x[60:]), y[60:]) > 0.6
    assert model.chosen["C"] == 100
    assert kendall_tau(np.ones(4), np.arange(4.0)) == 0.0
    with pytest.raises(ValueError, match="needs as many and at least 5"):
        Regression().fit(x[:4], y[:4])
    with pytest.raises(ValueError, match="not finite"):
        Regression().fit(x[:6], np.full(6, np.nan))


def test_operations_of_networks_for_tiny_images_are_counted() -> None:
    """Their last features are one value per channel, which BatchNorm does not take of one image."""
    (network,) = find_networks(["deepnets:val:1"], channels=8)
    model = network.build(10, 8)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model.eval()(torch.zeros(1, 3, 8, 8))
    assert count_flops(model, 8) < count_flops(model, 16)


def test_operations_are_counted() -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(256, 2)
    )
    assert count_flops(model, 8) == 2 * (64 * 4 * 27 + 256 * 2)
    # As NAS-Bench-201 counts them of its largest cell: products and sums are one there.
    from ghn_fast.studies.nasbench201 import CellNetwork

    flops = count_flops(CellNetwork((2, 2, 2, 2, 2, 2)), 32) / 2e6
    assert 219 < flops < 223


def test_labels_of_a_split_rank_another_one() -> None:
    torch.manual_seed(0)
    ghn = ghn_fast.GHN(ghn_fast.GHNConfig(hid=8, max_shape=(8, 8, 3, 3)))
    networks = find_networks(["deepnets:val:0-9", "deepnets:test:0-5"], channels=8)
    features = architecture_features(ghn, networks, num_classes=10, image_size=16)
    assert {name: rows.shape for name, rows in features.items()} == {
        "embeddings": (16, 8), "parameters": (16, 1), "FLOPs": (16, 1), "operations": (16, 15),
        "paths": (16, 5), "embeddings and counts": (16, 30),
    }  # fmt: skip
    values = tuple(features["paths"][:, 4].tolist())
    labels = Labels("here", tuple(names_of(networks)), {"depth": values})
    (report,) = predict_properties(
        ghn, networks, labels, ["depth"], num_classes=10, image_size=16, draws=2, fit=8, grid=GRID
    )
    assert (report.fitted, report.tested) == (8, 6)
    assert len(report.tau["paths"]) == 2
    assert report.tau["paths"][0] > 0.6
    assert report.networks == [f"test-{i}" for i in range(6)]
    strange = Labels("here", ("nobody",), {"depth": (1.0,)})
    for table, options, message in (
        (strange, {}, "'nobody', which is none of the 16 networks"),
        (labels, {"fit": 50}, "fit: got 50, but 10 architectures of the split val"),
        (labels, {"split": None}, "needs a number"),
        (labels, {"split": "deep"}, "fit: got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            predict_properties(
                ghn, networks, table, ["depth"], num_classes=10, image_size=16, **options
            )  # type: ignore[arg-type]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    from ghn_fast.studies import regression

    monkeypatch.setattr(regression, "GRID", GRID)

    table = tmp_path / "labels.csv"
    names = [f"{split}-{i}" for split in ("val", "test") for i in range(8)]
    rows = [f"{name},{(i * 7) % 16},{i}" for i, name in enumerate(names)]
    table.write_text("\n".join(["network,top1,odd", *rows]) + "\n")
    common = ("--image-size", 16, "--channels", 8, "--out", tmp_path / "out")
    status, printed, error = run("properties", table, "--draws", 1, *common)
    assert status == 0, error
    assert "published: GHN-2" in printed
    data = json.loads((tmp_path / "out" / "properties.json").read_text())
    assert data["reports"][0]["tested"] == 8
    assert (tmp_path / "out" / "properties.png").stat().st_size > 1000
    for arguments, message in (
        ((tmp_path / "no.csv",), "no such file"),
        ((table, "--label", "size"), "label: got 'size'"),
        ((table, "--fit", 100), "fit: got 100"),
    ):
        status, _, error = run("properties", *arguments, *common)
        assert status == 2
        assert message in error


def test_names_of_splits() -> None:
    assert names_to_find(["val-3", "resnet50", "my-net"]) == [
        *("deepnets:val:3", "resnet50", "my-net"),
    ]
