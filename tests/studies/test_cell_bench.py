"""Ranking cells from a few labels, and the command."""

from __future__ import annotations

import json
import lzma
import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import ghn_fast
from command_line import Run
from ghn_fast.studies.cell_bench import (
    BOTH,
    METHODS,
    bench_cells,
    embed_cells,
    read_cell_tables,
    zero_shot,
)
from ghn_fast.studies.nasbench201 import EDGES, Cell, cell_graph
from ghn_fast.vision import ImageSplits
from tolerances import assert_close


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of 80 cells whose accuracy is the number of their convolutions, with noise."""
    drawn = random.Random(0)
    cells: set[Cell] = {(1, 1, 1, 1, 1, 1)}
    while len(cells) < 81:
        cells.add((*(drawn.randrange(5) for _ in EDGES[1:]), 2))
    path = tmp_path_factory.mktemp("tables")
    rows = ["net,val_accs", *(f'"{c}",{sum(o == 2 for o in c) + drawn.random()}' for c in cells)]
    with lzma.open(path / "accuracy.csv.xz", "wt") as file:
        file.write("\n".join(rows))
    rows = ["net,net_str,flops", *(f'"{c}",x,{sum(c)}' for c in cells)]
    (path / "zero_cost_proxies.csv").write_text("\n".join(rows))
    rows = ["net,latency", *(f'"{c}",{len(set(c))}' for c in list(cells)[:70])]
    (path / "hardware.csv").write_text("\n".join(rows))
    return path


@pytest.fixture(scope="module")
def ghn() -> ghn_fast.GHN:
    torch.manual_seed(0)
    return ghn_fast.GHN(ghn_fast.GHNConfig(hid=8, max_shape=(8, 8, 3, 3)))


def test_tables(folder: Path, tmp_path: Path) -> None:
    tables = read_cell_tables(folder)
    assert (1, 1, 1, 1, 1, 1) not in tables.cells
    assert len(tables.cells) <= 80
    assert set(tables.targets) == {"accuracy", "latency"}
    assert 0 < np.isfinite(tables.targets["latency"]).sum() <= 70
    assert tables.proxy_names == ["flops"]
    with pytest.raises(FileNotFoundError, match="no accuracy.csv"):  # noqa: RUF043
        read_cell_tables(tmp_path)
    (tmp_path / "accuracy.csv").write_text("net,val_accs\nabc,1\n")
    with pytest.raises(ValueError, match="is no table of cells"):
        read_cell_tables(tmp_path)
    (tmp_path / "accuracy.csv").write_text('net,top1\n"(2, 2, 2, 2, 2, 2)",1\n')
    with pytest.raises(ValueError, match="no column val_accs"):
        read_cell_tables(tmp_path)


def test_embeddings_of_cells(folder: Path, ghn: ghn_fast.GHN) -> None:
    cells = read_cell_tables(folder).cells[:20]
    found = embed_cells(ghn, cells)
    assert found.ordered.shape == (20, 600)
    for row, cell in zip(found.mean, cells, strict=True):
        nodes = ghn.embed(cell_graph(cell, cells=1).graph)
        assert_close(row, nodes.mean(dim=0).double(), context="ghn", dtype=torch.float32)
    again = embed_cells(ghn, cells, workers=1)
    assert_close(again.ordered, found.ordered, context="ghn", dtype=torch.float32)
    with pytest.raises(ValueError, match="cells: got none"):
        embed_cells(ghn, [])


def test_cells_are_read_by_the_rules_of_the_hypernetwork(folder: Path, splits: ImageSplits) -> None:
    tables = read_cell_tables(folder)
    config = ghn_fast.GHNConfig(hid=8, max_shape=(8, 8, 3, 3), num_classes=4, rules="ghn3")
    ghn = ghn_fast.GHN(config)
    assert embed_cells(ghn, tables.cells[:3]).mean.shape == (3, 8)
    assert zero_shot(ghn, tables, splits, 2)[0].cells == 2


def test_ranking(folder: Path, ghn: ghn_fast.GHN) -> None:
    tables = read_cell_tables(folder)
    embeddings = embed_cells(ghn, tables.cells)
    rows = bench_cells(tables, embeddings, labels=[30], draws=2)
    assert [row.method for row in rows] == list(METHODS)
    tau = {row.method: row.tau[0] for row in rows}
    assert min(tau["operations"], tau["counts and paths"], tau[BOTH]) > 0.4
    assert all(len(row.tau) == len(row.best) == 2 for row in rows)
    again = bench_cells(tables, embeddings, labels=[30], draws=2)
    assert again == rows
    for options, message in (
        ({"targets": ["size"]}, "target: got 'size'"),
        ({"methods": ["luck"]}, "method: got 'luck'"),
        ({"labels": [500]}, "labels: got 500"),
        ({"draws": 0}, "draws: got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            bench_cells(tables, embeddings, **options)  # type: ignore[arg-type]


def test_without_labels(folder: Path, splits: ImageSplits) -> None:
    torch.manual_seed(0)
    config = ghn_fast.GHNConfig(hid=8, max_shape=(8, 8, 3, 3), num_classes=4)
    ghn, tables = ghn_fast.GHN(config), read_cell_tables(folder)
    done: list[int] = []
    both = ("accuracy", "latency")
    found = zero_shot(ghn, tables, splits, 4, targets=both, seed=1, on_cell=done.append)
    assert done == [1, 2, 3, 4]  # each cell once, for all targets
    assert [shot.target for shot in found] == list(both)
    for shot in found:
        assert shot.cells == len(shot.predicted) == len(shot.truth) == 4
        assert -1 <= shot.tau <= 1
    assert found[0].predicted == found[1].predicted
    assert zero_shot(ghn, tables, splits, 4, targets=both, seed=1) == found
    with pytest.raises(ValueError, match="target: got 'size'"):
        zero_shot(ghn, tables, splits, 4, targets=["size"])
    stop = threading.Event()
    stop.set()
    assert zero_shot(ghn, tables, splits, 4, stop=stop)[0].cells == 0
    with pytest.raises(ValueError, match="predicted: got 1"):
        zero_shot(ghn, tables, splits, 1)
    other = ghn_fast.GHN(ghn_fast.GHNConfig(hid=8, max_shape=(8, 8, 3, 3)))
    with pytest.raises(ValueError, match="squares has 4 classes"):
        zero_shot(other, tables, splits, 4)


def test_the_command(folder: Path, tmp_path: Path, run: Run) -> None:

    out = tmp_path / "out"
    status, printed, error = run("nasbench201", folder, "--labels", 20, "--draws", 1, "--out", out)
    assert status == 0, error
    assert "node by node" in printed
    data = json.loads((out / "nasbench201.json").read_text())
    assert {row["method"] for row in data["rows"]} == set(METHODS)
    assert (out / "nasbench201.png").stat().st_size > 1000
    for arguments, message in (
        ((tmp_path / "gone",), "no accuracy.csv"),
        ((folder, "--target", "size"), "needs one of accuracy, latency"),
        ((folder, "--labels", 5000), "labels: got 5000"),
    ):
        status, _, error = run("nasbench201", *arguments, "--out", tmp_path / "no")
        assert status == 2
        assert message in error
