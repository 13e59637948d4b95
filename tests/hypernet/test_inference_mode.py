"""What is kept of a graph in inference mode serves training, and the other way round."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ghn_fast
from networks import SmallCNN

KINDS: dict[str, dict[str, Any]] = {
    "gated GNN": {},
    "graphormer": {"propagator": "graphormer", "heads": 2, "layers": 1, "rules": "ghn3"},
    "low rank": {
        **{"propagator": "graphormer", "heads": 2, "layers": 1, "rules": "ghn3"},
        **{"decoder": "low_rank", "rank": 4},
    },
}


def small_ghn(kind: str) -> ghn_fast.GHN:
    torch.manual_seed(1)
    config = ghn_fast.GHNConfig(hid=8, max_shape=(16, 16, 5, 5), num_classes=10, **KINDS[kind])
    return ghn_fast.GHN(config)


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_that_inference_has_seen_is_trained_on(kind: str) -> None:
    ghn, model = small_ghn(kind), SmallCNN()
    graph = ghn_fast.capture(model, rules=ghn.config.graph_rules)
    with torch.inference_mode():
        ghn.predict(model, graph=graph)
        ghn.predict_flat([graph])
    flat, _ = ghn.predict_flat([graph])
    flat.square().sum().backward()
    assert all(p.grad is not None for p in ghn.propagator.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_hypernetwork_made_in_inference_mode_predicts(kind: str) -> None:
    with torch.inference_mode():
        made = small_ghn(kind)
        made.predict(model := SmallCNN())
    small_ghn(kind).predict(other := SmallCNN())
    for have, want in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(have, want)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_written_beside_autograd_are_read(kind: str) -> None:
    ghn, fresh = small_ghn(kind), small_ghn(kind)
    ghn.predict(SmallCNN())
    for ours, theirs in zip(ghn.parameters(), fresh.parameters(), strict=True):
        # ``.data`` tells nobody.
        ours.data.mul_(1.5)
        with torch.no_grad():
            theirs.mul_(1.5)
    models = SmallCNN(), SmallCNN()
    for hypernetwork, model in zip((ghn, fresh), models, strict=True):
        hypernetwork.predict(model)
    for have, want in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(have, want)
