"""One step of meta-training: predict, run the candidate networks, update the hypernetwork."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ghn_fast.graph.arch_graph import ArchGraph
from ghn_fast.hypernet.ghn import GHN
from ghn_fast.metatrain.candidate_run import (
    REASONS,
    Ranges,
    Status,
    is_out_of_memory,
    region_of,
)
from ghn_fast.metatrain.costs import CostModel, features, spread
from ghn_fast.metatrain.executor import Executor, Outcome
from ghn_fast.metatrain.gradients import GradientBuffer
from ghn_fast.metatrain.loss_scale import LossScale
from ghn_fast.metatrain.network_gradients import NetworkGradients
from ghn_fast.metatrain.norm_penalty import add_norm_penalty
from ghn_fast.utils import distributed
from ghn_fast.utils.seeds import derive_seed

HYPERNETWORK = "the gradient of the hypernetwork is not finite"
# Status, loss, correct images, seconds and norm of the gradient of each architecture. On a GPU the
# seconds are those of the step before: nobody waits for them.
_COLUMNS = 5
_SECONDS, _NORM = 3, 4


class Architecture(Protocol):
    """What a step needs of an architecture."""

    def graph_for(self, num_classes: int, image_size: int) -> ArchGraph:
        """Its architecture graph."""

    def build(self, num_classes: int, image_size: int) -> nn.Module:
        """Its network."""


@dataclass(frozen=True)
class StepResult:
    """Outcome of a step, the same on all processes.

    Attributes:
        loss: Mean cross-entropy over the architectures that were not skipped; NaN if all were.
        top1: Mean accuracy of them, in percent.
        failures: Positions of the skipped architectures in the meta-batch, with the reason.
        stop: Whether a process has been asked to stop.
        network_seconds: Wall-clock seconds of this process's candidate networks.
    """

    loss: float
    top1: float
    failures: tuple[tuple[int, str], ...] = ()
    stop: bool = False
    network_seconds: float = 0.0

    @property
    def skipped(self) -> int:
        """Number of architectures that were left out."""
        return len(self.failures)


class MetaTrainer:
    """Updates a hypernetwork on meta-batches.

    With several processes (see :mod:`ghn_fast.utils.distributed`) the architectures of a meta-batch
    are spread over them, balanced by the seconds that such architectures took before; every process
    runs the candidate networks of its share. As to the hypernetwork, there are two ways:

    - sharded: every process predicts its share only, and the gradients of the hypernetwork are
      added up. The result is that of one process up to rounding, which Adam enlarges: where a
      gradient is zero but for rounding (a bias before BatchNorm), it takes a full step in a random
      direction.
    - replicated: every process predicts the whole meta-batch, and the gradients of the candidate
      networks' parameters are put together before they pass through the hypernetwork. The result is
      that of one process, bit for bit, if it is deterministic; but the work of the hypernetwork is
      not shared.

    Args:
        ghn: The hypernetwork, in training mode.
        optimizer: Of its weights.
        meta_batch: Largest number of architectures of a step.
        grad_clip: Largest norm of the gradient.
        norm_penalty: Factor of the norms of predicted tensors in each network's loss.
        network_gradients: How gradients of the candidate networks are put together; summed by
            default.
        executor: Runs the candidate networks; a plain one by default.
        seed: Of their dropout.
        measured: Whether shares are balanced by measured seconds. By estimates alone, two sharded
            runs on as many processes give bitwise the same numbers.
        replicated: Which of the two ways.
        threads: Threads that the hypernetwork runs on, on a CPU; as torch is set by default. The
            last bit of its matrix products depends on their number.
    """

    def __init__(
        self,
        ghn: GHN,
        optimizer: torch.optim.Optimizer,
        *,
        meta_batch: int,
        grad_clip: float,
        norm_penalty: float = 0.0,
        network_gradients: NetworkGradients | None = None,
        executor: Executor | None = None,
        seed: int = 0,
        measured: bool = True,
        replicated: bool = False,
        threads: int | None = None,
    ) -> None:
        self.ghn = ghn
        self.optimizer = optimizer
        self.meta_batch = meta_batch
        self.grad_clip = grad_clip
        self.norm_penalty = norm_penalty
        self.network_gradients = network_gradients or NetworkGradients()
        self.executor = executor or Executor(ghn.device)
        self.seed = seed
        self.measured = measured
        self.threads = threads
        self.costs = CostModel()
        self.loss_scale = LossScale()
        # Features of the architectures of the step before, and the seconds of those that ran here.
        self._late: _Late | None = None
        self.replicated = replicated and distributed.world_size() > 1
        self._gradients = GradientBuffer(
            list(ghn.parameters()), _COLUMNS * meta_batch + 1, reduce=not self.replicated
        )

    def state_dict(self) -> dict[str, Any]:
        """All that changes from step to step, except for weights and optimizer."""
        return {
            "costs": self.costs.state_dict(),
            "loss_scale": self.loss_scale.state_dict(),
            "network_gradients": self.network_gradients.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint; what is missing keeps its value."""
        if "costs" in state:
            self.costs.load_state_dict(state["costs"])
        if "loss_scale" in state:
            self.loss_scale.load_state_dict(state["loss_scale"])
        if "network_gradients" in state:
            self.network_gradients.load_state_dict(state["network_gradients"])

    def close(self) -> None:
        """End the executor's threads."""
        self.executor.close()

    def step(
        self,
        architectures: Sequence[Architecture],
        images: Tensor,
        targets: Tensor,
        number: int = 0,
        *,
        stop: bool = False,
    ) -> StepResult:
        """Update the hypernetwork on a meta-batch of architectures and a batch of images.

        The loss is the mean cross-entropy over the architectures (arXiv 2110.13100, Eq. 2). Each
        network runs forward and backward by itself, so that the activations of few networks are in
        memory at a time; the gradients of all parameters then pass through the hypernetwork
        together. An architecture whose loss or gradient is not finite, or that does not fit into
        memory, is skipped: it adds nothing to the gradient.

        Args:
            architectures: The meta-batch, the same on all processes.
            images: Images (B, 3, S, S), the same on all processes.
            targets: Class of each image (B,).
            number: Of the step; decides dropout together with the seed.
            stop: Whether this process has been asked to stop, which all learn from the result.

        Raises:
            ValueError: If there are no architectures, or more than ``meta_batch``.
        """
        count = len(architectures)
        if not 1 <= count <= self.meta_batch:
            raise ValueError(f"architectures: got {count}, needs 1 to {self.meta_batch}")
        num_classes, size = self.ghn.config.num_classes, images.shape[-1]
        table = np.stack([features(a, num_classes, size) for a in architectures])
        costs = (self.costs if self.measured else CostModel()).predict(table)
        share = spread(costs, distributed.world_size())[distributed.rank()]

        self._gradients.start()
        stats = self._gradients.stats
        if stop:
            stats[-1] = 1.0
        rows = stats[:-1].view(self.meta_batch, _COLUMNS)
        late, self._late = self._late, None
        if late is not None:
            _send(rows, late.seconds)
        # For propagators that draw random numbers.
        torch.manual_seed(derive_seed(self.seed, number))
        here = list(range(count)) if self.replicated else share
        with _threads(self.threads):
            flat, ranges = self._predict([architectures[i] for i in here], num_classes, size)
        outcome: Outcome | None = None
        if flat is not None and share:
            outcome = self.executor.run(
                [architectures[i] for i in share],
                [ranges[here.index(i)] for i in share],
                flat,
                images,
                targets,
                num_classes=num_classes,
                factor=1 / count,
                loss_scale=self.loss_scale.value if self.executor.precision == "fp16" else 1.0,
                seeds=[derive_seed(self.seed, number, i) for i in share],
                costs=[costs[i] for i in share],
                num_networks=count,
            )
            regions = (outcome.gradient[region_of(ranges[here.index(i)])] for i in share)
            with _threads(self.threads):
                norms = self.network_gradients.rescale(regions)
            for place, row, norm in zip(share, outcome.stats, norms, strict=True):
                rows[place, :_SECONDS] = row
                rows[place, _NORM] = norm
            if self.norm_penalty:
                ran = (outcome.stats[:, 0] == Status.OK).to(flat.dtype)
                add_norm_penalty(
                    flat.detach(),
                    outcome.gradient,
                    [ranges[here.index(i)] for i in share],
                    ran * (self.norm_penalty / count),
                )
            if outcome.seconds is not None:
                _send(rows, dict(zip(share, outcome.seconds, strict=True)))
        else:
            _fill(rows, share, Status.MEMORY)
        gradient = None if outcome is None else outcome.gradient
        if self.replicated:
            gradient = self._put_together(flat, gradient)
        with _threads(self.threads):
            if flat is not None and gradient is not None and not self._backward(flat, gradient):
                _fill(rows, share, Status.MEMORY)
            self._gradients.finish()
            # Scaled before it is known whether it will be used, so that the host waits only once.
            norm = self._gradients.clip(self.grad_clip)
            *numbers, length = torch.cat([stats, norm.view(1)]).tolist()
            seconds = outcome.total if outcome is not None else 0.0
            timed = None if outcome is None else self.executor.late_seconds()
            if timed is not None:
                seconds = max(seconds, *timed)
                self._late = _Late(table, dict(zip(share, timed, strict=True)))
            return self._update(len(targets), count, table, numbers, length, late, seconds)

    def _backward(self, flat: Tensor, gradient: Tensor) -> bool:
        """Pass gradients through the hypernetwork; whether memory sufficed, else they are zero.

        Raises:
            RuntimeError: If it did not, and other processes would go on with other weights.
        """
        try:
            flat.backward(gradient)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if self.replicated:
                raise RuntimeError(
                    f"the hypernetwork's backward pass ran out of memory on process "
                    f"{distributed.rank()}: needs a smaller meta_batch or max_nodes, or "
                    "hypernetwork: sharded"
                ) from error
        else:
            return True
        self._gradients.clear()
        return False

    def _predict(
        self, architectures: Sequence[Architecture], num_classes: int, size: int
    ) -> tuple[Tensor | None, list[Ranges]]:
        """Predicted parameters and where they are; ``None`` if memory is too small for them."""
        if not architectures:
            return None, []
        try:
            graphs = [graph_of(a, num_classes, size) for a in architectures]
            flat, plan = self.ghn.predict_flat(graphs)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None, []
        return flat, plan.ranges

    def _put_together(self, flat: Tensor | None, gradient: Tensor | None) -> Tensor:
        """The gradients of all candidate networks, each from the process that ran it; and stats.

        Sums of one value and zeros are exact.
        """
        stats = self._gradients.stats
        # A process without memory for the meta-batch has to know how large the message is.
        numel = max(distributed.gather_objects(0 if flat is None else flat.numel()))
        message = torch.zeros(numel + len(stats), dtype=stats.dtype, device=stats.device)
        if gradient is not None:
            message[:numel] = gradient
        message[numel:] = stats
        distributed.all_reduce(message)
        stats.copy_(message[numel:])
        return message[:numel]

    def _update(
        self,
        images: int,
        count: int,
        table: Any,
        numbers: list[float],
        norm: float,
        late: _Late | None,
        seconds: float,
    ) -> StepResult:
        rows = [numbers[i * _COLUMNS : (i + 1) * _COLUMNS] for i in range(self.meta_batch)]
        if self.executor.on_gpu is None or late is not None:
            of = table if late is None else late.table
            measured = [
                i
                for i, row in enumerate(rows[: len(of)])
                if row[_SECONDS] > 0 and (late is not None or row[0] == 0)
            ]
            self.costs.observe(of[measured], [rows[i][_SECONDS] for i in measured])
        rows = rows[:count]
        failures = [
            (index, REASONS[Status(int(row[0]))]) for index, row in enumerate(rows) if row[0] != 0
        ]
        good = [index for index, row in enumerate(rows) if row[0] == 0]
        if self.executor.precision == "fp16":
            self.loss_scale.update(any(int(row[0]) == Status.GRADIENT for row in rows))
        self.network_gradients.observe(rows[i][_NORM] for i in good)
        # Clipping by an infinite norm would turn every weight into NaN.
        if good and math.isfinite(norm):
            self.optimizer.step()
        elif good:
            failures, good = [(i, HYPERNETWORK) for i in range(count)], []
        return StepResult(
            loss=sum(rows[i][1] for i in good) / len(good) if good else math.nan,
            top1=100.0 * sum(rows[i][2] for i in good) / (max(len(good), 1) * images),
            failures=tuple(failures),
            stop=numbers[-1] > 0,
            network_seconds=seconds,
        )


class _Late(NamedTuple):
    """What is known of a step's networks when the step is over: features, and seconds by place."""

    table: Any
    seconds: dict[int, float]


def _send(rows: Tensor, seconds: dict[int, float]) -> None:
    """Write the seconds of some architectures; the device need not be done for that."""
    column = torch.zeros(len(rows), dtype=rows.dtype)
    for place, value in seconds.items():
        column[place] = value
    rows[:, _SECONDS].copy_(column, non_blocking=True)


def _fill(rows: Tensor, share: Sequence[int], status: Status) -> None:
    """Say of some architectures that they have no result."""
    for place in share:
        rows[place, 0] = float(status)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Run torch's operations inside on a number of threads."""
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def graph_of(architecture: Any, num_classes: int, image_size: int) -> ArchGraph:
    """The graph of an architecture; one that it keeps for these sizes is not made again."""
    sizes = (getattr(architecture, "num_classes", None), getattr(architecture, "image_size", None))
    if sizes == (num_classes, image_size) and hasattr(architecture, "graph"):
        graph: ArchGraph = architecture.graph
        return graph
    return architecture.graph_for(num_classes=num_classes, image_size=image_size)
