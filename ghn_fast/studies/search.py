"""Architecture search without training: a stream of architectures is ranked by a hypernetwork."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ghn_fast.deepnets import NetworkConfig, count_parameters
from ghn_fast.graph import ArchGraph
from ghn_fast.hypernet import GHN
from ghn_fast.studies.embeddings import embed_architectures, embed_batches, pool_nodes
from ghn_fast.studies.features import count_flops
from ghn_fast.studies.initialisation import initialise
from ghn_fast.studies.labels import Labels
from ghn_fast.studies.networks import Network
from ghn_fast.studies.regression import Regression
from ghn_fast.studies.sgd import inference_seconds
from ghn_fast.utils.errors import one_line
from ghn_fast.utils.files import write_atomically
from ghn_fast.utils.optional import require
from ghn_fast.vision.batches import eval_batches
from ghn_fast.vision.evaluate import accuracy
from ghn_fast.vision.images import ImageSplits
from ghn_fast.vision.results import check_picture_name

CRITERIA = ("regression", "predicted", "both")


@dataclass
class Candidate:
    """An architecture of a search.

    Attributes:
        name: Its name.
        config: Its configuration.
        parameters: Number of its parameters.
        score: What the regression on embeddings says, ``None`` without one.
        predicted_top1: Accuracy of the network with predicted parameters on validation images, in
            percent, where it was measured.
        flops: Floating-point operations for one image, where they were counted.
        seconds: Seconds for a batch of 64 images, where they were measured.
        rank: What candidates are ordered by; larger is better.
        front: Whether no other candidate has both fewer parameters and a higher ``rank``.
        error: Why its predicted network could not be evaluated, or ``None``.
    """

    name: str
    config: NetworkConfig
    parameters: int
    score: float | None = None
    predicted_top1: float | None = None
    flops: int | None = None
    seconds: float | None = None
    rank: float = 0.0
    front: bool = False
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "config": self.config.to_dict()}


@dataclass(frozen=True)
class Limits:
    """What an architecture may cost; ``None`` is no limit.

    Attributes:
        parameters: Number of parameters.
        flops: Floating-point operations for one image.
        seconds: Seconds for a batch of 64 images on this machine.
    """

    parameters: int | None = None
    flops: int | None = None
    seconds: float | None = None


@dataclass
class SearchReport:
    """What a search found.

    Attributes:
        criterion: What architectures were ranked by.
        seen: Architectures that were looked at.
        within: Those of them within the limit of parameters.
        seconds: Seconds of looking at them; without a regression they are not embedded.
        best: The best candidates, best first.
        failed: Candidates whose predicted networks could not be evaluated.
        cloud: Parameters and score of every architecture within the limit, for the picture.
        finished: Whether the whole stream was looked at.
    """

    criterion: str
    seen: int
    within: int
    seconds: float
    best: list[Candidate]
    failed: list[Candidate]
    cloud: list[tuple[int, float]]
    finished: bool = True

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, without the cloud."""
        data = asdict(self)
        for name in ("best", "failed"):
            data[name] = [candidate.to_dict() for candidate in getattr(self, name)]
        del data["cloud"]
        return data


def fit_scores(
    ghn: GHN,
    networks: Sequence[Network],
    labels: Labels,
    label: str,
    *,
    num_classes: int,
    image_size: int,
) -> Regression:
    """Fit the regression that ranks architectures to a label of others.

    Args:
        ghn: The hypernetwork.
        networks: Networks of the table.
        labels: The table.
        label: The label; more of it is better.
        num_classes: Number of classes.
        image_size: Height and width of the images in pixels.

    Raises:
        ValueError: If there is no such label, or a network of the table is missing.
    """
    known = {network.name: network for network in networks}
    values = labels.column(label)
    strange = [name for name in values if name not in known]
    if strange:
        raise ValueError(f"labels: {labels.path} has {strange[0]!r}, which is none of the networks")
    config = ghn.config
    graphs = [
        known[name].graph(num_classes, image_size, config.virtual_edges, rules=config.graph_rules)
        for name in values
    ]
    features = embed_architectures(ghn, graphs).double().numpy()
    return Regression(scale=False).fit(features, np.array(list(values.values())))


def search_architectures(
    ghn: GHN,
    networks: Iterable[Network],
    *,
    criterion: str = "regression",
    regression: Regression | None = None,
    splits: ImageSplits | None = None,
    num_classes: int = 10,
    image_size: int = 32,
    limits: Limits = Limits(),
    keep: int = 10,
    evaluate: int = 50,
    workers: int = 2,
    stop: threading.Event | None = None,
    on_seen: Callable[[int], None] | None = None,
    on_candidate: Callable[[int, int, Candidate], None] | None = None,
) -> SearchReport:
    """Rank architectures made of cells without training any.

    Those over the limit of parameters are passed over. With ``regression`` the others are embedded,
    and the best ones are those that it scores highest. With ``predicted`` none is embedded: the
    parameters of the first ones of the stream are predicted and the networks evaluated on
    validation images, which takes far longer. ``both`` evaluates the best ones of the regression,
    and orders them by the mean of the two ranks.

    Args:
        ghn: The hypernetwork.
        networks: The stream of architectures.
        criterion: ``regression``, ``predicted`` or ``both``.
        regression: See :func:`fit_scores`; not used by ``predicted``.
        splits: Image data; not needed for ``regression``.
        num_classes: Number of classes.
        image_size: Height and width of the images in pixels.
        limits: What an architecture may cost. FLOPs and seconds are looked at for the best ones
            only, in their order.
        keep: Number of architectures that are returned.
        evaluate: Number of architectures that are evaluated, at least ``keep``.
        workers: Threads that embed.
        stop: When it is set, what has been seen by then is ranked.
        on_seen: Called with the number of architectures seen.
        on_candidate: Called with (done, of all, candidate) for each evaluated one.

    Raises:
        ValueError: If something that the criterion needs is missing, nothing is within the limits,
            no predicted network could be evaluated, or an architecture is not made of cells.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"criterion: got {criterion!r}, needs one of {', '.join(CRITERIA)}")
    if criterion != "predicted" and regression is None:
        raise ValueError(f"labels: the criterion {criterion} needs labels to fit a regression to")
    if criterion != "regression" and splits is None:
        raise ValueError(f"dataset: the criterion {criterion} needs images to evaluate with")
    start = time.perf_counter()
    stream = _Stream(networks, ghn, num_classes, image_size, limits, stop, on_seen)
    candidates = stream.candidates
    if criterion == "predicted":
        for _ in stream:
            pass
    else:
        assert regression is not None  # checked above
        parts = embed_batches(ghn, stream, workers=workers)
        rows = [pool_nodes(nodes).double().numpy() for part in parts for nodes in part]
        scores = regression.predict(np.stack(rows)) if rows else ()
        for candidate, score in zip(candidates, scores, strict=True):
            candidate.score = candidate.rank = float(score)
    seconds = time.perf_counter() - start
    if not candidates:
        raise ValueError(f"limits: none of the {stream.seen} architectures is within them")
    candidates = sorted(candidates, key=lambda c: -c.rank)  # stable: the stream's, without scores
    cloud = [(c.parameters, c.rank) for c in candidates]
    failed: list[Candidate] = []
    wanted = keep if criterion == "regression" else max(keep, evaluate)
    chosen = _within(candidates, limits, num_classes, image_size, wanted)
    if criterion != "regression":
        assert splits is not None  # checked above
        for done, candidate in enumerate(chosen, start=1):
            if stop is not None and stop.is_set() and done > 1:
                break
            try:
                candidate.predicted_top1 = _predicted(ghn, candidate, splits)
            except Exception as error:  # one that fails does not end the search
                candidate.error = one_line(error)
            if on_candidate is not None:
                on_candidate(done, len(chosen), candidate)
        failed = [candidate for candidate in chosen if candidate.error is not None]
        chosen = _order(chosen, criterion)
        if not chosen:
            raise ValueError(f"networks: none could be evaluated, the first one: {failed[0].error}")
    chosen = chosen[:keep]
    _mark_front(chosen)
    finished = stop is None or not stop.is_set()
    return SearchReport(
        criterion, stream.seen, len(candidates), seconds, chosen, failed, cloud, finished
    )


class _Stream:
    """Graphs of the architectures within the limit of parameters, and what they belong to."""

    def __init__(
        self,
        networks: Iterable[Network],
        ghn: GHN,
        num_classes: int,
        image_size: int,
        limits: Limits,
        stop: threading.Event | None,
        on_seen: Callable[[int], None] | None,
    ) -> None:
        self.candidates: list[Candidate] = []
        self.seen = 0
        self._networks, self._sizes = networks, (num_classes, image_size)
        self._config, self._limits = ghn.config, limits
        self._stop, self._on_seen = stop, on_seen

    def __iter__(self) -> Iterator[Callable[[], ArchGraph]]:
        for network in self._networks:
            if self._stop is not None and self._stop.is_set():
                return
            if network.config is None:
                raise ValueError(f"networks: {network.name} is not made of cells")
            self.seen += 1
            if self._on_seen is not None:
                self._on_seen(self.seen)
            parameters = count_parameters(network.config, *self._sizes)
            most = self._limits.parameters
            if most is not None and parameters > most:
                continue
            self.candidates.append(Candidate(network.name, network.config, parameters))
            yield partial(
                network.graph,
                *self._sizes,
                self._config.virtual_edges,
                rules=self._config.graph_rules,
            )


def _within(
    candidates: Sequence[Candidate], limits: Limits, num_classes: int, image_size: int, count: int
) -> list[Candidate]:
    """The first candidates within the limits that take a network to measure."""
    found = []
    for candidate in candidates:
        model = Network(candidate.name, candidate.config).build(num_classes, image_size)
        candidate.flops = count_flops(model, image_size)
        if limits.flops is not None and candidate.flops > limits.flops:
            continue
        if limits.seconds is not None:
            candidate.seconds = inference_seconds(model, image_size)
            if candidate.seconds > limits.seconds:
                continue
        found.append(candidate)
        if len(found) == count:
            break
    if not found:
        raise ValueError(f"limits: none of {len(candidates)} architectures is within them")
    return found


def _predicted(ghn: GHN, candidate: Candidate, splits: ImageSplits) -> float:
    from ghn_fast.hypernet.batch_statistics import use_batch_statistics

    network = Network(candidate.name, candidate.config)
    model = initialise(
        network, "predicted", splits.num_classes, splits.image_size, ghn=ghn, device=ghn.device
    )
    use_batch_statistics(model)
    return accuracy(model, eval_batches(splits.val, splits, 64, device=ghn.device)).top1


def _order(candidates: list[Candidate], criterion: str) -> list[Candidate]:
    measured = [c for c in candidates if c.predicted_top1 is not None]
    for candidate in measured:
        candidate.rank = candidate.predicted_top1 or 0.0
    if criterion == "both":
        places: dict[str, float] = {c.name: 0.0 for c in measured}
        for key in ("score", "predicted_top1"):
            ordered = sorted(measured, key=lambda c, k=key: getattr(c, k))  # type: ignore[misc]
            for place, candidate in enumerate(ordered):
                places[candidate.name] += place / (2 * max(len(measured) - 1, 1))
        for candidate in measured:
            candidate.rank = places[candidate.name]
    return sorted(measured, key=lambda c: -c.rank)


def _mark_front(candidates: Sequence[Candidate]) -> None:
    for one in candidates:
        one.front = not any(
            other.parameters <= one.parameters and other.rank > one.rank for other in candidates
        )


def write_genotypes(report: SearchReport, folder: str | Path) -> list[Path]:
    """Write the best architectures, each into a file that every command takes as a network.

    Args:
        report: What the search found.
        folder: Where the files go, ``best-01-search-123.json`` and so on.

    Returns:
        The files, best first.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for place, candidate in enumerate(report.best, start=1):
        path = folder / f"best-{place:02d}-{candidate.name}.json"
        write_atomically(path, json.dumps(candidate.config.to_dict()) + "\n")
        paths.append(path)
    return paths


def draw_search(report: SearchReport, path: str | Path, label: str = "score") -> None:
    """Draw parameters against score: all architectures, the best ones, and the Pareto front.

    Args:
        report: What the search found.
        path: The picture: .png, .svg or .pdf.
        label: What the score is.
    """
    Figure = require("matplotlib.figure", "drawing", "pictures").Figure

    from ghn_fast.studies.curves import COLOURS

    path = check_picture_name(path)
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    if report.criterion == "regression":
        step = max(1, len(report.cloud) // 4000)
        xs, ys = zip(*report.cloud[::step], strict=True)
        axes.scatter(xs, ys, s=4, color="0.75", label=f"{report.within:,} architectures")
    xs, ys = zip(*((c.parameters, c.rank) for c in report.best), strict=True)
    axes.scatter(xs, ys, s=22, color=COLOURS[0], label=f"best {len(report.best)}")
    xs, ys = zip(*sorted((c.parameters, c.rank) for c in report.best if c.front), strict=True)
    axes.plot(xs, ys, color=COLOURS[1], linewidth=1.4, label="Pareto front")
    axes.set_xscale("log")
    axes.set_xlabel("parameters")
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
