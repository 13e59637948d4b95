"""Times, percentiles and memory of every case: a class per path and part."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from suite import clock
from suite.cases import GRIDS, Case, Grid

_NAMES = ["backend, device", "hid", "graph", "meta_batch", "dtype", "cache"]
# asv calls setup before every execution; a case stays as it is until its process ends.
_ready: dict[Case, Callable[[], Any]] = {}
_open = ExitStack()
_state: dict[str, Callable[[], float]] = {}
_flush: dict[str, Callable[[], Any]] = {}


def _clock() -> float:
    """Seconds: of the processor for a case on CPU, between events of the stream on a GPU."""
    return _state.get("clock", time.process_time)()


class _Case:
    """One part of one path, with the parameters of its grid."""

    version = "2"
    timer = staticmethod(_clock)
    rounds = 1
    repeat = (5, 20, 0.8)
    sample_time = 0.02
    warmup_time = 0.1
    timeout = 300
    param_names = _NAMES
    grid: Grid
    part: str
    cache = "warm"

    def __init_subclass__(cls, path: str = "", part: str = "call", **only: tuple[Any, ...]) -> None:
        if not path:
            return
        (cls.grid,) = (grid for grid in GRIDS if grid.path == path)
        cls.part, grid = part, cls.grid
        values = [
            [", ".join(target) for target in only.get("targets", grid.targets)],
            list(grid.hid),
            list(grid.graphs),
            list(grid.meta_batches),
            list(grid.dtypes),
            [cls.cache],
        ]
        cls.params = values  # type: ignore[attr-defined]

    def setup(self, target: str, hid: int, graph: str, count: int, dtype: str, cache: str) -> None:
        """Set the case up; one that cannot run on this machine is not available (n/a)."""
        import torch
        from suite.setups import SkippedError, prepared

        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        backend, device = target.split(", ")
        case = Case(
            self.grid.path, self.part, backend, device, hid, graph, count, dtype, cache=cache
        )
        if case not in _ready:
            try:
                run = _open.enter_context(prepared(case))
            except SkippedError as reason:
                raise NotImplementedError(f"skipped: {reason}") from None
            if device == "cuda":
                _state["clock"] = clock.stream_clock()
            run()
            _ready[case] = run
        self.run = _ready[case]
        self.device = device


class _Timed(_Case):
    def time_call(self, *_: Any) -> None:
        """Time of one call."""
        self.run()

    def peakmem_call(self, *_: Any) -> None:
        """Largest memory of the process with the case set up and run."""
        self.run()


class _Cold(_Case):
    """Each call finds the caches full of other data: asv sets up before every one."""

    cache = "cold"
    number = 1
    warmup_time = 0

    def setup(self, target: str, *rest: Any) -> None:
        """Set the case up once, and fill the caches of the device every time."""
        super().setup(target, *rest)
        device = target.split(", ")[1]
        if device not in _flush:
            _flush[device] = clock.flusher(device)
        _flush[device]()

    def time_call(self, *_: Any) -> None:
        """Time of one call."""
        self.run()


class GatedGNNForward(_Timed, path="gated_gnn", part="forward"):
    """Both sweeps."""


class GatedGNNBackward(_Timed, path="gated_gnn", part="backward"):
    """The backward pass alone, of all inputs and weights."""


class ExpandParamsForward(_Timed, path="expand_params", part="forward"):
    """Blocks into the flat buffer."""


class ExpandParamsBackward(_Timed, path="expand_params", part="backward"):
    """The backward pass alone."""


class ExpandParamsForwardCold(_Cold, path="expand_params", part="forward"):
    """Blocks into the flat buffer, with cold caches."""


class ExpandParamsBackwardCold(_Cold, path="expand_params", part="backward"):
    """The backward pass alone, with cold caches."""


class ShortestDistances(_Timed, path="shortest_distances"):
    """Distances up to 50."""


class CollateEdges(_Timed, path="collate_edges"):
    """The edges of a meta-batch in one table."""


class DecodeForward(_Timed, path="decode", part="forward"):
    """Node embeddings into blocks."""


class DecodeBackward(_Timed, path="decode", part="backward"):
    """The backward pass alone, of embeddings and weights."""


class GraphAttentionForward(_Timed, path="graph_attention", part="forward"):
    """Attention within the graphs of a meta-batch."""


class GraphAttentionBackward(_Timed, path="graph_attention", part="backward"):
    """The backward pass alone, of nodes and of the table of biases."""


class DepthwiseConv2dForward(_Timed, path="depthwise_conv2d", part="forward"):
    """One channel per group."""


class DepthwiseConv2dBackward(_Timed, path="depthwise_conv2d", part="backward"):
    """The backward pass alone, of images and weights."""


class BatchNormActForward(_Timed, path="batch_norm_act", part="forward"):
    """Batch normalisation with the ReLU behind it."""


class BatchNormActBackward(_Timed, path="batch_norm_act", part="backward"):
    """The backward pass alone."""


class Capture(_Timed, path="capture"):
    """Network to architecture graph."""


class PredictCold(_Timed, path="predict_cold"):
    """Prediction for a network that has not been seen."""


class PredictWarm(_Timed, path="predict_warm"):
    """Prediction for a network whose structure is known."""


class CompilePlanBuild(_Timed, path="compile_plan", part="build"):
    """Preparing repeated prediction for one network."""


class CompilePlanCall(_Timed, path="compile_plan"):
    """Repeated prediction for one network."""


class PredictLarge(_Timed, path="predict_large"):
    """Prediction for a network of 0.27 billion parameters."""


class Loader(_Timed, path="loader"):
    """A meta-batch of sampled or stored architectures with their graphs."""


class GeneratorRecord(_Timed, path="generator", part="record"):
    """Two architectures sampled and described for a file."""


class GeneratorFile(_Timed, path="generator", part="file"):
    """A packed file of 200 architectures."""


class MetaStep(_Timed, path="meta_step"):
    """One step of meta-training on 8 images; `fresh`: on architectures that were never seen."""


class _Latency(_Case):
    """Percentiles of single calls, on the clock on the wall."""

    CALLS = 200
    unit = "s"

    def _percentile(self, percent: float) -> float:
        times = [clock.seconds(self.run, 1, self.device, wall=True) for _ in range(self.CALLS)]
        return clock.percentile(times, percent)

    def track_p50(self, *_: Any) -> float:
        """Half of the calls take less."""
        return self._percentile(50)

    def track_p95(self, *_: Any) -> float:
        """One call in twenty takes longer."""
        return self._percentile(95)

    def track_p99(self, *_: Any) -> float:
        """One call in a hundred takes longer."""
        return self._percentile(99)


_OWN = (("auto", "cpu"), ("auto", "cuda"))


class PredictColdLatency(_Latency, path="predict_cold", targets=_OWN):
    """Percentiles of prediction for a network that has not been seen."""


class PredictWarmLatency(_Latency, path="predict_warm", targets=_OWN):
    """Percentiles of prediction for a network whose structure is known."""


class CompilePlanLatency(_Latency, path="compile_plan", targets=_OWN):
    """Percentiles of repeated prediction for one network."""


class Memory(_Case, path="predict_large"):
    """Memory that a prediction needs on top of the network, in a process of its own."""

    unit = "of the network's size"

    def track_added_memory(
        self, target: str, hid: int, graph: str, n: int, dtype: str, _: str
    ) -> float:
        """Growth of the process during one prediction, as a part of the network's size."""
        from suite.memory import added_part

        return added_part(dtype)["part"]

    def setup(self, *_: Any) -> None:
        """Nothing is to be set up: another process does."""
