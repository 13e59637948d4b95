"""Ranking the cells of NAS-Bench-201: embeddings against counts and zero-cost proxies."""

from __future__ import annotations

import csv
import gzip
import lzma
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ghn_fast.hypernet import GHN
from ghn_fast.studies.embeddings import embed_batches
from ghn_fast.studies.nasbench201 import (
    OUTSIDE,
    Cell,
    CellNetwork,
    alive_edges,
    cell_counts,
    cell_graph,
    parse_cell,
)
from ghn_fast.studies.regression import Array, kendall_tau
from ghn_fast.utils.optional import require
from ghn_fast.vision.augment import seeded_generator
from ghn_fast.vision.batches import eval_batches
from ghn_fast.vision.evaluate import accuracy
from ghn_fast.vision.images import ImageSplits

# Random forests on 500 and 128 labels, Kendall's tau of accuracy (GRAF, zc_combine).
PUBLISHED = {
    "operations": {500: 0.680, 128: 0.647},
    "counts and paths": {500: 0.830, 128: 0.784},
    "proxies": {500: 0.798, 128: 0.766},
}
EMBEDDINGS, ORDERED = "embeddings, mean", "embeddings, node by node"
COUNTS, BOTH = "counts and paths", "node by node, counts and paths"
ALL = "node by node, counts and paths, proxies"
METHODS = (EMBEDDINGS, ORDERED, "operations", COUNTS, BOTH, "proxies", ALL)
FORESTS = ("operations", COUNTS, "proxies")
"""Methods that are random forests, as published; the others are support vector regressions."""
_AVERAGED = {BOTH: (ORDERED, COUNTS), ALL: (ORDERED, COUNTS, "proxies")}

_TABLES = ("accuracy", "zero_cost_proxies", "hardware", "robustness")
_NOT_PROXIES = ("net", "net_str")
# Cosines of random projections that stand for a kernel on nodes, for each of its widths.
_COSINES, _WIDTHS = 300, (0.03, 0.1)


@dataclass
class CellTables:
    """Cells with what is known of them.

    Attributes:
        cells: The cells.
        targets: Name of each target to its values, NaN where one is missing.
        proxies: Zero-cost proxies (cells, P), and their names.
        proxy_names: Names of the proxies.
    """

    cells: list[Cell]
    targets: dict[str, Array]
    proxies: Array
    proxy_names: list[str]


def read_cell_tables(folder: str | Path) -> CellTables:
    """Read the tables of a folder: accuracy and what else there is.

    Args:
        folder: Holds ``accuracy.csv`` (columns ``net`` and ``val_accs``) and perhaps
            ``zero_cost_proxies.csv``, ``hardware.csv`` and ``robustness.csv``, each as it is or
            compressed (``.xz``, ``.gz``). Cells whose input does not reach their output are left
            out.

    Raises:
        FileNotFoundError: If there is no table of accuracies.
        ValueError: If a table is not valid; the message names it.
    """
    folder = Path(folder)
    tables = {name: _read(folder, name) for name in _TABLES}
    if not tables["accuracy"]:
        raise FileNotFoundError(f"tables: no accuracy.csv, .csv.xz or .csv.gz in {folder}")
    cells, rows = [], []
    for key, row in tables["accuracy"].items():
        try:
            alive_edges(key)
        except ValueError:
            continue
        cells.append(key)
        rows.append(row)
    if not cells:
        raise ValueError(f"{folder}: accuracy.csv holds no cells")
    if "val_accs" not in rows[0]:
        raise ValueError(f"{folder}: accuracy.csv has no column val_accs")
    targets = {"accuracy": np.array([_number(row["val_accs"]) for row in rows])}
    for name in ("hardware", "robustness"):
        table = tables[name]
        first = next(iter(table.values()), {})
        for column in first:
            if column not in ("net", "val_accs"):
                targets[column] = np.array(
                    [
                        _number(table[cell].get(column)) if cell in table else np.nan
                        for cell in cells
                    ]
                )
    proxies = tables["zero_cost_proxies"]
    names = [n for n in next(iter(proxies.values()), {}) if n not in _NOT_PROXIES]
    values = [
        [_number(proxies[c].get(n)) if c in proxies else np.nan for n in names] for c in cells
    ]
    return CellTables(cells, targets, np.array(values).reshape(len(cells), len(names)), names)


def _read(folder: Path, name: str) -> dict[Cell, dict[str, str]]:
    for suffix, opener in ((".csv", open), (".csv.xz", lzma.open), (".csv.gz", gzip.open)):
        path = folder / f"{name}{suffix}"
        if path.is_file():
            try:
                with opener(path, "rt") as file:  # type: ignore[operator]
                    rows = list(csv.DictReader(file))
                return {parse_cell(row["net"]): row for row in rows}
            except (OSError, EOFError, lzma.LZMAError, csv.Error, KeyError, ValueError) as error:
                raise ValueError(f"{path}: is no table of cells ({error!r})") from error
    return {}


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


@dataclass
class CellEmbeddings:
    """Embeddings of cells.

    Attributes:
        mean: Mean over all nodes, (cells, hid).
        ordered: Sum over the nodes of the cells of random cosines of their embeddings, which
            stands for a kernel that compares cells node by node, (cells, F).
        seconds: How long it took, graphs included.
    """

    mean: Array
    ordered: Array
    seconds: float


def embed_cells(
    ghn: GHN,
    cells: Sequence[Cell],
    *,
    repeats: int = 1,
    workers: int = 2,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> CellEmbeddings:
    """Embed the networks of cells, in two ways.

    The mean over nodes is what arXiv 2110.13100 uses. It forgets which embedding goes with which
    node. The second way keeps that: the embedding x of each node inside a cell becomes cosines of
    random projections, ``cos(W x + b)`` (random Fourier features), and these are added up; inner
    products of the sums are then sums of a Gaussian kernel over all pairs of nodes of two cells.

    Args:
        ghn: The hypernetwork.
        cells: The cells.
        repeats: Cells of a stage in the network that is embedded; NAS-Bench-201 trains 5, and 1 has
            the same structure in a third of the nodes.
        workers: Threads.
        seed: Seed of the projections.
        on_batch: Called with the number of cells that are done.

    Raises:
        ValueError: If there are no cells, or one's input does not reach its output.
    """
    if not cells:
        raise ValueError("cells: got none, needs at least one")
    start = time.perf_counter()
    made = {}

    def graph(index: int) -> Any:
        found = cell_graph(
            cells[index],
            num_classes=ghn.config.num_classes,
            cells=repeats,
            virtual_edges=ghn.config.virtual_edges,
            rules=ghn.config.graph_rules,
        )
        made[index] = found.places < OUTSIDE
        return found.graph

    means: list[Tensor] = []
    inner: list[Tensor] = []
    owners: list[Tensor] = []
    for part in embed_batches(
        ghn, [partial(graph, index) for index in range(len(cells))], workers=workers
    ):
        for nodes in part:
            index = len(means)
            inside = nodes[made.pop(index)]
            means.append(nodes.mean(dim=0))
            inner.append(inside)
            owners.append(torch.full((len(inside),), index))
        if on_batch is not None:
            on_batch(len(means))
    ordered = _cosines(torch.cat(inner), torch.cat(owners), len(cells), seed)
    mean = torch.stack(means).double().numpy()
    return CellEmbeddings(mean, ordered.double().numpy(), time.perf_counter() - start)


def zero_shot(
    ghn: GHN,
    tables: CellTables,
    splits: ImageSplits,
    count: int,
    *,
    targets: Sequence[str] = ("accuracy",),
    repeats: int = 1,
    seed: int = 0,
    stop: threading.Event | None = None,
    on_cell: Callable[[int], None] | None = None,
) -> list[ZeroShot]:
    """Rank cells by the accuracy of networks with predicted parameters: no labels, no training.

    Args:
        ghn: The hypernetwork.
        tables: The cells.
        splits: The image data set; validation images are classified, with batch statistics.
        count: Number of cells, drawn at random from those that have all targets.
        targets: What they are ranked for, each with the same predictions.
        repeats: Cells of a stage in the network that is predicted.
        seed: Seed of the draw.
        stop: When it is set, the cells that are done count.
        on_cell: Called with the number of cells that are done.

    Returns:
        One for each target.

    Raises:
        ValueError: If there are fewer cells, a target is unknown, or the data set has other
            classes than the hypernetwork.
    """
    if splits.num_classes != ghn.config.num_classes:
        raise ValueError(
            f"dataset: {splits.name} has {splits.num_classes} classes, but the hypernetwork "
            f"predicts classifiers of {ghn.config.num_classes}"
        )
    _check_targets(tables, targets)
    finite = [np.isfinite(tables.targets[target]) for target in targets]
    known = np.flatnonzero(np.all(finite, axis=0))
    if not 2 <= count <= len(known):
        raise ValueError(f"predicted: got {count}, needs 2 to {len(known)} cells")
    chosen = np.random.default_rng(seed).permutation(known)[:count]
    scores: list[float] = []
    for index in chosen:
        if stop is not None and stop.is_set():
            break
        cell = tables.cells[int(index)]
        model = CellNetwork(cell, splits.num_classes, cells=repeats).to(ghn.device)
        made = cell_graph(
            cell,
            num_classes=splits.num_classes,
            cells=repeats,
            virtual_edges=ghn.config.virtual_edges,
            rules=ghn.config.graph_rules,
        )
        ghn.predict(model, made.graph)
        batches = eval_batches(splits.val, splits, 64, device=ghn.device)
        scores.append(accuracy(model, batches, device=ghn.device).top1)
        if on_cell is not None:
            on_cell(len(scores))
    found = []
    for target in targets:
        truth = tables.targets[target][chosen[: len(scores)]]
        tau = kendall_tau(np.array(scores), truth) if len(scores) > 1 else 0.0
        found.append(ZeroShot(target, len(scores), tau, splits.name, scores, truth.tolist()))
    return found


@dataclass
class ZeroShot:
    """Cells ranked by the accuracy of their predicted networks.

    Attributes:
        target: What they are ranked for.
        cells: Number of cells.
        tau: Kendall's tau.
        dataset: Name of the data set whose images were classified.
        predicted: Top-1 accuracy of each predicted network in percent.
        truth: The target of each.
    """

    target: str
    cells: int
    tau: float
    dataset: str
    predicted: list[float]
    truth: list[float]


def _cosines(nodes: Tensor, owners: Tensor, count: int, seed: int) -> Tensor:
    generator = seeded_generator("cosines", seed)
    nodes = (nodes - nodes.mean(dim=0)) / nodes.std(dim=0).clamp(min=1e-6)
    parts = []
    for width in _WIDTHS:
        weights = torch.randn((nodes.shape[1], _COSINES), generator=generator)
        phases = 2 * torch.pi * torch.rand(_COSINES, generator=generator)
        total = torch.zeros(count, _COSINES)
        # In pieces, so that the cosines of all nodes are never there at once.
        for rows, whose in zip(nodes.split(1 << 14), owners.split(1 << 14), strict=True):
            total.index_add_(0, whose, torch.cos(rows @ weights * (2 * width) ** 0.5 + phases))
        parts.append(total)
    return torch.cat(parts, dim=1)


@dataclass
class BenchRow:
    """How well a method ranks a target.

    Attributes:
        target: What is ranked.
        method: The features.
        labels: Number of labelled cells.
        tau: Kendall's tau on all other cells, for each draw.
        best: Likewise among the tenth of the other cells with the highest true values.
    """

    target: str
    method: str
    labels: int
    tau: list[float] = field(default_factory=list)
    best: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def bench_cells(
    tables: CellTables,
    embeddings: CellEmbeddings,
    *,
    targets: Sequence[str] = ("accuracy",),
    labels: Sequence[int] = (500, 128),
    draws: int = 8,
    seed: int = 0,
    methods: Sequence[str] = METHODS,
    on_fit: Callable[[int, int], None] | None = None,
) -> list[BenchRow]:
    """Rank cells from a number of labelled ones, by several methods.

    Embeddings go into support vector regressions on ranks; operations, counts and paths, and
    proxies into random forests, as published. Methods that have several of them average their
    ranks.

    Args:
        tables: The cells and what is known of them.
        embeddings: Their embeddings.
        targets: What is ranked.
        labels: Numbers of labelled cells.
        draws: Draws of labelled cells.
        seed: Seed of the draws.
        methods: The methods.
        on_fit: Called with (fits done, of all).

    Raises:
        ValueError: If a target or method is unknown, or there are too few cells.
    """
    _check_targets(tables, targets)
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"method: got {method!r}, needs one of {', '.join(METHODS)}")
    if draws < 1:
        raise ValueError(f"draws: got {draws}, needs at least 1")
    operations, paths = (part.numpy() for part in cell_counts(tables.cells))
    features = {
        EMBEDDINGS: embeddings.mean,
        ORDERED: embeddings.ordered,
        "operations": operations,
        COUNTS: np.concatenate([operations, paths], axis=1),
        "proxies": np.nan_to_num(tables.proxies, posinf=0.0, neginf=0.0),
    }
    needs = ("proxies", ALL)
    chosen = [m for m in methods if m not in needs or tables.proxies.shape[1]]
    rows: list[BenchRow] = []
    done = 0
    total = len(targets) * len(labels) * len(chosen) * draws
    for target in targets:
        known = np.flatnonzero(np.isfinite(tables.targets[target]))
        y = tables.targets[target]
        for count in labels:
            if not 8 <= count <= len(known) - 20:
                raise ValueError(
                    f"labels: got {count}, but {len(known)} cells have the target {target}; needs "
                    f"8 to {len(known) - 20}"
                )
            found = {method: BenchRow(target, method, count) for method in chosen}
            for draw in range(draws):
                order = np.random.default_rng(seed + draw).permutation(known)
                fitted, rest = order[:count], order[count:]
                predicted: dict[str, Array] = {}

                def rank(
                    method: str, f: Array = fitted, r: Array = rest,
                    known: dict[str, Array] = predicted, draw: int = draw, y: Array = y,
                ) -> Array:  # fmt: skip
                    if method not in known:
                        if method in _AVERAGED:
                            parts = [_ranks(rank(part)) for part in _AVERAGED[method]]
                            known[method] = np.sum(parts, axis=0)
                        else:
                            x = features[method]
                            known[method] = _fit(method, x[f], y[f], x[r], seed + draw)
                    return known[method]

                top = rest[np.argsort(-y[rest], kind="stable")[: max(2, len(rest) // 10)]]
                among = np.isin(rest, top)
                for method in chosen:
                    score = rank(method)
                    found[method].tau.append(kendall_tau(score, y[rest]))
                    found[method].best.append(kendall_tau(score[among], y[rest][among]))
                    done += 1
                    if on_fit is not None:
                        on_fit(done, total)
            rows += found.values()
    return rows


def _check_targets(tables: CellTables, targets: Sequence[str]) -> None:
    if not targets:
        raise ValueError("targets: got none, needs at least one")
    for target in targets:
        if target not in tables.targets:
            raise ValueError(f"target: got {target!r}, needs one of {', '.join(tables.targets)}")


def _ranks(values: Array) -> Array:
    """Ranks between 0 and 1; equal values share their mean rank."""
    stats = require("scipy.stats", "studies", "rank correlations")
    return stats.rankdata(values) / max(len(values), 1)


def _fit(method: str, x: Array, y: Array, others: Array, seed: int) -> Array:
    ensemble, selection, svm = (
        require(f"sklearn.{part}", "studies", "regressions")
        for part in ("ensemble", "model_selection", "svm")
    )
    if method in FORESTS:
        forest = ensemble.RandomForestRegressor(100, random_state=seed).fit(x, y)
        return forest.predict(others)
    spread = x.std(axis=0)
    scale = np.where(spread > 1e-9, spread, np.inf) * np.sqrt(max((spread > 1e-9).sum(), 1))
    centre = x.mean(axis=0)
    folds = selection.KFold(5, shuffle=True, random_state=seed)
    grid = {"C": [3, 10, 30], "gamma": [0.1, 0.3, 1.0]}
    search = selection.GridSearchCV(
        svm.SVR(epsilon=0.02), grid, cv=folds, scoring=_tau_score, error_score="raise"
    )
    search.fit((x - centre) / scale, _ranks(y))
    return search.predict((others - centre) / scale)


def _tau_score(model: Any, x: Array, y: Array) -> float:
    return kendall_tau(model.predict(x), y)
