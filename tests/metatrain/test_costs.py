from __future__ import annotations

import random
from itertools import product

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ghn_fast.deepnets import Network, NetworkConfig, SampledNets, is_connected
from ghn_fast.metatrain.costs import CostModel, features, network_work, spread
from random_configs import random_config


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


def executed_multiply_adds(config: NetworkConfig, num_classes: int, image_size: int) -> int:
    """What torch counts when the network runs on one image."""
    with torch.device("meta"):
        network = Network(config, num_classes, image_size)
        image = torch.empty(1, 3, image_size, image_size)
    with FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("image_size", [9, 16, 32, 64, 100])
def test_multiply_adds_are_those_that_torch_counts(image_size: int) -> None:
    rng = random.Random(image_size)
    compared = 0
    while compared < 12:
        config = random_config(rng)
        # Heads of one channel are multiplied elementwise, which torch does not count.
        narrow = config.is_vit and config.C < 16
        if is_connected(config) and not narrow:
            expected = executed_multiply_adds(config, 7, image_size)
            assert network_work(config, 7, image_size)[1] == expected
            compared += 1


@pytest.mark.parametrize("split", ["train", "deep", "dense", "bnfree", "wide"])
def test_multiply_adds_of_the_splits(split: str) -> None:
    for item in SampledNets(split, 4, seed=3):
        config = item.config_for(32)
        assert network_work(config, 10, 32)[1] == executed_multiply_adds(config, 10, 32)
