"""Files of predicted parameters."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ghn_fast.hypernet.parameter_file import provenance, save_parameters
from ghn_fast.hypernet.report import PredictionReport

REPORT = PredictionReport(["0.weight"], {"0.bias": "it stays"})


def test_parameters_without_values_are_named(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4, device="meta"))
    path = tmp_path / "new" / "net.safetensors"
    with pytest.raises(ValueError, match=r"'1\.weight' is on the meta device"):
        save_parameters(path, model, REPORT)
    assert not path.exists()


def test_tied_parameters_come_back(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
        model[1].weight = model[0].weight
        return model

    model, other = tied(), tied()
    save_parameters(tmp_path / "net.safetensors", model, REPORT)
    other.load_state_dict(load_file(tmp_path / "net.safetensors"), strict=False)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert other[1].weight is other[0].weight


def test_what_is_not_finite_is_null_in_json() -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    text = provenance(replace(REPORT, seconds={"total": math.nan}))["report"]
    found = json.loads(text, parse_constant=refuse)
    assert found["seconds"] == {"total": None}
    assert (found["predicted"], found["skipped"]) == (REPORT.predicted, REPORT.skipped)
