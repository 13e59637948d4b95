from __future__ import annotations

import random
from itertools import product

import numpy as np
import pytest

from ghn_fast.deepnets import SampledNets
from ghn_fast.metatrain.costs import CostModel, features, spread


def makespan(costs: list[float], shares: list[list[int]]) -> float:
    return max(sum(costs[i] for i in share) for share in shares)


def test_every_item_has_one_process() -> None:
    costs = [random.random() for _ in range(11)]
    for processes in (1, 2, 3, 20):
        shares = spread(costs, processes)
        assert len(shares) == processes
        assert sorted(i for share in shares for i in share) == list(range(11))


def test_spread_is_near_the_best_there_is() -> None:
    for _ in range(20):
        costs = [random.random() ** 2 for _ in range(7)]
        best = min(
            makespan(costs, [[i for i in range(7) if owner[i] == r] for r in range(2)])
            for owner in product(range(2), repeat=7)
        )
        # compared by hand: Graham's bound for two processes, up to rounding.
        assert makespan(costs, spread(costs, 2)) <= (7 / 6) * best + 1e-12


def test_model_learns_seconds() -> None:
    rng = np.random.default_rng(0)
    truth = np.array([0.01, 0.002, 0.03, 0.004])
    model = CostModel()
    for _ in range(60):
        rows = rng.uniform(0.5, 20, (8, 4))
        model.observe(rows, (rows @ truth * rng.normal(1, 0.02, 8)).tolist())
    rows = rng.uniform(0.5, 20, (50, 4))
    # compared by hand: a fit to times with 2 % of noise.
    assert model.predict(rows) == pytest.approx(list(rows @ truth), rel=0.1)
    again = CostModel()
    again.load_state_dict(model.state_dict())
    assert again.predict(rows) == model.predict(rows)


def test_features_grow_with_the_network() -> None:
    nets = SampledNets("train", 3, seed=1)
    for item in nets:
        wider = item.with_config(type(item.config)(**{**_fields(item.config), "C": 128}))
        small, large = features(item, 10, 32), features(wider, 10, 32)
        assert large[2] > small[2] > 0
        assert large[3] > small[3] > 0
        assert np.all(features(item, 10, 64)[2:] != small[2:])
    assert features(object(), 10, 32).shape == (4,)


def _fields(config: object) -> dict[str, object]:
    return {name: getattr(config, name) for name in type(config).__slots__}
