"""Which architectures a run trains on, and in which order."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from ghn_fast.deepnets import ArchItem, DeepNets, SampledNets, held_out_keys, meta_batches
from ghn_fast.metatrain.config import TrainConfig
from ghn_fast.metatrain.pool import pooled_batches


def training_architectures(config: TrainConfig) -> DeepNets | SampledNets:
    """The architectures of ``config.deepnets``: from files, or sampled.

    Raises:
        ValueError: If it is a number below 1.
        FileNotFoundError: If it is no folder with files.
    """
    source = config.deepnets
    if source.lstrip("+-").isdigit():
        if int(source) < 1:
            raise ValueError(f"deepnets: got {source}, needs at least 1 architecture")
        return SampledNets(
            "train",
            int(source),
            config.seed,
            virtual_edges=config.virtual_edges,
            exclude=_held_out(),
        )
    return DeepNets(source, "train", virtual_edges=config.virtual_edges)


@cache
def _held_out() -> frozenset[str]:
    """They are sampled, which takes about as long as starting the rest of a run."""
    return held_out_keys()


def training_batches(
    config: TrainConfig,
    nets: DeepNets | SampledNets,
    *,
    start_step: int,
    image_size: int,
    num_classes: int,
) -> Iterator[list[ArchItem]]:
    """Meta-batches from a step on: of all architectures, or from a pool of them.

    Raises:
        ValueError: If a setting is not valid.
    """

    def batches(size: int, first: int) -> Iterator[list[ArchItem]]:
        return meta_batches(
            nets,
            size,
            seed=config.seed,
            start_step=first,
            image_size=image_size,
            num_classes=num_classes,
            max_nodes=config.max_nodes,
            num_ch=(config.min_channels, config.max_channels),
        )

    if not config.pool_size:
        return batches(config.meta_batch, start_step)
    return pooled_batches(
        lambda first: (item for batch in batches(1, first) for item in batch),
        size=config.pool_size,
        refresh=config.pool_refresh,
        meta_batch=config.meta_batch,
        seed=config.seed,
        start_step=start_step,
        accept=lambda items: sum(item.num_nodes for item in items) <= config.max_nodes,
    )


def validation_architectures(
    config: TrainConfig, *, image_size: int, num_classes: int
) -> list[ArchItem]:
    """The architectures of periodic evaluation: from the files, if they have any, or sampled."""
    nets: Any = None
    if not config.deepnets.lstrip("+-").isdigit():
        try:
            nets = DeepNets(config.deepnets, "val", virtual_edges=config.virtual_edges)
        except FileNotFoundError:
            nets = None
    if nets is None:
        nets = SampledNets("val", config.eval_networks, 0, virtual_edges=config.virtual_edges)
    sizes = {"image_size": image_size, "num_classes": num_classes}
    return [
        item.with_config(item.config, **sizes)
        for item in nets[: min(config.eval_networks, len(nets))]
    ]
