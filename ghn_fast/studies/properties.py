"""Predicting properties of architectures from their embeddings, beside simple counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ghn_fast.hypernet import GHN
from ghn_fast.studies.features import COMBINED, FEATURES, architecture_features
from ghn_fast.studies.labels import Labels
from ghn_fast.studies.networks import Network
from ghn_fast.studies.regression import Array, Regression, kendall_tau

# Tau on the test split after fitting on 500 architectures of val, CIFAR-10 (arXiv 2110.13100,
# table 4): accuracy, accuracy with noise, seconds of inference, convergence.
PUBLISHED: dict[str, dict[str, float]] = {
    "GHN-2": {"top1": 0.80, "noisy_top1": 0.52, "seconds": 0.89, "convergence": 0.58},
    "GHN-1": {"top1": 0.67, "noisy_top1": 0.47, "seconds": 0.78, "convergence": 0.53},
    "MLP": {"top1": 0.62, "noisy_top1": 0.38, "seconds": 0.65, "convergence": 0.46},
    "neural predictor": {"top1": 0.48, "noisy_top1": 0.45, "seconds": 0.70, "convergence": 0.40},
}


@dataclass
class PropertyReport:
    """How well a label is ranked from features.

    Attributes:
        label: The label.
        fitted: Number of architectures that regressions were fitted to.
        tested: Number of architectures that they were tested on.
        tau: Features to Kendall's tau for each draw.
        truth: Labels of the tested architectures.
        predicted: What the regression on embeddings says of them, in the first draw.
        networks: Their names.
    """

    label: str
    fitted: int
    tested: int
    tau: dict[str, list[float]] = field(default_factory=dict)
    truth: list[float] = field(default_factory=list)
    predicted: list[float] = field(default_factory=list)
    networks: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def predict_properties(
    ghn: GHN,
    networks: Sequence[Network],
    labels: Labels,
    names: Sequence[str],
    *,
    num_classes: int,
    image_size: int,
    fit: int | None = None,
    split: str | None = "val",
    draws: int = 1,
    seed: int = 0,
    grid: dict[str, list[Any]] | None = None,
    on_network: Callable[[int], None] | None = None,
) -> list[PropertyReport]:
    """Fit regressions to labels of some architectures and rank the others.

    As published (arXiv 2110.13100, section 4.3), support vector regressions are fitted to mean node
    embeddings with hyperparameters from a grid, on architectures of one split, and rank those of
    another one. Beside them stand the same regressions on counts.

    Args:
        ghn: The hypernetwork.
        networks: The architectures of the table.
        labels: The table of labels.
        names: The labels to predict.
        num_classes: Number of classes of the networks.
        image_size: Height and width of the images in pixels.
        fit: Number of architectures to fit to, drawn from those of ``split``; all by default.
        split: Architectures to fit to are those whose name begins with it, the others are for
            testing. ``None`` draws ``fit`` of all.
        draws: Number of draws of ``fit`` architectures; without one only folds differ.
        seed: Seed of the draws.
        grid: Hyperparameters, by default as published.
        on_network: Called with the number of architectures whose features are done.

    Raises:
        ValueError: If labels and architectures do not match, or there are too few.
    """
    known = {network.name for network in networks}
    strange = [name for name in labels.networks if name not in known]
    if strange:
        raise ValueError(
            f"labels: {labels.path} has {strange[0]!r}, which is none of the {len(known)} networks"
        )
    if fit is None and split is None:
        raise ValueError("fit: got None, needs a number where there is no split to fit to")
    if draws < 1:
        raise ValueError(f"draws: got {draws}, needs at least 1")
    tables = {name: labels.column(name) for name in names}
    features = architecture_features(
        ghn, networks, num_classes=num_classes, image_size=image_size, on_network=on_network
    )
    order = [network.name for network in networks]
    return [
        _predict_one(name, table, order, features, fit, split, draws, seed, grid)
        for name, table in tables.items()
    ]


def _predict_one(
    label: str,
    table: dict[str, float],
    order: list[str],
    features: dict[str, Array],
    fit: int | None,
    split: str | None,
    draws: int,
    seed: int,
    grid: dict[str, list[Any]] | None,
) -> PropertyReport:
    rows = np.array([i for i, name in enumerate(order) if name in table])
    values = np.array([table[order[i]] for i in rows])
    first = np.array([split is None or order[i].startswith(f"{split}-") for i in rows])
    pool = np.flatnonzero(first)
    count = len(pool) if fit is None else fit
    if not 5 <= count <= len(pool):
        where = "" if split is None else f" of the split {split}"
        raise ValueError(
            f"fit: got {count}, but {len(pool)} architectures{where} have the label {label}; needs "
            "5 or more to fit to"
        )
    report = PropertyReport(label, count, 0)
    for draw in range(draws):
        chosen = np.random.default_rng(seed + draw).permutation(pool)[:count]
        rest = np.setdiff1d(np.arange(len(rows)), chosen if split is None else pool)
        if len(rest) < 2:
            raise ValueError(f"labels: {len(rest)} architectures are left for testing, needs 2")
        report.tested = len(rest)
        for kind in (*FEATURES, COMBINED):
            x = features[kind][rows]
            scale = kind not in ("embeddings", COMBINED)
            model = Regression(scale=scale, grid=grid).fit(x[chosen], values[chosen], seed + draw)
            predicted = model.predict(x[rest])
            report.tau.setdefault(kind, []).append(kendall_tau(predicted, values[rest]))
            if draw == 0 and kind == "embeddings":
                report.truth = values[rest].tolist()
                report.predicted = predicted.tolist()
                report.networks = [order[rows[i]] for i in rest]
    return report
