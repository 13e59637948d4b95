"""Architectures of DeepNets-1M: ``deepnets:SPLIT:INDEX``."""

from __future__ import annotations

from pathlib import Path

from ghn_fast.deepnets import SPLITS, DeepNets, SampledNets
from ghn_fast.deepnets.graphs.correct import by_rules
from ghn_fast.models.model import NamedModel

PREFIX = "deepnets:"
_SIZE = 32
_CLASSES = 10


def names() -> list[str]:
    """The first architecture of each split."""
    return [f"{PREFIX}{split}:0" for split in SPLITS]


def resolve(
    name: str, num_classes: int | None, image_size: int | None, folder: Path | None, seed: int
) -> NamedModel:
    """The architecture of a split; its graph is derived without building the network.

    Args:
        name: The name with the prefix.
        num_classes: Number of classes, 10 if not given.
        image_size: Height and width of images, 32 if not given.
        folder: Folder of generated files; without it architectures are sampled.
        seed: Seed of sampled architectures.

    Raises:
        ValueError: If the name is not of that form, or the split has fewer architectures.
    """
    split, _, number = name.removeprefix(PREFIX).partition(":")
    if split not in SPLITS or not number.isdecimal():
        raise ValueError(
            f"model: got {name!r}, needs deepnets:SPLIT:INDEX, for example deepnets:test:0, with "
            f"one of the splits {', '.join(SPLITS)}"
        )
    index = int(number)
    nets: DeepNets | SampledNets
    if folder is not None or split == "predefined":
        nets = DeepNets(folder, split, virtual_edges=1)
    else:
        nets = SampledNets(split, index + 1, seed, virtual_edges=1)
    if index >= len(nets):
        raise ValueError(f"model: got {name!r}, but the split has {len(nets)} architectures")
    item = nets[index]
    classes, size = num_classes or _CLASSES, image_size or _SIZE
    return NamedModel(
        name,
        lambda: item.build(num_classes=classes, image_size=size),
        input_shape=(3, size, size),
        derive=lambda edges, rules: by_rules(
            item.graph_for(classes, size).with_virtual_edges(edges), item.config, rules
        ),
        image_size=size,
        num_classes=classes,
        built_for_size=True,
    )
