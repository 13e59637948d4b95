"""How long candidate networks take: estimated from their structure, calibrated by measurement."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ghn_fast.deepnets.architectures.genotype import NetworkConfig
from ghn_fast.deepnets.architectures.parameters import (
    cell_parameters,
    classifier_parameters,
    stem_parameters,
)
from ghn_fast.deepnets.architectures.primitives import TABLE, multiply_adds, op_multiply_adds
from ghn_fast.deepnets.architectures.spec import network_spec

# Features: a constant, operations, multiply-adds and activations per image, in these units.
# Before anything has been measured each unit counts the same.
_SCALES = np.array([1.0, 1e2, 1e7, 1e5])
_PRIOR = np.full(4, 1e-2)
# What is assumed of networks that are not of DeepNets-1M.
_TYPICAL = (100, 50_000_000, 2_000_000)
# Weight of the past per measurement: some hundreds of them count.
_MEMORY = 0.998
_PRIOR_WEIGHT = 1e-3


class CostModel:
    """Predicts seconds of candidate networks; the same on every process that sees the same numbers.

    Least squares with weights that are not negative, over exponentially fading measurements.
    """

    def __init__(self) -> None:
        self._gram = np.eye(4) * _PRIOR_WEIGHT
        self._moment = self._gram @ _PRIOR
        self._weights = _PRIOR.copy()

    def predict(self, features: npt.NDArray[np.float64]) -> list[float]:
        """Seconds of networks with features (n, 4)."""
        return (features @ self._weights).tolist()

    def observe(self, features: npt.NDArray[np.float64], seconds: Sequence[float]) -> None:
        """Learn from measured seconds of networks with features (n, 4)."""
        for row, value in zip(features, seconds, strict=True):
            # Relative errors count, so that large networks do not decide alone.
            weight = 1.0 / max(float(row @ row), 1e-6)
            self._gram = _MEMORY * self._gram + weight * np.outer(row, row)
            self._moment = _MEMORY * self._moment + weight * value * row
        ridge = self._gram + 1e-6 * np.eye(4)
        weights = np.linalg.solve(ridge, self._moment).clip(min=0.0)
        if weights.any():
            self._weights = weights

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"gram": self._gram.tolist(), "moment": self._moment.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self._gram = np.array(state["gram"])
        self._moment = np.array(state["moment"])
        self.observe(np.empty((0, 4)), [])


def features(architecture: Any, num_classes: int, image_size: int) -> npt.NDArray[np.float64]:
    """Features (4,) of an architecture."""
    work = _TYPICAL
    if isinstance(getattr(architecture, "config", None), NetworkConfig):
        work = network_work(architecture.config_for(image_size), num_classes, image_size)
    return np.array([1.0, *work]) / _SCALES


@lru_cache(maxsize=4096)
def network_work(config: NetworkConfig, num_classes: int, image_size: int) -> tuple[int, int, int]:
    """Operations, and multiply-adds and activations per image, of a network of DeepNets-1M.

    Multiply-adds are those of the layers that are executed, as torch's counter of operations has
    them; activations are an estimate of what is written.
    """
    spec = network_spec(config, num_classes, image_size)
    macs = multiply_adds(stem_parameters(spec)) + multiply_adds(classifier_parameters(spec))
    values = 2 * spec.stem.channels * spec.stem.sizes[0] ** 2
    count = 0
    for index, cell in enumerate(spec.cells):
        blocks = cell_parameters(index, cell, spec.norm)
        for part, params in zip(cell.preprocess, blocks, strict=False):
            if part.alive and part.kind in ("conv", "factorized"):
                macs += multiply_adds(params)
                values += (part.in_channels + 2 * cell.channels) * cell.size**2
        for op, params in zip(cell.ops, blocks[2:], strict=True):
            if op.alive:
                count += 1
                macs += op_multiply_adds(op.primitive, cell.channels, op.size, params)
                pixels = (op.size // op.stride) ** 2
                values += TABLE[op.primitive].activations * pixels * cell.channels
    return count, macs, values


def spread(costs: Sequence[float], count: int) -> list[list[int]]:
    """Distribute items over ``count`` processes so that the largest sum of costs is small.

    The costliest item first, each to the process that has least to do so far (Graham 1969); ties go
    to the lower number, so that every process finds the same.

    Returns:
        For each process the positions of its items, ascending.
    """
    shares: list[list[int]] = [[] for _ in range(count)]
    loads = [0.0] * count
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        least = min(range(count), key=lambda r: (loads[r], r))
        shares[least].append(index)
        loads[least] += costs[index]
    return [sorted(share) for share in shares]
