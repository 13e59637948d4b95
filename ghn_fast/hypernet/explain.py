"""How far a network is from what a hypernetwork was trained on, and what accuracy to expect."""

from __future__ import annotations

import json
import weakref
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ghn_fast.deepnets import SampledNets
from ghn_fast.graph import ArchGraph
from ghn_fast.hypernet.config import GHNConfig

ACCURACIES_FILE = "accuracies.json"
"""Beside a checkpoint: accuracies of predicted networks of a split, as an evaluation found them."""

# Training architectures that stand for the distribution; they are sampled and embedded once.
REFERENCE = 300
# Farther from the centre than this share of training architectures is far.
FAR = 0.99
_NEIGHBOURS = 10
# Graphs that are embedded together.
_BATCH = 16


class Embedder(Protocol):
    """What embeds graphs, of which :class:`ghn_fast.GHN` is one."""

    config: GHNConfig

    def embed(self, model: Any) -> Tensor:
        """Node embeddings."""

    def parameters(self) -> Any:
        """The weights."""


@dataclass(frozen=True)
class Explanation:
    """Where a network stands among the architectures of training.

    Attributes:
        distance: Mahalanobis distance of its mean node embedding from those of training
            architectures; they have one of about the root of the embeddings' length.
        percentile: Share of training architectures, in percent, that are nearer to their centre.
        far: Whether it is outside of what was trained on (nearly all of them are nearer).
        expected_top1: Top-1 accuracy in percent of predicted networks with embeddings near to this
            one's, with batch statistics; ``None`` if the checkpoint says nothing of accuracies.
        deviation: Standard deviation of their accuracies.
        dataset: The image data set that the accuracy is for.
    """

    distance: float
    percentile: float
    far: bool
    expected_top1: float | None = None
    deviation: float | None = None
    dataset: str | None = None

    def __str__(self) -> str:
        place = (
            f"{self.distance:.1f} from the centre of the training architectures, farther out than "
            f"{self.percentile:.0f} % of them"
        )
        if self.far:
            place += ": outside of what was trained on, expect less than from usual networks"
        if self.expected_top1 is None:
            return place
        return (
            f"{place}; networks near to it have {self.expected_top1:.0f} ± {self.deviation:.0f} % "
            f"top-1 on {self.dataset} without training"
        )


@dataclass(frozen=True)
class Reference:
    """What a hypernetwork's training architectures look like to it.

    Attributes:
        mean: Mean embedding (hid,).
        precision: Inverse covariance of the embeddings (hid, hid).
        distances: Mahalanobis distances of the architectures, ascending.
        known: Embeddings of networks with known accuracies (K, hid), and those (K,) in percent.
        dataset: The data set of the accuracies.
    """

    mean: Tensor
    precision: Tensor
    distances: Tensor
    known: tuple[Tensor, Tensor] | None = None
    dataset: str | None = None

    def explain(self, nodes: Tensor) -> Explanation:
        """Where an architecture stands, by its node embeddings (nodes, hid)."""
        x = nodes.mean(dim=0).double().cpu()
        distance = _mahalanobis(x[None], self.mean, self.precision)[0]
        nearer = float((self.distances < distance).double().mean())
        expected = deviation = None
        if self.known is not None:
            rows, accuracies = self.known
            apart = _mahalanobis(rows - x + self.mean, self.mean, self.precision)
            near = accuracies[apart.argsort(stable=True)[:_NEIGHBOURS]]
            expected = float(near.mean())
            deviation = float(near.std()) if len(near) > 1 else 0.0
        return Explanation(
            float(distance), 100 * nearer, nearer >= FAR, expected, deviation, self.dataset
        )


def _mahalanobis(rows: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    apart = rows - mean
    return ((apart @ precision) * apart).sum(dim=1).clamp(min=0).sqrt()


_references: weakref.WeakKeyDictionary[Any, tuple[object, Reference]] = weakref.WeakKeyDictionary()


def reference_of(ghn: Any, accuracies: Path | None = None) -> Reference:
    """The reference of a hypernetwork, made when it is first asked for and when weights change.

    Args:
        ghn: The hypernetwork.
        accuracies: A file of accuracies of predicted networks, see :data:`ACCURACIES_FILE`.

    Raises:
        ValueError: If the file of accuracies is not valid.
    """
    state = accuracies, _checksum(ghn.parameters())
    found = _references.get(ghn)
    if found is not None and found[0] == state:
        return found[1]
    made = _make(ghn, accuracies)
    _references[ghn] = (state, made)
    return made


def _checksum(tensors: Iterable[Tensor]) -> int:
    """A checksum of the bytes: no way of writing weights goes unnoticed."""
    found = 0
    for tensor in tensors:
        data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        found = zlib.crc32(data.numpy().data, found)
    return found


def _make(ghn: Embedder, accuracies: Path | None) -> Reference:
    edges, rules = ghn.config.virtual_edges, ghn.config.graph_rules
    nets = SampledNets("train", REFERENCE, 0, edges, rules=rules)
    rows = _embed(ghn, [nets[i].graph for i in range(len(nets))])
    mean = rows.mean(dim=0)
    covariance = torch.cov(rows.T)
    # A hundredth of the mean variance keeps directions without any from counting without bounds.
    ridge = 0.01 * covariance.diagonal().mean().clamp(min=1e-12)
    precision = torch.linalg.inv(covariance + ridge * torch.eye(len(mean), dtype=torch.float64))
    distances = _mahalanobis(rows, mean, precision).sort().values
    if accuracies is None or not accuracies.is_file():
        return Reference(mean, precision, distances)
    split, seed, dataset, values = _read(accuracies)
    nets = SampledNets(split, len(values), seed, edges, rules=rules)
    kept = [i for i, value in enumerate(values) if value is not None]
    known = _embed(ghn, [nets[i].graph for i in kept])
    top1 = torch.tensor([values[i] for i in kept], dtype=torch.float64)
    return Reference(mean, precision, distances, (known, top1), dataset)


def _embed(ghn: Embedder, graphs: list[ArchGraph]) -> Tensor:
    rows = []
    for start in range(0, len(graphs), _BATCH):
        batch = graphs[start : start + _BATCH]
        nodes = ghn.embed(batch).double().cpu().split([graph.num_nodes for graph in batch])
        rows += [part.mean(dim=0) for part in nodes]
    return torch.stack(rows)


def _read(path: Path) -> tuple[str, int, str, list[float | None]]:
    try:
        data = json.loads(path.read_text())
        values = [None if value is None else float(value) for value in data["top1"]]
        found = (str(data["split"]), int(data["seed"]), str(data["dataset"]), values)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: is no file of accuracies ({error!r})") from error
    if sum(value is not None for value in values) < _NEIGHBOURS:
        raise ValueError(f"{path}: has too few accuracies, needs at least {_NEIGHBOURS}")
    return found
