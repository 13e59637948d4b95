"""Settings of a meta-training run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ghn_fast.hypernet.config import GHNConfig
from ghn_fast.metatrain.precision import PRECISIONS
from ghn_fast.utils.settings import checked

SCHEDULES = ("multistep", "cosine")
# Settings that a run may change when it is continued: none of them changes a step that was done.
MAY_CHANGE = frozenset(
    (
        "steps",
        "epochs",
        "checkpoint_every",
        "checkpoint_minutes",
        "keep_checkpoints",
        "max_skip_rate",
        "device",
        "data_root",
        "workers",
        "parallel_networks",
        "graphs",
        "balance",
        "hypernetwork",
        "hypernetwork_threads",
    )
)
BALANCES = ("measured", "estimated")
HYPERNETWORK = ("sharded", "replicated")
# Steps over which `max_skip_rate` is taken.
SKIP_WINDOW = 100


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a meta-training run; the defaults are the published ones for CIFAR-10.

    Attributes:
        dataset: Image data (see :func:`ghn_fast.vision.load_images`).
        data_root: Folder of the image data.
        image_size: Height and width of the images; the dataset's own by default.
        deepnets: Folder of generated architectures, or how many to sample on the fly.
        meta_batch: Architectures per step.
        batch_size: Images per step.
        steps: Number of steps; or give ``epochs``, passes over the training images.
        epochs: See ``steps``; 300 if neither is given.
        init: Hypernetwork to start from, as in :func:`ghn_fast.from_pretrained`; random weights by
            default.
        seed: Decides weights, order of images and architectures, augmentation, dropout.
        hid, max_shape, propagator, virtual_edges, normalize, layer_norm, propagation_steps:
            The hypernetwork, see :class:`GHNConfig`.
        lr, weight_decay, grad_clip: Adam and the norm at which gradients are clipped.
        schedule: ``multistep`` multiplies the learning rate by ``gamma`` at each of ``milestones``
            (fractions of the run); ``cosine`` lets it fall to zero.
        warmup_steps: Steps over which the learning rate rises linearly.
        max_nodes: Meta-batches with more nodes are left out.
        min_channels, max_channels: Range of widths that architectures are given.
        pool_size: Architectures in a pool from which meta-batches are drawn; 0 draws them from all
            architectures. Architectures of a pool come again, which is what makes CUDA graphs pay.
        pool_refresh: Steps after which the oldest architecture of the pool gives way to another.
        precision: Of the candidate networks: ``float32``, or autocast to ``bf16`` or ``fp16`` (the
            latter with a scaled loss).
        channels_last: Whether candidate networks compute with channels last.
        parallel_networks: Candidate networks that run at a time: threads on a CPU, streams on a
            GPU. One per thread of torch, and four streams, by default.
        graphs: CUDA graphs that are kept, on a GPU; 0 for none.
        balance: How processes share a meta-batch: by ``measured`` seconds, or as ``estimated``, by
            which two sharded runs on as many processes give bitwise the same numbers.
        hypernetwork: With several processes, whether the work of the hypernetwork is ``sharded`` or
            ``replicated`` (see :class:`ghn_fast.metatrain.step.MetaTrainer`); by default the former
            on GPUs, and the latter on CPUs, where candidate networks take nearly all the time.
        hypernetwork_threads: Threads that the hypernetwork runs on, on a CPU. With one, the numbers
            of a run do not depend on the number of threads, as long as the meta-batch has at least
            as many networks.
        max_skip_rate: The run ends with an error when more than this fraction of the architectures
            of the last 100 steps had to be skipped.
        workers: Threads that decode images ahead, for data sets read from files.
        eval_every: Steps between evaluations on validation architectures and images; 0 for none.
        eval_networks: Number of these architectures.
        checkpoint_every: Steps between checkpoints.
        checkpoint_minutes: Minutes between checkpoints at most; no such limit by default.
        keep_checkpoints: How many of the newest checkpoints stay.
        device: Where to train; under torchrun, ``cuda`` is the GPU of each process.
    """

    dataset: str = "digits"
    data_root: str | None = None
    image_size: int | None = None
    deepnets: str = "1000000"
    meta_batch: int = 8
    batch_size: int = 64
    steps: int | None = None
    epochs: int | None = None
    init: str | None = None
    seed: int = 1
    hid: int = 32
    max_shape: tuple[int, int, int, int] | None = None
    propagator: str = "gated_gnn"
    virtual_edges: int = 50
    normalize: bool = True
    layer_norm: bool = True
    propagation_steps: int = 1
    lr: float = 1e-3
    weight_decay: float = 1e-5
    grad_clip: float = 5.0
    schedule: str = "multistep"
    milestones: tuple[float, ...] = (200 / 300, 250 / 300)
    gamma: float = 0.1
    warmup_steps: int = 0
    max_nodes: int = 2200
    min_channels: int = 32
    max_channels: int = 128
    pool_size: int = 0
    pool_refresh: int = 1
    precision: str = "float32"
    channels_last: bool = True
    parallel_networks: int | None = None
    graphs: int = 64
    balance: str = "measured"
    hypernetwork: str | None = None
    hypernetwork_threads: int = 1
    max_skip_rate: float = 0.5
    workers: int = 0
    eval_every: int = 0
    eval_networks: int = 16
    checkpoint_every: int = 500
    checkpoint_minutes: float | None = None
    keep_checkpoints: int = 3
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in (
            "meta_batch",
            "batch_size",
            "max_nodes",
            "pool_refresh",
            "eval_networks",
            "hypernetwork_threads",
            "checkpoint_every",
            "keep_checkpoints",
        ):
            _at_least(name, getattr(self, name), 1)
        for name in ("steps", "epochs", "parallel_networks"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        for name in ("lr", "grad_clip", "gamma"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name}: got {value}, needs a positive number")
        for name in ("weight_decay", "warmup_steps", "seed", "workers", "eval_every", "graphs"):
            _at_least(name, getattr(self, name), 0)
        if self.checkpoint_minutes is not None and not self.checkpoint_minutes > 0:
            raise ValueError(
                f"checkpoint_minutes: got {self.checkpoint_minutes}, needs a positive number"
            )
        if not 0 <= self.max_skip_rate <= 1:
            raise ValueError(f"max_skip_rate: got {self.max_skip_rate}, needs 0 to 1")
        if self.pool_size and self.pool_size < self.meta_batch:
            raise ValueError(
                f"pool_size: got {self.pool_size}, needs 0 or at least the meta-batch of "
                f"{self.meta_batch}"
            )
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs: got both, needs one of them")
        choices: dict[str, tuple[str, ...]] = {
            "schedule": SCHEDULES,
            "precision": tuple(PRECISIONS),
            "balance": BALANCES,
            "hypernetwork": HYPERNETWORK,
        }
        for name, valid in choices.items():
            value = getattr(self, name)
            if value not in valid and not (name == "hypernetwork" and value is None):
                raise ValueError(f"{name}: got {value!r}, needs one of {', '.join(valid)}")
        if not 1 <= self.min_channels <= self.max_channels:
            raise ValueError(
                f"min_channels, max_channels: got {self.min_channels} and {self.max_channels}, "
                "needs 1 <= min_channels <= max_channels"
            )

    def total_steps(self, steps_per_epoch: int) -> int:
        """Number of steps of the run, for images that make ``steps_per_epoch`` batches."""
        if self.steps is not None:
            return self.steps
        return (self.epochs or 300) * steps_per_epoch

    def learning_rate(self, step: int, total: int) -> float:
        """Learning rate of a step (counted from 0) of ``total``."""
        rate = self.lr
        if self.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0)))
        else:
            rate *= self.gamma ** sum(step >= fraction * total for fraction in self.milestones)
        if step < self.warmup_steps:
            rate *= (step + 1) / self.warmup_steps
        return rate

    def ghn_config(self, num_classes: int, image_size: int) -> GHNConfig:
        """Configuration of the hypernetwork for a number of classes and an image size."""
        kernel = 11 if image_size < 64 else 16
        return GHNConfig(
            max_shape=self.max_shape or (2 * self.hid, 2 * self.hid, kernel, kernel),
            num_classes=num_classes,
            hid=self.hid,
            propagator=self.propagator,
            virtual_edges=self.virtual_edges,
            normalize=self.normalize,
            layer_norm=self.layer_norm,
            steps=self.propagation_steps,
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON and YAML."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> TrainConfig:
        """From plain values.

        Raises:
            ValueError: If a name is unknown or a value is not valid.
        """
        values = dict(values)
        if type(values.get("deepnets")) is int:
            values["deepnets"] = str(values["deepnets"])
        return TrainConfig(**checked(TrainConfig, values, "setting"))


def read_config(path: Path) -> dict[str, Any]:
    """Read settings from a YAML (or JSON) file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a mapping from names to values.
    """
    import yaml

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such configuration file")
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: got a {type(values).__name__}, needs settings as 'name: value'")
    return values


def _at_least(name: str, value: float, least: int) -> None:
    if not value >= least:
        raise ValueError(f"{name}: got {value}, needs at least {least}")
