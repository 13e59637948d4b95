"""Repeated prediction for one network, of which all that can be is done once."""

from __future__ import annotations

import threading
import warnings
from operator import is_
from typing import Any

import torch
from torch import nn

from ghn_fast.graph.arch_graph import ArchGraph
from ghn_fast.hypernet.bind import Destinations, finish
from ghn_fast.hypernet.named import named_modules
from ghn_fast.hypernet.pipeline import Hypernetwork, predict, prepare
from ghn_fast.hypernet.report import Clock, PredictionReport
from ghn_fast.hypernet.withheld import check_frozen


class Predictor:
    """Predicts the parameters of one network again and again, as the hypernetwork changes.

    Made by :meth:`GHN.compile_plan`. A call predicts with the weights that the hypernetwork has
    then, and does nothing else: the graph is prepared and the network's parameters are found once.
    Between two calls

    - the network may move to another device or dtype, and the hypernetwork to another device;
    - parameters and layers may be replaced by others of the same names and shapes; they are then
      looked up again, and those that no longer have a name that the graph predicts are in
      ``report.skipped``;
    - anything else that changes what the network computes is not seen, since its graph is not
      captured again.

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
        ghn: Hypernetwork,
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
        self._cuda_graph = cuda_graph
        self._lock = threading.Lock()
        self._prepare()
        self._find()
        found = self._destinations
        self.report = PredictionReport(
            list(found.predicted),
            dict(found.skipped),
            partial=graph.partial,
            warnings=list(graph.notes),
        )

    def __call__(self) -> PredictionReport:
        """Fill the parameters of the network in place.

        Returns:
            The report, as of :meth:`GHN.predict`, without the stage ``capture``.

        Raises:
            ValueError: If a parameter was replaced by one with another number of elements.
        """
        clock = Clock()
        with self._lock:
            if self._ghn.device != self._device:
                self._prepare()
            if not self._snapshot.is_current():
                self._find()
            clock.lap("bind")
            if self._can_replay() and self._replayed():
                clock.lap("expand")
                statistics = self.batch_statistics
                self.report = finish(self._destinations, clock, batch_statistics=statistics)
            else:
                self.report = self._predict(clock, self.batch_statistics)
            return self.report

    def _prepare(self) -> None:
        """Prepare the graph for the device that the hypernetwork is on."""
        self._device = self._ghn.device
        self._prepared = prepare(self._ghn, [self.graph], head=self.head)
        self._replay: tuple[_Places, torch.cuda.CUDAGraph] | None = None

    def _find(self) -> None:
        """Find where predictions go, for as long as the network holds the same parameters."""
        self._snapshot = _Snapshot(self.model)
        self._destinations: Destinations = self._prepared.destinations(
            self.model, None, self.frozen
        )

    def _predict(self, clock: Clock, batch_statistics: bool) -> PredictionReport:
        return predict(
            self._ghn,
            self._prepared,
            self._destinations,
            clock,
            batch_statistics=batch_statistics,
        )

    def _can_replay(self) -> bool:
        return (
            self._cuda_graph
            and self._device.type == "cuda"
            and all(t is None or t.device == self._device for t in self._destinations.tensors)
        )

    def _replayed(self) -> bool:
        """Whether the CUDA graph was replayed; one that cannot be recorded is not tried again."""
        try:
            self._replay_cuda_graph()
        except torch.OutOfMemoryError:
            return False
        except RuntimeError as error:
            self._cuda_graph = False
            warnings.warn(
                "prediction cannot be recorded as a CUDA graph, and runs without: "
                f"{' '.join(str(error).split())[:300]}",
                RuntimeWarning,
                stacklevel=3,
            )
            return False
        return True

    def _replay_cuda_graph(self) -> None:
        # Where and how tensors lie is part of a CUDA graph; it is recorded again when that changes.
        tensors = [*self._ghn.parameters(), *self._destinations.tensors]
        places = tuple(
            (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            for tensor in tensors
            if tensor is not None
        )
        if self._replay is None or self._replay[0] != places:
            self._replay = None
            with torch.cuda.device(self._device):
                self._replay = places, self._record_cuda_graph()
        self._replay[1].replay()

    def _record_cuda_graph(self) -> torch.cuda.CUDAGraph:
        stream, main = torch.cuda.Stream(self._device), torch.cuda.current_stream(self._device)
        stream.wait_stream(main)
        with torch.cuda.stream(stream):
            # Allocations, lazy initialisation and copies of plans are over after the first.
            for _ in range(2):
                self._predict(Clock(), batch_statistics=False)
        main.wait_stream(stream)
        recorded = torch.cuda.CUDAGraph()
        try:
            # Other threads may go on with what a capture forbids, such as pinning memory.
            with torch.cuda.graph(recorded, stream=stream, capture_error_mode="thread_local"):
                self._predict(Clock(), batch_statistics=False)
        finally:
            # torch 2.11 leaves its stream current where a capture fails at its end.
            torch.cuda.set_stream(main)
        return recorded


_Places = tuple[tuple[int, torch.dtype, torch.Size, tuple[int, ...]], ...]


class _Snapshot:
    """The modules and parameters that a network has, to see quickly whether it still has them."""

    def __init__(self, model: nn.Module) -> None:
        modules = [module for _, module in named_modules(model)]
        # Dicts that are empty, those of layers without parameters, are most of them.
        self._registered = [d for m in modules for d in (m._modules, m._parameters) if d]
        self._parameters = [p for m in modules for p in m._parameters.values() if p is not None]
        self._then, self._flags = self._now()

    def is_current(self) -> bool:
        """Whether names, modules and parameters are the same objects, as frozen as they were."""
        now, flags = self._now()
        return (
            len(now) == len(self._then) and all(map(is_, now, self._then)) and flags == self._flags
        )

    def _now(self) -> tuple[list[Any], list[tuple[bool, bool]]]:
        found: list[Any] = []
        for registered in self._registered:
            found += registered
            found += registered.values()
        return found, [(p.is_meta, p.requires_grad) for p in self._parameters]
