"""Graphs by the rules of GHN-3 against those that the published code makes of networks.

``fixtures/ghn3/graphs.json`` has of each the fingerprint, the number of pairs of nodes at each
distance, and the last two nodes, which decide what the classifier's heads predict; made with the
published implementation (SamsungSAILMontreal/ghn3), 10 classes, 224 x 224 (Inception 299 x 299).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from ghn_fast.capturing import capture
from ghn_fast.graph import ArchGraph
from ghn_fast.graph.rules import GraphRules
from graphs import fingerprint, fingerprint_of
from published import network

# The published graph hangs its classifier, which has no bias, off the input.
WRONG = "maxvit_t"


def build(name: str) -> nn.Module:
    options: dict[str, bool] = {}
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": False}
    with pytest.MonkeyPatch.context() as patch:
        # RegNets compute their widths with tensors, so they are not built on meta.
        for initial in ("kaiming_uniform_", "kaiming_normal_", "normal_", "uniform_"):
            patch.setattr(nn.init, initial, lambda tensor, *args, **kwargs: tensor)
        with torch.device("cpu" if name.startswith("regnet") else "meta"):
            return torchvision.models.get_model(name, num_classes=10, **options).eval()


def published(folder: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((folder / "ghn3" / "graphs.json").read_text())
    return found


def summary(graph: ArchGraph) -> dict[str, Any]:
    last = [
        "" if shape is None else name
        for name, shape in zip(graph.names[-2:], graph.shapes[-2:], strict=True)
    ]
    distances = torch.bincount(graph.edges[:, 2])[1:].tolist()
    return {"fingerprint": fingerprint_of(graph), "distances": distances, "last": last}


def captured(name: str) -> ArchGraph:
    size = 299 if name == "inception_v3" else 224
    return capture(build(name), (3, size, size), rules=GraphRules.GHN3)


def test_networks_have_the_published_graphs(small_fixtures_dir: Path) -> None:
    wanted = published(small_fixtures_dir)
    assert len(wanted) == 67
    different = [name for name, want in wanted.items() if summary(captured(name)) != want]
    assert different == [WRONG]


def test_shared_graphs_are_ours(fixtures_dir: Path) -> None:
    count = 0
    for path in sorted((fixtures_dir / "ghn3" / "graphs").glob("*.json")):
        given = json.loads(path.read_text())
        if given["model"].startswith("gpt2:"):
            continue
        (classes,) = given["shapes"][-1]  # of the last bias
        model = network(given["model"], classes)
        graph = capture(model, getattr(model, "input_shape", None), rules=GraphRules.GHN3)
        want = fingerprint(given["node_types"], given["names"], given["shapes"], given["hops"])
        assert fingerprint_of(graph) == want, path.name
        count += 1
    assert count >= 6
