"""Architectures by name, as the command line takes them."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ghn_fast.graph import ArchGraph

_DEEPNETS = "deepnets:"


def torchvision_model(name: str, num_classes: int) -> nn.Module:
    """Build a classification model of torchvision, randomly initialised.

    Raises:
        ValueError: If torchvision has no classification model of that name.
    """
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ValueError(f"model: got {name!r}, needs one of {', '.join(known)}")
    return torchvision.models.get_model(name, weights=None, num_classes=num_classes)


def graph_of(
    name: str,
    *,
    num_classes: int = 10,
    input_size: int | None = None,
    virtual_edges: int = 1,
    deepnets: Path | None = None,
    seed: int = 0,
) -> ArchGraph:
    """The architecture graph of a model by name.

    Args:
        name: A torchvision model, or ``deepnets:SPLIT:INDEX`` for an architecture of DeepNets-1M.
        num_classes: Number of classes of the classifier.
        input_size: Height and width of an image; by default 224, and 32 for DeepNets-1M.
        virtual_edges: Largest distance that gets a virtual edge; 1 means none.
        deepnets: Folder of generated files; without it architectures are sampled.
        seed: Seed of sampled architectures.

    Raises:
        ValueError: If there is no architecture of that name.
    """
    if name.startswith(_DEEPNETS):
        return _deepnets_graph(name, num_classes, input_size or 32, virtual_edges, deepnets, seed)
    from ghn_fast.capturing import capture

    size = input_size or 224
    return capture(torchvision_model(name, num_classes), (3, size, size), virtual_edges)


def _deepnets_graph(
    name: str, num_classes: int, size: int, virtual_edges: int, folder: Path | None, seed: int
) -> ArchGraph:
    from ghn_fast.deepnets import SPLITS, DeepNets, SampledNets

    split, _, number = name.removeprefix(_DEEPNETS).partition(":")
    if split not in SPLITS or not number.isdecimal():
        raise ValueError(
            f"model: got {name!r}, needs deepnets:SPLIT:INDEX, for example deepnets:test:0, with "
            f"one of the splits {', '.join(SPLITS)}"
        )
    index = int(number)
    nets: DeepNets | SampledNets
    if folder is not None or split == "predefined":
        nets = DeepNets(folder, split, virtual_edges)
    else:
        nets = SampledNets(split, index + 1, seed, virtual_edges)
    if index >= len(nets):
        raise ValueError(f"model: got {name!r}, but the split has {len(nets)} architectures")
    return nets[index].graph_for(num_classes=num_classes, image_size=size)
