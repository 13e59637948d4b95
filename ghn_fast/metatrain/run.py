"""The meta-training loop: from settings to a trained hypernetwork, continued where it stopped."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from ghn_fast.deepnets import DeepNets, SampledNets, held_out_keys, meta_batches
from ghn_fast.hypernet.checkpoint import from_pretrained, load_weights, write_atomically
from ghn_fast.hypernet.ghn import GHN
from ghn_fast.metatrain.checkpoints import list_checkpoints, load_checkpoint, save_checkpoint
from ghn_fast.metatrain.config import MAY_CHANGE, TrainConfig
from ghn_fast.metatrain.metrics import MetricsLog
from ghn_fast.metatrain.step import meta_step
from ghn_fast.vision import load_images, train_batches

_SETTINGS_FILE = "train.json"


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


def train(
    config: TrainConfig, out: Path, *, on_step: Callable[[dict[str, Any], int], None] | None = None
) -> RunResult:
    """Meta-train a hypernetwork, or continue the run in ``out``.

    Every step is a function of the settings and its number: images, architectures, augmentation
    and dropout are drawn from the seed and the step, so that a continued run gives the numbers of
    an uninterrupted one. SIGINT and SIGTERM end the run after the step in progress, with a
    checkpoint; a second SIGINT ends it at once.

    Args:
        config: The settings.
        out: Folder of the run: ``train.json`` (settings), ``metrics.jsonl``, ``tensorboard/``,
            ``checkpoints/``.
        on_step: Called after each step with its metrics and the number of steps of the run.

    Raises:
        ValueError: If ``out`` holds a run with other settings, or a setting is not valid.
    """
    check_settings(config, out)
    splits = load_images(config.dataset, config.data_root, image_size=config.image_size)
    nets = _architectures(config)
    torch.manual_seed(config.seed)
    ghn = GHN(config.ghn_config(splits.num_classes, splits.image_size))
    done = list_checkpoints(out)
    if config.init is not None and not done:
        load_weights(ghn, from_pretrained(config.init).state_dict(), config.init)
    ghn = ghn.to(config.device).train()
    optimizer = torch.optim.Adam(ghn.parameters(), config.lr, weight_decay=config.weight_decay)
    total = config.total_steps(max(len(splits.train) // config.batch_size, 1))
    step = load_checkpoint(done[-1], ghn, optimizer) if done else 0
    if step >= total:
        return RunResult(step, total, False, done[-1])

    images = train_batches(
        splits, config.batch_size, seed=config.seed, start_step=step, device=config.device
    )
    batches = meta_batches(
        nets,
        config.meta_batch,
        seed=config.seed,
        start_step=step,
        image_size=splits.image_size,
        num_classes=splits.num_classes,
        max_nodes=config.max_nodes,
        num_ch=(config.min_channels, config.max_channels),
    )
    # Written when everything else has been accepted, so that a mistake leaves no run behind.
    out.mkdir(parents=True, exist_ok=True)
    settings = json.dumps(config.to_dict(), indent=2) + "\n"
    write_atomically(out / _SETTINGS_FILE, settings.encode())
    log = MetricsLog(out, step)
    checkpoint = done[-1] if done else None
    saved = step
    with _stop_requests() as stop:
        try:
            while step < total and not stop.is_set():
                started = time.perf_counter()
                rate = config.learning_rate(step, total)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                x, y = next(images)
                architectures = next(batches)
                # Dropout of the candidate networks is the only use of the global generator.
                torch.manual_seed((config.seed << 32) + step)
                result = meta_step(ghn, optimizer, architectures, x, y, grad_clip=config.grad_clip)
                step += 1
                metrics = {
                    "step": step,
                    "loss": result.loss,
                    "top1": result.top1,
                    "seconds": time.perf_counter() - started,
                    "lr": rate,
                    "skipped": result.skipped,
                }
                log.write(metrics)
                if on_step is not None:
                    on_step(metrics, total)
                if step % config.checkpoint_every == 0:
                    checkpoint = save_checkpoint(out, step, ghn, optimizer, config.keep_checkpoints)
                    saved = step
        finally:
            log.close()
        if saved < step:
            checkpoint = save_checkpoint(out, step, ghn, optimizer, config.keep_checkpoints)
    return RunResult(step, total, step < total, checkpoint)


def check_settings(config: TrainConfig, out: Path) -> None:
    """Check that ``out`` is free, or holds a run with the same settings.

    Raises:
        ValueError: If a setting differs that would change the numbers.
    """
    path = out / _SETTINGS_FILE
    if not path.is_file():
        return
    try:
        before = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    for name, value in config.to_dict().items():
        if name not in MAY_CHANGE and name in before and before[name] != value:
            raise ValueError(
                f"{name}: got {value}, but the run in {out} was started with {before[name]}; use "
                "the same setting to continue it, or another folder"
            )


def _architectures(config: TrainConfig) -> DeepNets | SampledNets:
    source = config.deepnets
    if source.lstrip("+-").isdigit():
        if int(source) < 1:
            raise ValueError(f"deepnets: got {source}, needs at least 1 architecture")
        return SampledNets(
            "train",
            int(source),
            config.seed,
            virtual_edges=config.virtual_edges,
            exclude=held_out_keys(),
        )
    return DeepNets(source, "train", virtual_edges=config.virtual_edges)


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; outside the main thread nobody sets it."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, frame: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
