"""Settings of a meta-training run, in sections.

A setting has one name, whatever its section: ``lr`` is ``TrainConfig.optimizer.lr``, in a file
``optimizer: {lr: 0.001}`` or just ``lr: 0.001``, and on the command line ``--set lr=0.001``. In
``train.json`` all settings stand side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from ghn_fast.deepnets.architectures.spec import LARGE_IMAGE
from ghn_fast.hypernet.config import GHNConfig
from ghn_fast.metatrain.network_gradients import RULES
from ghn_fast.metatrain.trackers import check_trackers
from ghn_fast.utils.settings import Section, checked, setting
from ghn_fast.vision.precision import AUTO, PRECISIONS

# Steps over which `max_skip_rate` is taken.
SKIP_WINDOW = 100


@dataclass(frozen=True)
class DataConfig(Section):
    """Images.

    Attributes:
        dataset: Image data (see :func:`ghn_fast.vision.load_images`); or ``text:PATH`` or
            ``text:generated`` to train on language models (:mod:`ghn_fast.metatrain.language`).
        data_root: Folder of the image data.
        image_size: Height and width of the images, or bytes of text that a network reads; the
            dataset's own by default.
        batch_size: Images per step.
        workers: Threads that decode images ahead, for data sets read from files.
    """

    dataset: str = "digits"
    data_root: str | None = setting(None, may_change=True)
    image_size: int | None = None
    batch_size: int = setting(64, least=1)
    workers: int = setting(0, least=0, may_change=True)


@dataclass(frozen=True)
class ArchitecturesConfig(Section):
    """Architectures that are trained on.

    Attributes:
        deepnets: Folder of generated architectures, or how many to sample on the fly; ``gpts`` for
            text, ``vits`` for vision transformers of the sizes of ViTs-1K.
        meta_batch: Architectures per step.
        max_nodes: Meta-batches with more nodes are left out.
        min_channels, max_channels: Range of widths that architectures are given.
        wider: Whether large architectures draw from more of them, as GHN-3's for ImageNet.
        pool_size: Architectures in a pool from which meta-batches are drawn; 0 draws them from all
            architectures. Architectures of a pool come again, which is what makes CUDA graphs pay.
        pool_refresh: Steps after which the oldest architecture of the pool gives way to another.
        graph_workers: Threads that prepare coming meta-batches and their graphs; meant for graphs
            that are slow to come by, from files in the published layout or without the compiled
            library, and for a machine with a core to spare.
    """

    deepnets: str = "1000000"
    meta_batch: int = setting(8, least=1)
    max_nodes: int = setting(2200, least=1)
    min_channels: int = 32
    max_channels: int = 128
    wider: bool = False
    pool_size: int = 0
    pool_refresh: int = setting(1, least=1)
    graph_workers: int = setting(0, least=0, may_change=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool_size and self.pool_size < self.meta_batch:
            raise ValueError(
                f"pool_size: got {self.pool_size}, needs 0 or at least the meta-batch of "
                f"{self.meta_batch}"
            )
        if not 1 <= self.min_channels <= self.max_channels:
            raise ValueError(
                f"min_channels, max_channels: got {self.min_channels} and {self.max_channels}, "
                "needs 1 <= min_channels <= max_channels"
            )


@dataclass(frozen=True)
class OptimizerConfig(Section):
    """How long and how fast the hypernetwork learns.

    Attributes:
        steps: Number of steps; or give ``epochs``, passes over the training images.
        epochs: See ``steps``; 300 if neither is given.
        algorithm: ``adam`` as for GHN-2; ``adamw`` as for GHN-3, whose weight decay is no part
            of the gradient; or ``muon``, Muon for matrices and Adam for the rest
            (:class:`ghn_fast.metatrain.optimizers.MuonWithAdam`).
        lr, weight_decay, grad_clip: Of it, and the norm at which gradients are clipped.
        label_smoothing: Of the cross-entropy of candidate networks.
        norm_penalty: Factor of the sum of the norms of all predicted tensors, which is added to the
            loss of each network; 3e-5 for GHN-3.
        network_gradients: How the gradients of the candidate networks are put together: ``summed``
            as published; ``clipped`` at ``network_clip`` times the median norm of networks before;
            or each ``scaled`` to that norm (see
            :class:`ghn_fast.metatrain.network_gradients.NetworkGradients`).
        network_clip: See ``network_gradients``.
        schedule: ``multistep`` multiplies the learning rate by ``gamma`` at each of ``milestones``
            (fractions of the run); ``cosine`` lets it fall to zero.
        warmup_steps: Steps over which the learning rate rises linearly.
        warmup_lr: Learning rate that it rises from.
        max_skip_rate: The run ends with an error when more than this fraction of the architectures
            of the last 100 steps had to be skipped.
    """

    steps: int | None = setting(None, least=1, may_change=True)
    epochs: int | None = setting(None, least=1, may_change=True)
    algorithm: str = setting("adam", choices=("adam", "adamw", "muon"))
    lr: float = setting(1e-3, positive=True)
    weight_decay: float = setting(1e-5, least=0)
    grad_clip: float = setting(5.0, positive=True)
    label_smoothing: float = setting(0.0, least=0)
    norm_penalty: float = setting(0.0, least=0)
    network_gradients: str = setting("summed", choices=RULES)
    network_clip: float = setting(2.0, positive=True)
    schedule: str = setting("multistep", choices=("multistep", "cosine"))
    milestones: tuple[float, ...] = (200 / 300, 250 / 300)
    gamma: float = setting(0.1, positive=True)
    warmup_steps: int = setting(0, least=0)
    warmup_lr: float = setting(0.0, least=0)
    max_skip_rate: float = setting(0.5, may_change=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs: got both, needs one of them")
        if self.label_smoothing >= 1:
            raise ValueError(f"label_smoothing: got {self.label_smoothing}, needs less than 1")
        if not 0 <= self.max_skip_rate <= 1:
            raise ValueError(f"max_skip_rate: got {self.max_skip_rate}, needs 0 to 1")


@dataclass(frozen=True)
class ExecutionConfig(Section):
    """Where and how it computes.

    Attributes:
        device: Where to train; under torchrun, ``cuda`` is the GPU of each process.
        precision: Of the candidate networks: ``float32``; ``tf32``, float32 whose products a GPU
            computes in TF32; ``bf16`` or ``fp16`` (the latter with a scaled loss). ``auto`` is the
            faster one of float32 and bf16 where the run is started
            (:func:`ghn_fast.vision.precision.choose`); it is continued in the same.
        channels_last: Whether candidate networks compute with channels last.
        parallel_networks: Candidate networks that run at a time: threads on a CPU, streams on a
            GPU. One per thread of torch, and four streams, by default.
        cuda_graphs: CUDA graphs that are kept, on a GPU; 0 for none.
        balance: How processes share a meta-batch: by ``measured`` seconds, or as ``estimated``, by
            which two sharded runs on as many processes give bitwise the same numbers.
        hypernetwork: With several processes, whether the work of the hypernetwork is ``sharded`` or
            ``replicated`` (see :class:`ghn_fast.metatrain.step.MetaTrainer`); by default the former
            on GPUs, and the latter on CPUs, where candidate networks take nearly all the time.
        hypernetwork_threads: Threads that the hypernetwork runs on, on a CPU. With one, the numbers
            of a run do not depend on the number of threads, as long as the meta-batch has at least
            as many networks.
    """

    device: str = setting("cpu", may_change=True)
    precision: str = setting("float32", choices=(*PRECISIONS, AUTO))
    channels_last: bool = True
    parallel_networks: int | None = setting(None, least=1, may_change=True)
    cuda_graphs: int = setting(64, least=0, may_change=True)
    balance: str = setting("measured", choices=("measured", "estimated"), may_change=True)
    hypernetwork: str | None = setting(None, choices=("sharded", "replicated"), may_change=True)
    hypernetwork_threads: int = setting(1, least=1, may_change=True)


@dataclass(frozen=True)
class EvaluationConfig(Section):
    """Evaluation on validation architectures and images.

    Attributes:
        eval_every: Steps between evaluations; 0 for none.
        eval_networks: Number of architectures.
    """

    eval_every: int = setting(0, least=0)
    eval_networks: int = setting(16, least=1)


@dataclass(frozen=True)
class CheckpointsConfig(Section):
    """Checkpoints.

    Attributes:
        checkpoint_every: Steps between checkpoints.
        checkpoint_minutes: Minutes between checkpoints at most; no such limit by default.
        keep_checkpoints: How many of the newest checkpoints stay.
    """

    checkpoint_every: int = setting(500, least=1, may_change=True)
    checkpoint_minutes: float | None = setting(None, positive=True, may_change=True)
    keep_checkpoints: int = setting(3, least=1, may_change=True)


@dataclass(frozen=True)
class RecordsConfig(Section):
    """Where the numbers of a run go beside its own files.

    Attributes:
        trackers: Experiment trackers: ``tensorboard`` (where it is installed), ``wandb`` (Weights &
            Biases, by its environment variables); none is ``[]``.
    """

    trackers: tuple[str, ...] = setting(("tensorboard",), may_change=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_trackers(self.trackers)


@dataclass(frozen=True, init=False)
class TrainConfig(Section):
    """Settings of a meta-training run; the defaults are the published ones for CIFAR-10.

    ``TrainConfig(lr=1e-4, hid=64)`` takes each setting by its name. A mistake is a ValueError that
    names the setting, or a TypeError if there is none of that name.

    Attributes:
        init: Hypernetwork to start from, as in :func:`ghn_fast.from_pretrained`; random weights by
            default.
        seed: Decides weights, order of images and architectures, augmentation, dropout.
        max_shape: Largest block that the hypernetwork decodes; by default twice ``hid`` channels
            (``hid`` with a graphormer) and the largest kernel of networks for the images.
        ghn: The hypernetwork; its number of classes and largest block come from the images and
            ``max_shape`` (see :meth:`ghn_config`). Its ``steps`` are called ``propagation_steps``.
        data, architectures, optimizer, execution, evaluation, checkpoints, records: Sections.
    """

    init: str | None = None
    seed: int = setting(1, least=0)
    max_shape: tuple[int, int, int, int] | None = None
    ghn: GHNConfig = field(default=GHNConfig())
    data: DataConfig = DataConfig()
    architectures: ArchitecturesConfig = ArchitecturesConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    execution: ExecutionConfig = ExecutionConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    records: RecordsConfig = RecordsConfig()

    def __init__(self, **settings: Any) -> None:
        given: dict[str, dict[str, Any]] = {}
        for name, value in without_sections(settings).items():
            if name not in PLACES:
                raise TypeError(f"TrainConfig: got {name!r}, which is no setting")
            place = PLACES[name]
            given.setdefault(place.section, {})[place.name] = value
        for item in fields(self):
            value = given.get("", {}).get(item.name, item.default)
            if item.name in given:
                value = replace(value, **given[item.name])
            object.__setattr__(self, item.name, value)
        self.__post_init__()

    def total_steps(self, steps_per_epoch: int) -> int:
        """Number of steps of the run, for images that make ``steps_per_epoch`` batches."""
        if self.optimizer.steps is not None:
            return self.optimizer.steps
        return (self.optimizer.epochs or 300) * steps_per_epoch

    def learning_rate(self, step: int, total: int) -> float:
        """Learning rate of a step (counted from 0) of ``total``."""
        optimizer = self.optimizer
        rate = optimizer.lr
        if optimizer.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0)))
        else:
            passed = sum(step >= fraction * total for fraction in optimizer.milestones)
            rate *= optimizer.gamma**passed
        if step < optimizer.warmup_steps:
            part = (step + 1) / optimizer.warmup_steps
            rate = optimizer.warmup_lr + (rate - optimizer.warmup_lr) * part
        return rate

    def ghn_config(self, num_classes: int, image_size: int) -> GHNConfig:
        """Configuration of the hypernetwork for a number of classes and an image size."""
        kernel = 11 if image_size < LARGE_IMAGE else 16
        width = self.ghn.hid if self.ghn.propagator == "graphormer" else 2 * self.ghn.hid
        shape = self.max_shape or (width, width, kernel, kernel)
        return replace(self.ghn, max_shape=shape, num_classes=num_classes)

    def to_dict(self) -> dict[str, Any]:
        """All settings side by side, as plain values for JSON and YAML."""
        result = {}
        for name, place in PLACES.items():
            value = getattr(getattr(self, place.section) if place.section else self, place.name)
            result[name] = list(value) if isinstance(value, tuple) else value
        return result

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> TrainConfig:
        """From plain values, in sections or side by side.

        Raises:
            ValueError: If a name is unknown, is given twice, or a value is not valid.
        """
        values = without_sections(values)
        if type(values.get("deepnets")) is int:
            values["deepnets"] = str(values["deepnets"])
        return TrainConfig(**checked(_SETTINGS, values, "setting"))


class Place(NamedTuple):
    """Where a setting is in :class:`TrainConfig`.

    Attributes:
        section: Its section, "" if it is in none.
        name: Its name there.
        hint: Its type.
        may_change: Whether it may change when a run is continued.
    """

    section: str
    name: str
    hint: Any
    may_change: bool


def _places() -> dict[str, Place]:
    """Name of each setting to its place."""
    result = {}
    hints = get_type_hints(TrainConfig)
    for item in fields(TrainConfig):
        kind = hints[item.name]
        if not is_dataclass(kind):
            result[item.name] = Place("", item.name, kind, False)
            continue
        inside = get_type_hints(kind)
        for own in fields(kind):
            place = Place(
                item.name, own.name, inside[own.name], own.metadata.get("may_change", False)
            )
            result[_OTHER_NAMES.get((item.name, own.name), own.name)] = place
    # What the images decide, or the setting of the same name outside the section.
    del result["num_classes"]
    result["max_shape"] = Place("", "max_shape", hints["max_shape"], False)
    return result


# Settings whose names are taken, and those that once had another one.
_OTHER_NAMES = {("ghn", "steps"): "propagation_steps"}
_FORMER_NAMES = {"graphs": "cuda_graphs"}

PLACES = _places()
"""Name of each setting to its place."""

# For the checks of types.
_SETTINGS = make_dataclass("_SETTINGS", [(name, place.hint) for name, place in PLACES.items()])


def without_sections(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings side by side, from sections or side by side, under the names of today.

    Raises:
        ValueError: If one is given twice, or in another section than its own.
    """
    sections = {place.section for place in PLACES.values()} - {""}
    result: dict[str, Any] = {}
    for key, value in values.items():
        in_section = key in sections and isinstance(value, Mapping)
        for name, inner in (value if in_section else {key: value}).items():
            name = _FORMER_NAMES.get(name, name)
            # Those of no section may be with the hypernetwork, which they decide.
            homes = (key, "") if key == "ghn" else (key,)
            known = {other for other, place in PLACES.items() if place.section in homes}
            if in_section and name not in known:
                raise ValueError(f"{key}: unknown setting {name!r}, known are {sorted(known)}")
            if name in result:
                raise ValueError(f"{name}: got it twice, needs it once")
            result[name] = inner
    return result


def read_config(path: Path) -> dict[str, Any]:
    """Read settings from a YAML (or JSON) file, in sections or side by side.

    Returns:
        The settings side by side.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a mapping from names to values, or names a setting twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such configuration file")
    try:
        values = _yaml(path.read_text(), str(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: got a {type(values).__name__}, needs settings as 'name: value'")
    return without_sections(values)


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Settings from texts ``name=value``, whose values are written as in a YAML file.

    Raises:
        ValueError: If a text is not of that form, or names a setting twice.
    """
    result: dict[str, Any] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or name in result:
            needs = "once" if separator else "as name=value"
            raise ValueError(f"setting: got {text!r}, needs it {needs}")
        result[name] = _yaml(value, name)
    return without_sections(result)


def _yaml(text: str, where: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not valid YAML: {str(error).splitlines()[0]}") from error
