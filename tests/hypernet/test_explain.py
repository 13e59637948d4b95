"""How far a network is from those of training, and what accuracy to expect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import ghn_fast
from ghn_fast.deepnets import SampledNets
from ghn_fast.hypernet import explain
from ghn_fast.hypernet.explain import ACCURACIES_FILE, reference_of
from networks import SmallCNN
from tolerances import assert_close


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """A smaller reference, for a quick test."""
    monkeypatch.setattr(explain, "REFERENCE", 40)
    return 40


def test_the_distance_is_that_of_mahalanobis(few: int) -> None:
    ghn = ghn_fast.from_pretrained("ghn2-digits")
    reference = reference_of(ghn)
    assert reference_of(ghn) is reference
    nets = SampledNets("train", few, 0, 50)
    rows = torch.stack([ghn.embed(nets[i].graph).mean(0) for i in range(few)]).double()
    covariance = torch.cov(rows.T)
    ridge = 0.01 * covariance.diagonal().mean()
    apart = rows - rows.mean(0)
    inverse = torch.linalg.inv(covariance + ridge * torch.eye(32))
    expected = torch.einsum("ni,ij,nj->n", apart, inverse, apart).sqrt().sort().values
    assert_close(reference.distances, expected, dtype=torch.float32, context="ghn")
    nearest = int(torch.einsum("ni,ij,nj->n", apart, inverse, apart).argmin())
    found = reference.explain(ghn.embed(nets[nearest].graph))
    assert found.percentile <= 100 / few
    assert not found.far
    with torch.no_grad():
        next(ghn.parameters()).mul_(1.5)
    assert reference_of(ghn) is not reference


def test_a_strange_network_is_told_apart(few: int) -> None:
    ghn = ghn_fast.from_pretrained("ghn2-digits")
    item = SampledNets("train", 8, 0, 50)[7]
    report = ghn.predict(item.build(), item.graph, explain=True)
    assert report.explanation is not None
    strange = ghn.predict(SmallCNN(), input_shape=(3, 32, 32), explain=True)
    assert strange.explanation is not None
    assert strange.explanation.distance > report.explanation.distance
    assert strange.explanation.far
    assert any("outside of what was trained on" in text for text in strange.warnings)
    assert ghn.predict(SmallCNN(), input_shape=(3, 32, 32)).explanation is None


def test_accuracies_beside_a_checkpoint(few: int, tmp_path: Path) -> None:
    ghn = ghn_fast.from_pretrained("ghn2-digits")
    folder = ghn_fast.save_pretrained(ghn, tmp_path / "copy")
    values = [None, *(40.0 + i for i in range(12))]
    data = {"split": "val", "seed": 0, "dataset": "digits", "top1": values}
    (folder / ACCURACIES_FILE).write_text(json.dumps(data))
    loaded = ghn_fast.from_pretrained(folder)
    item = SampledNets("val", 4, 0, 50)[3]
    found = loaded.predict(item.build(), item.graph, explain=True).explanation
    assert found is not None
    assert found.expected_top1 is not None and 40 <= found.expected_top1 <= 52
    assert found.dataset == "digits"
    assert "top-1 on digits without training" in str(found)
    for text in ("{", '{"split": "val"}', json.dumps({**data, "top1": [1.0]})):
        (folder / ACCURACIES_FILE).write_text(text)
        with pytest.raises(ValueError, match="accuracies"):
            ghn_fast.from_pretrained(folder).predict(item.build(), item.graph, explain=True)
