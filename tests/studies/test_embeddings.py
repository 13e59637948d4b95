"""Embeddings of architectures: pooling, distances, neighbours, pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

import ghn_fast
from command_line import Run
from ghn_fast.deepnets import SampledNets
from ghn_fast.studies.embeddings import (
    embed_architectures,
    frechet_distance,
    nearest,
    principal_components,
)
from ghn_fast.studies.landscape import draw_landscape, survey
from tolerances import assert_close


@pytest.fixture(scope="module")
def ghn() -> ghn_fast.GHN:
    torch.manual_seed(0)
    return ghn_fast.GHN(ghn_fast.GHNConfig(hid=8, max_shape=(8, 8, 3, 3)))


def test_pooled_as_one_by_one(ghn: ghn_fast.GHN) -> None:
    graphs = [item.graph for item in SampledNets("val", 20, 0)]
    seen: list[int] = []
    for pooling in ("mean", "sum", "max"):
        found = embed_architectures(
            ghn, [lambda g=g: g for g in graphs], pooling=pooling, workers=2, on_batch=seen.append
        )
        for row, graph in zip(found, graphs, strict=True):
            nodes = ghn.embed(graph)
            expected = nodes.amax(0) if pooling == "max" else getattr(nodes, pooling)(0)
            assert_close(row, expected, context="ghn")
    assert seen[:2] == [16, 20]
    endless = embed_architectures(ghn, iter(graphs[:3]))
    assert endless.shape == (3, 8)
    with pytest.raises(ValueError, match="needs one of mean, sum, max"):
        embed_architectures(ghn, graphs, pooling="best")
    with pytest.raises(ValueError, match="graphs: got none"):
        embed_architectures(ghn, [])
    with pytest.raises(ValueError, match="workers: got 0"):
        embed_architectures(ghn, graphs, workers=0)


def test_frechet_distance_by_scipy() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6))
    b = rng.normal(size=(40, 6)) + 1
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum()
    expected += np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert_close(frechet_distance(torch.tensor(a), torch.tensor(b)), expected, dtype=torch.float32)
    assert_close(frechet_distance(torch.tensor(a), torch.tensor(a)), 0.0, scale=1.0)
    with pytest.raises(ValueError, match="needs at least 2"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="needs 3 as in one"):
        frechet_distance(torch.zeros(2, 3), torch.zeros(2, 4))


def test_neighbours_and_components() -> None:
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0], [1.0, 0.0]])
    assert nearest(rows, rows[0], 3) == ([0, 2, 3], [0.0, 1.0, 1.0])
    torch.manual_seed(0)
    wide = torch.randn(30, 5) * torch.tensor([5.0, 2.0, 0.1, 0.1, 0.1])
    projected, shares = principal_components(wide)
    values = torch.linalg.eigvalsh(torch.cov(wide.double().T)).flip(0)
    assert_close(projected.var(dim=0), values[:2], dtype=torch.float32)
    assert_close(shares, values[:2] / values.sum(), dtype=torch.float32)
    with pytest.raises(ValueError, match="needs 2 or more of both"):
        principal_components(torch.zeros(1, 5))


def test_a_survey_of_sets(ghn: ghn_fast.GHN, tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = torch.randn(30, 4)
    sets = {
        "near": (["a", "b", "c"], torch.randn(3, 4)),
        "far": (["d", "e"], torch.randn(2, 4) + 9),
        "one": (["f"], torch.zeros(1, 4)),
    }
    found = survey(reference, sets, queries=["d"], count=2)
    assert found.frechet["near"] < found.frechet["far"]  # type: ignore[operator]
    assert found.frechet["one"] is None
    assert found.neighbours["d"][0][0] == "e"
    assert len(found.points["near"]) == 3
    draw_landscape(found, tmp_path / "sets.png")
    draw_landscape(found, tmp_path / "values.png", {"a": 1.0, "d": 2.0}, "top1")
    assert (tmp_path / "values.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="none of the architectures has a value"):
        draw_landscape(found, tmp_path / "values.png", {"x": 1.0})
    with pytest.raises(ValueError, match="in none of the sets"):
        survey(reference, sets, queries=["x"])


def test_the_command(tmp_path: Path, run: Run) -> None:

    from safetensors import safe_open

    out = tmp_path / "out"
    common = ("--count", 4, "--reference", 12, "--out", out)
    status, printed, error = run("embeddings", "test", "bnfree", "vit", "--near", "vit", *common)
    assert status == 0, error
    assert "nearest to vit: " in printed
    data = json.loads((out / "embeddings.json").read_text())
    assert set(data["frechet"]) == {"test", "bnfree", "vit"}
    with safe_open(out / "embeddings.safetensors", "pt") as file:
        assert file.get_tensor("test").shape == (4, 32)
        assert json.loads(file.metadata()["test"]) == [f"test-{i}" for i in range(4)]
    assert (out / "embeddings.png").stat().st_size > 1000
    status, _, error = run("embeddings", "nothing", *common)
    assert status == 2
    status, _, error = run("embeddings", "vit", "--labels", tmp_path / "gone.csv", *common)
    assert (status, "no such file" in error) == (2, True)
