"""Which architectures a run trains on, and in which order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ghn_fast.deepnets import ArchItem, DeepNets, SampledNets, meta_batches
from ghn_fast.metatrain.config import TrainConfig
from ghn_fast.metatrain.language import ARCHITECTURES, gpt_batches
from ghn_fast.metatrain.pool import pooled_batches
from ghn_fast.metatrain.vision_transformers import ARCHITECTURES as VITS
from ghn_fast.metatrain.vision_transformers import vit_batches


def training_architectures(config: TrainConfig) -> DeepNets | SampledNets | None:
    """The architectures of ``config.deepnets``: from files, or sampled; ``None`` for ``vits``.

    Raises:
        ValueError: If it is a number below 1.
        FileNotFoundError: If it is no folder with files.
    """
    source = config.architectures.deepnets
    virtual_edges, rules = config.ghn.virtual_edges, config.ghn.graph_rules
    if source == VITS:
        return None
    if source.lstrip("+-").isdigit():
        if int(source) < 1:
            raise ValueError(f"deepnets: got {source}, needs at least 1 architecture")
        return SampledNets("train", int(source), config.seed, virtual_edges, rules=rules)
    return DeepNets(source, "train", virtual_edges, rules=rules)


def training_batches(
    config: TrainConfig,
    nets: DeepNets | SampledNets | None,
    *,
    start_step: int,
    image_size: int,
    num_classes: int,
) -> Iterator[list[ArchItem]]:
    """Meta-batches from a step on: of all architectures, or from a pool of them.

    Args:
        config: The settings.
        nets: The architectures; vision transformers for ``None``.
        start_step: The step.
        image_size, num_classes: Of the data.

    Raises:
        ValueError: If a setting is not valid.
    """
    settings = config.architectures
    if nets is None:
        _refuse_pools(config, "vision transformers")
        return vit_batches(
            settings.meta_batch,
            seed=config.seed,
            start_step=start_step,
            num_classes=num_classes,
            image_size=image_size,
            widths=(settings.min_channels, settings.max_channels),
            virtual_edges=config.ghn.virtual_edges,
            rules=config.ghn.graph_rules,
        )

    def batches(size: int, first: int) -> Iterator[list[ArchItem]]:
        return meta_batches(
            nets,
            size,
            seed=config.seed,
            start_step=first,
            image_size=image_size,
            num_classes=num_classes,
            max_nodes=settings.max_nodes,
            num_ch=(settings.min_channels, settings.max_channels),
            wider=settings.wider,
            workers=settings.graph_workers,
        )

    if not settings.pool_size:
        return batches(settings.meta_batch, start_step)
    return pooled_batches(
        lambda first: (item for batch in batches(1, first) for item in batch),
        size=settings.pool_size,
        refresh=settings.pool_refresh,
        meta_batch=settings.meta_batch,
        seed=config.seed,
        start_step=start_step,
        accept=lambda items: sum(item.num_nodes for item in items) <= settings.max_nodes,
    )


def validation_architectures(
    config: TrainConfig, *, image_size: int, num_classes: int
) -> list[ArchItem]:
    """The architectures of periodic evaluation: from the files, if they have any, or sampled."""
    source, count = config.architectures.deepnets, config.evaluation.eval_networks
    virtual_edges, rules = config.ghn.virtual_edges, config.ghn.graph_rules
    nets: Any = None
    if not source.lstrip("+-").isdigit():
        try:
            nets = DeepNets(source, "val", virtual_edges, rules=rules)
        except FileNotFoundError:
            nets = None
    if nets is None:
        nets = SampledNets("val", count, 0, virtual_edges, rules=rules)
    sizes = {"image_size": image_size, "num_classes": num_classes}
    return [item.with_config(item.config, **sizes) for item in nets[: min(count, len(nets))]]


def language_architectures(config: TrainConfig, start_step: int, context: int) -> Iterator[Any]:
    """Meta-batches of language models from a step on.

    Raises:
        ValueError: If ``deepnets`` names another source, or a setting is for images alone:
            evaluation, a pool, threads for graphs.
    """
    settings = config.architectures
    if settings.deepnets != ARCHITECTURES:
        raise ValueError(
            f"deepnets: got {settings.deepnets!r}, needs {ARCHITECTURES!r} for text, on which "
            "networks for images cannot train"
        )
    if config.evaluation.eval_every:
        raise ValueError(
            f"eval_every: got {config.evaluation.eval_every}, needs 0 for text: evaluation is for "
            "images"
        )
    _refuse_pools(config, "text")
    return gpt_batches(
        settings.meta_batch,
        seed=config.seed,
        start_step=start_step,
        context=context,
        widths=(settings.min_channels, settings.max_channels),
        virtual_edges=config.ghn.virtual_edges,
        rules=config.ghn.graph_rules,
    )


def _refuse_pools(config: TrainConfig, source: str) -> None:
    for name in ("pool_size", "graph_workers"):
        value = getattr(config.architectures, name)
        if value:
            raise ValueError(
                f"{name}: got {value}, needs 0 for {source}: networks are drawn one by one"
            )
