"""Prediction for one network: what depends on its structure alone is made once.

The way through the house (graph, batch, encode, propagate, decode, expand) with everything that
follows from the architecture graph prepared: indices of the embeddings, level schedule, shape
groups, the table of where each parameter goes.
"""

from __future__ import annotations

import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ghn_fast.graph.arch_graph import ArchGraph
from ghn_fast.graph.batch import GraphBatch
from ghn_fast.hypernet.batch_statistics import use_batch_statistics
from ghn_fast.hypernet.bind import (
    Binding,
    PredictionReport,
    check_frozen,
    find_destinations,
    keep_frozen,
)
from ghn_fast.hypernet.config import GHNConfig
from ghn_fast.hypernet.expand import decode, plan_decoding
from ghn_fast.ops.expand_params import expand_params_into

if TYPE_CHECKING:
    from ghn_fast.hypernet.ghn import GHN


class Prepared:
    """What a prediction needs of an architecture graph, on the device of a hypernetwork.

    Args:
        ghn: The hypernetwork; its configuration and device count, its weights do not.
        graph: The graph.
        head: Whether the classifier's own heads predict weight and bias at the graph's end.
    """

    def __init__(self, ghn: GHN, graph: ArchGraph, head: bool) -> None:
        self.batch = GraphBatch([graph]).to(ghn.device)
        self.shapes = ghn.encoder.shape_index(graph.shapes).to(ghn.device)
        self.plan = plan_decoding([graph], ghn.config, head=head)
        self.names = tuple(self.plan.ranges[0])
        # Where predictions go in networks of the graph's structure; set by the first prediction.
        self.binding: Binding | None = None


# By graph, for graphs that nobody changes; entries go when their graph goes.
_prepared: weakref.WeakKeyDictionary[ArchGraph, dict[tuple[Any, ...], Prepared]]
_prepared = weakref.WeakKeyDictionary()
_lock = threading.Lock()
# Different hypernetworks, devices and heads for which one graph is kept prepared.
_MOST_PREPARED = 4


def prepare(ghn: GHN, graph: ArchGraph, head: bool, *, keep: bool) -> Prepared:
    """Prepare a graph for a hypernetwork, or find it prepared.

    Args:
        ghn, graph, head: See :class:`Prepared`.
        keep: Whether the graph is known not to change, so that the result can be kept.
    """
    if not keep:
        return Prepared(ghn, graph, head)
    config: GHNConfig = ghn.config
    key = (config, str(ghn.device), head)
    with _lock:
        found = _prepared.get(graph, {}).get(key)
    if found is None:
        found = Prepared(ghn, graph, head)
        with _lock:
            entries = _prepared.setdefault(graph, {})
            while len(entries) >= _MOST_PREPARED:
                entries.pop(next(iter(entries)))
            entries[key] = found
    return found


class Clock:
    """Adds the seconds since the last lap to a record."""

    def __init__(self, record: dict[str, float]) -> None:
        self.record = record
        self.last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """End a stage."""
        now = time.perf_counter()
        self.record[stage] = self.record.get(stage, 0.0) + now - self.last
        self.last = now


def run_prepared(ghn: GHN, prepared: Prepared, out: list[Tensor | None], clock: Clock) -> None:
    """Predict and write into the destinations, one for each name of ``prepared``."""
    with torch.no_grad():
        x = ghn.encoder(prepared.batch.op_types, prepared.shapes)
        clock.lap("encode")
        x = ghn.norm(ghn.propagator(x, prepared.batch))
        clock.lap("propagate")
        blocks = decode(x, prepared.plan, ghn.blocks, ghn.vectors)
        clock.lap("decode")
        expand_params_into(blocks, prepared.plan.params, out)
        clock.lap("expand")


class Predictor:
    """Predicts the parameters of one network again and again, as the hypernetwork changes.

    Made by :meth:`GHN.compile_plan`. A call predicts with the weights that the hypernetwork has
    then. The network may move to another device or type, or get new parameter tensors of the same
    shapes; changes of its structure are not seen.

    On a GPU, with hypernetwork and network on one device, a call replays a CUDA graph: one launch
    from the host instead of some fifty (compiled and not yet run on a GPU).

    Args:
        ghn: The hypernetwork.
        model: The network.
        graph: Its architecture graph.
        batch_statistics, head, frozen: As in :meth:`GHN.predict`.
        cuda_graph: Whether to replay a CUDA graph where that is possible.

    Attributes:
        report: What the last call did; before the first, what will be predicted and skipped.
    """

    def __init__(
        self,
        ghn: GHN,
        model: nn.Module,
        graph: ArchGraph,
        *,
        batch_statistics: bool = True,
        head: bool = True,
        frozen: str = "keep",
        cuda_graph: bool = True,
    ) -> None:
        check_frozen(frozen)
        self.model = model
        self.graph = graph
        self.batch_statistics = batch_statistics
        self.head = head
        self.frozen = frozen
        self._ghn = ghn
        self._prepared = prepare(ghn, graph, head, keep=False)
        self._device = ghn.device
        self._cuda_graph = cuda_graph
        self._replay: tuple[tuple[int, ...], torch.cuda.CUDAGraph] | None = None
        self._lock = threading.Lock()
        self.report = PredictionReport()
        self._destinations(self.report)

    def __call__(self) -> PredictionReport:
        """Fill the parameters of the network in place.

        Returns:
            The report, as of :meth:`GHN.predict`, without the stage ``capture``.
        """
        report = PredictionReport()
        clock = Clock(report.seconds)
        with self._lock:
            if self._ghn.device != self._device:
                self._prepared = prepare(self._ghn, self.graph, self.head, keep=False)
                self._device = self._ghn.device
                self._replay = None
            out = self._destinations(report)
            clock.lap("bind")
            if self._can_replay(out):
                self._run_graph(out)
                clock.lap("expand")
            else:
                run_prepared(self._ghn, self._prepared, out, clock)
        if self.batch_statistics:
            report.batch_statistics = use_batch_statistics(self.model)
        clock.lap("bind")
        report.seconds["total"] = sum(report.seconds.values())
        self.report = report
        return report

    def _destinations(self, report: PredictionReport) -> list[Tensor | None]:
        out = find_destinations(self.model, self.graph, self._prepared.names, report)
        explain_head(self.graph, self.head, report)
        report.warnings = list(self.graph.notes)
        if self.frozen == "keep":
            keep_frozen(self.model, out, report)
        return out

    def _can_replay(self, out: list[Tensor | None]) -> bool:
        return (
            self._cuda_graph
            and self._device.type == "cuda"
            and all(tensor is None or tensor.device == self._device for tensor in out)
        )

    def _run_graph(self, out: list[Tensor | None]) -> None:
        # Addresses are part of a CUDA graph; it is recorded again when one has changed.
        tensors = [*self._ghn.parameters(), *(tensor for tensor in out if tensor is not None)]
        addresses = tuple(tensor.data_ptr() for tensor in tensors)
        if self._replay is None or self._replay[0] != addresses:
            self._replay = None
            clock = Clock({})
            stream = torch.cuda.Stream(self._device)
            stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(stream):
                # Allocations, lazy initialisation and copies of plans are over after the first.
                for _ in range(2):
                    run_prepared(self._ghn, self._prepared, out, clock)
            torch.cuda.current_stream(self._device).wait_stream(stream)
            recorded = torch.cuda.CUDAGraph()
            with torch.cuda.graph(recorded, stream=stream):
                run_prepared(self._ghn, self._prepared, out, clock)
            self._replay = (addresses, recorded)
        self._replay[1].replay()


def explain_head(graph: ArchGraph, head: bool, report: PredictionReport) -> None:
    """Say of the classifier that it was left out on request."""
    if head:
        return
    for target in graph.targets:
        if target.head and target.name in report.skipped:
            report.skipped[target.name] = "the classifier was not asked for (head=False)"
