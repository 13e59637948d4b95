"""The meta-training loop: from settings to a trained hypernetwork, continued where it stopped."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import torch
from torch import Tensor

from ghn_fast.hypernet.checkpoint import from_pretrained, load_weights
from ghn_fast.hypernet.ghn import GHN
from ghn_fast.metatrain.architectures import (
    language_architectures,
    training_architectures,
    training_batches,
    validation_architectures,
)
from ghn_fast.metatrain.config import PLACES, SKIP_WINDOW, TrainConfig
from ghn_fast.metatrain.evaluation import evaluate_ghn
from ghn_fast.metatrain.executor import Executor
from ghn_fast.metatrain.language import is_text, load_text, text_batches
from ghn_fast.metatrain.memory import keep_freed_memory, keep_primitives, settled
from ghn_fast.metatrain.metrics import RunLog, read_metrics
from ghn_fast.metatrain.network_gradients import NetworkGradients
from ghn_fast.metatrain.optimizers import make_optimizer
from ghn_fast.metatrain.resume import Saver, list_checkpoints, read_checkpoint, restore
from ghn_fast.metatrain.step import MetaTrainer, StepResult
from ghn_fast.ops.backend import resolve
from ghn_fast.utils import distributed
from ghn_fast.utils.files import write_atomically
from ghn_fast.utils.locks import FolderLock
from ghn_fast.utils.signals import stop_requests
from ghn_fast.vision import ImageSplits, load_images, train_batches
from ghn_fast.vision.precision import AUTO, choose

SETTINGS_FILE = "train.json"

OnStep = Callable[[dict[str, Any], int], None]
# Architectures, images and their classes of one step after the other.
Batches = Iterator[tuple[list[Any], tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class RunResult:
    """How a call of :func:`train` ended.

    Attributes:
        step: Steps done in all.
        total: Steps of the whole run.
        interrupted: Whether a signal ended it early.
        checkpoint: The newest checkpoint, ``None`` if there is none yet.
    """

    step: int
    total: int
    interrupted: bool
    checkpoint: Path | None


def train(config: TrainConfig, out: Path, *, on_step: OnStep | None = None) -> RunResult:
    """Meta-train a hypernetwork, or continue the run in ``out``.

    Every step is a function of the settings and its number: images, architectures, augmentation
    and dropout are drawn from the seed and the step, so that a continued run gives the numbers of
    an uninterrupted one. SIGINT and SIGTERM end the run after the step in progress, with a
    checkpoint; a second SIGINT ends it at once.

    Under torchrun, all processes call this with the same arguments. They share the architectures of
    each step; rank 0 writes the files.

    Args:
        config: The settings.
        out: Folder of the run: ``train.json`` (settings), ``metrics.jsonl``,
            ``evaluations.jsonl``, ``skipped.jsonl``, ``tensorboard/``, ``checkpoints/``.
        on_step: Called after each step with its metrics and the number of steps of the run, on
            rank 0 only.

    Raises:
        ValueError: If ``out`` holds a run with other settings, or one that is going on in another
            process; or if a setting is not valid.
        RuntimeError: If too many architectures had to be skipped (``max_skip_rate``).
        OSError: If the last checkpoint cannot be saved.
    """
    with distributed.job(config.execution.device):
        return _train(config, out, on_step)


def _train(config: TrainConfig, out: Path, on_step: OnStep | None) -> RunResult:
    device = torch.device(distributed.device_for(config.execution.device))
    # What rank 0 chooses goes for all.
    config = distributed.broadcast_object(with_precision(config, out, device))
    check_settings(config, out)
    if device.type == "cpu":
        keep_freed_memory()
        keep_primitives()
    data = config.data
    splits: Any = None
    nets: Any = None
    text = is_text(data.dataset)
    if text:
        splits = load_text(data.dataset, data.data_root, data.image_size)
    else:
        splits = load_images(data.dataset, data.data_root, image_size=data.image_size)
        nets = training_architectures(config)
    state = _newest_state(out)
    ghn, optimizer = _hypernetwork(config, splits, device, fresh=state is None)
    total = config.total_steps(max(len(splits.train) // data.batch_size, 1))
    step = restore(state, ghn, optimizer) if state is not None else 0
    newest = Path(state["folder"]) if state is not None else None
    if step >= total:
        return RunResult(step, total, False, newest)
    sizes = {"image_size": splits.image_size, "num_classes": splits.num_classes}
    images: Any = None
    if text:
        images = text_batches(
            splits, data.batch_size, seed=config.seed, start_step=step, device=device
        )
        architectures = language_architectures(config, step, splits.image_size)
    else:
        images = train_batches(
            splits,
            data.batch_size,
            seed=config.seed,
            start_step=step,
            device=device,
            workers=data.workers,
        )
        architectures = training_batches(config, nets, start_step=step, **sizes)
    validation = validation_architectures(config, **sizes) if config.evaluation.eval_every else []
    trainer = _trainer(config, ghn, optimizer, device)
    if state is not None:
        trainer.load_state_dict(state["extra"])
    files = _Files(config, out, step, newest) if distributed.is_main() else None
    run = _Run(config, splits, validation, trainer, files, on_step, step, total)
    run.skips = _skip_history(config, out, step)
    try:
        with stop_requests() as stop, settled():
            run.steps(zip(architectures, images, strict=False), stop)
    finally:
        trainer.close()
        if files is not None:
            files.close()
    if files is not None:
        newest = files.saver.newest
    return RunResult(run.step, total, run.step < total, newest)


def _hypernetwork(
    config: TrainConfig, splits: Any, device: torch.device, *, fresh: bool
) -> tuple[GHN, torch.optim.Optimizer]:
    """The hypernetwork and its optimizer; a fresh run may begin with given weights."""
    torch.manual_seed(config.seed)
    ghn = GHN(config.ghn_config(splits.num_classes, splits.image_size))
    if config.init is not None and fresh:
        load_weights(ghn, from_pretrained(config.init).state_dict(), config.init)
    ghn = ghn.to(device).train()
    settings = config.optimizer
    optimizer = make_optimizer(settings.algorithm, ghn, settings.lr, settings.weight_decay)
    return ghn, optimizer


def _trainer(
    config: TrainConfig, ghn: GHN, optimizer: torch.optim.Optimizer, device: torch.device
) -> MetaTrainer:
    execution, cpu = config.execution, device.type == "cpu"
    executor = Executor(
        device,
        precision=execution.precision,
        channels_last=execution.channels_last,
        parallel=execution.parallel_networks,
        # Without a pool hardly any architecture comes again.
        cuda_graphs=execution.cuda_graphs if config.architectures.pool_size else 0,
        label_smoothing=config.optimizer.label_smoothing,
    )
    return MetaTrainer(
        ghn,
        optimizer,
        meta_batch=config.architectures.meta_batch,
        grad_clip=config.optimizer.grad_clip,
        norm_penalty=config.optimizer.norm_penalty,
        network_gradients=NetworkGradients(
            config.optimizer.network_gradients, config.optimizer.network_clip
        ),
        executor=executor,
        seed=config.seed,
        measured=execution.balance == "measured",
        replicated=cpu
        if execution.hypernetwork is None
        else execution.hypernetwork == "replicated",
        threads=execution.hypernetwork_threads if cpu else None,
    )


@dataclass
class _Run:
    """A run in progress.

    Attributes:
        config: The settings.
        splits: Images.
        validation: Architectures to evaluate on.
        trainer: Takes the steps.
        files: What rank 0 writes; ``None`` on the others.
        on_step: See :func:`train`.
        step: Steps done.
        total: Steps of the whole run.
        skips: Skipped and all architectures of the latest steps.
    """

    config: TrainConfig
    splits: ImageSplits
    validation: list[Any]
    trainer: MetaTrainer
    files: _Files | None
    on_step: OnStep | None
    step: int
    total: int
    skips: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=SKIP_WINDOW))

    def steps(self, batches: Batches, stop: Event) -> None:
        """Take the remaining steps, unless it is told to stop."""
        stopped = False
        while self.step < self.total and not stopped:
            result = self._one_step(batches, stop)
            self._evaluate_if_due()
            if self.files is not None:
                self.files.save_if_due(self.step, self.trainer)
            _check_skips(self.skips, self.config.optimizer.max_skip_rate)
            # Several processes have to agree on the step, so each asks with its results.
            stopped = stop.is_set() if distributed.world_size() == 1 else result.stop
        if self.files is not None:
            self.files.save(self.step, self.trainer, last=True)

    def _one_step(self, batches: Batches, stop: Event) -> StepResult:
        started = time.perf_counter()
        rate = self.config.learning_rate(self.step, self.total)
        for group in self.trainer.optimizer.param_groups:
            group["lr"] = rate
        architectures, (images, targets) = next(batches)
        result = self.trainer.step(architectures, images, targets, self.step, stop=stop.is_set())
        self.step += 1
        self.skips.append((result.skipped, len(architectures)))
        metrics = {
            "step": self.step,
            "loss": result.loss,
            "top1": result.top1,
            "seconds": time.perf_counter() - started,
            "network_seconds": result.network_seconds,
            "lr": rate,
            "skipped": result.skipped,
        }
        if self.files is not None:
            self.files.record(metrics, architectures, result)
            if self.on_step is not None:
                self.on_step(metrics, self.total)
        return result

    def _evaluate_if_due(self) -> None:
        every = self.config.evaluation.eval_every
        if not every or self.step % every:
            return
        found = evaluate_ghn(
            self.trainer.ghn,
            self.validation,
            self.splits,
            batch_size=self.config.data.batch_size,
            seed=self.config.seed,
            workers=self.config.data.workers,
        )
        if self.files is not None:
            self.files.log.write_evaluation({"step": self.step, **found})


class _Files:
    """What rank 0 writes. Made when everything has been accepted: a mistake leaves no run behind.

    Args:
        config: The settings.
        out: Folder of the run.
        step: Steps done.
        newest: Checkpoint of that step, if there is one.
    """

    def __init__(self, config: TrainConfig, out: Path, step: int, newest: Path | None) -> None:
        self.config, self.out = config, out
        out.mkdir(parents=True, exist_ok=True)
        self.lock = FolderLock(out)
        self._write_settings()
        self.log = RunLog(out, step, config.records.trackers, config.to_dict())
        self.saver = Saver(
            out,
            every=config.checkpoints.checkpoint_every,
            minutes=config.checkpoints.checkpoint_minutes,
            keep=config.checkpoints.keep_checkpoints,
            step=step,
            newest=newest,
        )

    def close(self) -> None:
        """Close all files and let the folder go."""
        self.log.close()
        self.lock.release()

    def _write_settings(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        settings = json.dumps(self.config.to_dict(), indent=2) + "\n"
        write_atomically(self.out / SETTINGS_FILE, settings)

    def record(
        self, metrics: dict[str, Any], architectures: Sequence[Any], result: StepResult
    ) -> None:
        """Write the metrics of a step, and which architectures it skipped."""
        self.log.write(metrics)
        for index, reason in result.failures:
            architecture = architectures[index]
            values = {"step": metrics["step"], "reason": reason}
            values["name"] = str(getattr(architecture, "name", type(architecture).__name__))
            network = getattr(architecture, "config", None)
            if network is not None:
                values["config"] = network.to_dict()
            self.log.write_skipped(values)

    def save_if_due(self, step: int, trainer: MetaTrainer) -> None:
        """Save a checkpoint if the interval is over."""
        if self.saver.due(step):
            self.save(step, trainer)

    def save(self, step: int, trainer: MetaTrainer, *, last: bool = False) -> None:
        """Save a checkpoint; the lines up to it are written before it is.

        Settings that somebody has removed are written again: without them a run that is continued
        could not compare its own.
        """
        if not (self.out / SETTINGS_FILE).is_file():
            self._write_settings()
        self.saver.save(
            step,
            trainer.ghn,
            trainer.optimizer,
            trainer.state_dict(),
            before=self.log.sync,
            last=last,
        )


def with_precision(config: TrainConfig, out: Path, device: torch.device) -> TrainConfig:
    """The settings with ``auto`` replaced: by the precision of the run in ``out``, or the fastest.

    Raises:
        ValueError: If the settings in ``out`` are damaged.
    """
    if config.execution.precision != AUTO:
        return config
    chosen = _settings_before(out).get("precision", choose(device)[0])
    return TrainConfig.from_dict({**config.to_dict(), "precision": chosen})


def networks_run_in(config: TrainConfig, out: Path) -> str:
    """What candidate networks will compute in and with, in a line for people.

    Raises:
        ValueError: If the settings in ``out`` are damaged.
    """
    device = torch.device(distributed.device_for(config.execution.device))
    asked, precision = (
        c.execution.precision for c in (config, with_precision(config, out, device))
    )
    why = ""
    if asked == AUTO:
        best, reason = choose(device)
        why = f" ({reason})" if best == precision else " (as the run was started)"
    words = f"candidate networks: {precision} on {device.type}{why}"
    if device.type != "cpu":
        return words
    ops = {
        op: resolve(op, "cpu") for op in ("program_gradient", "batch_norm_act", "depthwise_conv2d")
    }
    path = ", ".join(f"{op} by {backend}" for op, backend in ops.items())
    return f"{words}, {torch.backends.cpu.get_cpu_capability()}, {path}"


def check_settings(config: TrainConfig, out: Path) -> None:
    """Check that ``out`` is free, or holds a run with the same settings.

    Raises:
        ValueError: If a setting differs that would change the numbers.
    """
    before = _settings_before(out)
    for name, value in config.to_dict().items():
        if not PLACES[name].may_change and name in before and before[name] != value:
            raise ValueError(
                f"{name}: got {value}, but the run in {out} was started with {before[name]}; use "
                "the same setting to continue it, or another folder"
            )


def _settings_before(out: Path) -> dict[str, Any]:
    """Settings of the run in ``out``, none if there is no run."""
    path = out / SETTINGS_FILE
    if not path.is_file():
        return {}
    try:
        settings: dict[str, Any] = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    return settings


def _newest_state(out: Path) -> dict[str, Any] | None:
    """The newest checkpoint, read by rank 0 for all: others need not see its disk."""
    state = None
    if distributed.is_main():
        done = list_checkpoints(out)
        state = read_checkpoint(done[-1]) if done else None
    return distributed.broadcast_object(state)


def _skip_history(config: TrainConfig, out: Path, step: int) -> deque[tuple[int, int]]:
    """Skipped and all architectures of the latest steps, the same on all processes."""
    lines = read_metrics(out) if distributed.is_main() else []
    known = [
        (int(line.get("skipped", 0)), config.architectures.meta_batch)
        for line in lines
        if line["step"] <= step
    ]
    return deque(distributed.broadcast_object(known[-SKIP_WINDOW:]), maxlen=SKIP_WINDOW)


def _check_skips(skips: deque[tuple[int, int]], largest: float) -> None:
    if len(skips) < SKIP_WINDOW:
        return
    skipped, total = (sum(column) for column in zip(*skips, strict=True))
    if skipped > largest * total:
        raise RuntimeError(
            f"max_skip_rate: {skipped} of the last {total} architectures had to be skipped, which "
            f"is more than {largest:.0%}; skipped.jsonl names them with the reasons"
        )
