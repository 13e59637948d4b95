"""Random configurations of networks, over a wider space than that of DeepNets-1M."""

from __future__ import annotations

import random

from ghn_fast.deepnets.architectures.genotype import PRIMITIVES, Genotype, NetworkConfig


def random_config(rng: random.Random, *, max_steps: int = 4, max_cells: int = 9) -> NetworkConfig:
    """A configuration; the network may lack a path from its input to its output."""
    steps = rng.randint(1, max_steps)
    # Few kinds at a time, so that networks with and without attention, and sparse ones, occur.
    kinds = rng.sample(PRIMITIVES, rng.randint(1, 5)) + ["none"] * rng.randint(0, 2)
    concat = tuple(i for i in range(2, steps + 2) if i == steps + 1 or rng.random() < 0.6)
    genotype = Genotype(_cell(rng, steps, kinds), concat, _cell(rng, steps, kinds), concat)
    c_mult = rng.choice((1, 2))
    return NetworkConfig(
        genotype=genotype,
        n_cells=rng.randint(3, max_cells),
        C=rng.choice((8, 16, 36)),
        stem_type=rng.choice((0, 1)),
        stem_pool=rng.random() < 0.5,
        norm=rng.choice(("bnorm", None)),
        preproc=len(concat) > 1 or c_mult > 1 or rng.random() < 0.5,
        fc_layers=rng.randint(1, 3),
        fc_dim=16,
        glob_avg=rng.random() < 0.7,
        ks=rng.choice((3, 5, 7)),
        C_mult=c_mult,
    )


def _cell(rng: random.Random, steps: int, kinds: list[str]) -> tuple[tuple[str, int], ...]:
    return tuple((rng.choice(kinds), rng.randrange(2 + i // 2)) for i in range(2 * steps))
