"""Regression from features of architectures to a label, and how well it ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ghn_fast.utils.optional import require

Array = npt.NDArray[np.float64]

# The grid of arXiv 2110.13100, section 4.3, five-fold.
GRID: dict[str, list[Any]] = {
    "C": [1, 10, 50, 100, 200, 500, 1000],
    "gamma": ["auto", 0.05, 0.1, 0.2, 0.5],
    "epsilon": [0.05, 0.1, 0.2],
}
FOLDS = 5


class Regression:
    """Support vector regression with a radial kernel, chosen from the published grid.

    Args:
        scale: Whether features are scaled to mean 0 and variance 1; embeddings need not be.
        grid: Values of ``C``, ``gamma`` and ``epsilon`` that are tried, five-fold.

    Attributes:
        chosen: The values that were chosen.
    """

    def __init__(self, *, scale: bool = True, grid: dict[str, list[Any]] | None = None) -> None:
        self._scale = scale
        self._grid = GRID if grid is None else grid
        self.chosen: dict[str, Any] = {}

    def fit(self, features: Array, labels: Array, seed: int = 0) -> Regression:
        """Fit to features (N, F) and labels (N,).

        Labels are brought to a standard deviation of 10, which the grid's values are made for:
        accuracies in percent.

        Raises:
            ValueError: If there are fewer than five rows, or a value is not finite.
        """
        check_rows(features, labels)
        selection = require("sklearn.model_selection", "studies", "regressions")
        svm = require("sklearn.svm", "studies", "regressions")
        self._mean, spread = features.mean(axis=0), features.std(axis=0)
        self._spread = np.where(spread > 1e-12, spread, 1.0)
        self._centre = labels.mean()
        size = labels.std()
        self._size = 1.0 if size == 0 else size / 10
        x, y = self._scaled(features), (labels - self._centre) / self._size
        folds = selection.KFold(FOLDS, shuffle=True, random_state=seed)
        search = selection.GridSearchCV(
            svm.SVR(max_iter=200_000), self._grid, cv=folds, scoring="neg_mean_squared_error"
        )
        search.fit(x, y)
        self.chosen = dict(search.best_params_)
        self._model = search.best_estimator_
        return self

    def predict(self, features: Array) -> Array:
        """Labels (N,) of features (N, F)."""
        return self._model.predict(self._scaled(features)) * self._size + self._centre

    def _scaled(self, features: Array) -> Array:
        return (features - self._mean) / self._spread if self._scale else features


def check_rows(features: Array, labels: Array) -> None:
    """Refuse what no regression can be fitted to.

    Raises:
        ValueError: If there are fewer than five rows, or a value is not finite.
    """
    if len(features) != len(labels) or len(labels) < FOLDS:
        raise ValueError(
            f"labels: got {len(labels)} for {len(features)} architectures, needs as many and at "
            f"least {FOLDS}"
        )
    if not (np.isfinite(features).all() and np.isfinite(labels).all()):
        raise ValueError("labels, features: got a value that is not finite")


def kendall_tau(predicted: Array, labels: Array) -> float:
    """Kendall's tau-b of two rankings; 0 if one of them is constant.

    Raises:
        ValueError: If there are fewer than two values.
    """
    if len(labels) < 2:
        raise ValueError(f"labels: got {len(labels)} to compare, needs at least 2")
    stats = require("scipy.stats", "studies", "rank correlations")
    tau = float(stats.kendalltau(predicted, labels)[0])
    return 0.0 if np.isnan(tau) else tau
