"""From a name to a network: the one place where names of networks are understood."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from ghn_fast.models import (
    from_deepnets,
    from_file,
    from_timm,
    from_torchvision,
    from_transformers,
)
from ghn_fast.models.model import NamedModel
from ghn_fast.models.nearest import nearest
from ghn_fast.utils.optional import installed

FORMS = (
    "a network of torchvision (resnet50), timm:NAME, hf:CONFIG_OR_FOLDER, FILE.py:FUNCTION, "
    "deepnets:SPLIT:INDEX, or a .pt2 file of torch.export"
)
"""What a name may be, in words."""

_LIBRARIES: dict[str, tuple[str, Callable[[], list[str]]]] = {
    "": ("torchvision", from_torchvision.names),
    from_timm.PREFIX: ("timm", from_timm.names),
    from_transformers.PREFIX: ("transformers", from_transformers.names),
    from_deepnets.PREFIX: ("ghn_fast", from_deepnets.names),
}


def resolve(
    name: str | os.PathLike[str] | torch.export.ExportedProgram,
    *,
    num_classes: int | None = None,
    image_size: int | None = None,
    deepnets: Path | None = None,
    seed: int = 0,
) -> NamedModel:
    """The network of a name.

    - ``resnet50``: of torchvision (classification, segmentation, detection, video)
    - ``timm:NAME``: of timm
    - ``hf:CONFIG_OR_FOLDER``: of transformers, from a type (``hf:vit``), a file or folder; nothing
      is downloaded
    - ``FILE.py:FUNCTION``: what a function or class of that file gives; the file is run
    - ``deepnets:SPLIT:INDEX``: an architecture of DeepNets-1M
    - ``FILE.pt2``: a program of ``torch.export``; or the program itself

    Networks are randomly initialised: trained weights are never loaded or downloaded.

    Args:
        name: The name.
        num_classes: Number of classes of the classifier; by default that of the library, and 10 for
            DeepNets-1M. A program, and a network that is no classifier, keeps what it has.
        image_size: Height and width of an image; by default what the network is made for, 224 for
            most and 32 for DeepNets-1M. A program keeps its own inputs.
        deepnets: Folder of generated files of DeepNets-1M; without it architectures are sampled.
        seed: Seed of sampled architectures.

    Returns:
        The network by name, which has not been built yet.

    Raises:
        ValueError: If there is no network of that name; the message has the nearest names.
        FileNotFoundError: If a file is named that does not exist.
        ModuleNotFoundError: If the library is not installed; the message says how to get it.
    """
    if isinstance(name, torch.export.ExportedProgram):
        return from_file.from_program(name)
    name = os.fspath(name)
    if name.startswith(from_deepnets.PREFIX):
        return from_deepnets.resolve(name, num_classes, image_size, deepnets, seed)
    if name.startswith(from_timm.PREFIX):
        return from_timm.resolve(name, num_classes, image_size)
    if name.startswith(from_transformers.PREFIX):
        return from_transformers.resolve(name, num_classes, image_size)
    if name.endswith(from_file.EXPORTED):
        return from_file.resolve_exported(name)
    if from_file.names_function(name):
        return from_file.resolve_function(name, num_classes, image_size)
    found = from_torchvision.resolve(name, num_classes, image_size)
    if found is None:
        raise ValueError(_unknown(name))
    return found


def known_names(beginning: str = "") -> list[str]:
    """All names of networks that begin with a text, of the libraries that are installed."""
    found: list[str] = []
    for prefix, (library, names) in _LIBRARIES.items():
        # A library is imported only if its names may be meant.
        if installed(library) and (not prefix or beginning.startswith(prefix)):
            found += [name for name in names() if name.startswith(beginning)]
    if beginning and not found:
        found = [prefix for prefix in _LIBRARIES if prefix and prefix.startswith(beginning)]
    return found


def _unknown(name: str) -> str:
    """Why a name without a prefix is none: with its nearest neighbours, in other libraries too."""
    close = nearest(name, from_torchvision.names())
    if not close:
        for prefix, (library, names) in _LIBRARIES.items():
            if prefix and installed(library):
                plain = {other.removeprefix(prefix): other for other in names()}
                close += [plain[other] for other in nearest(name, plain)]
    if close:
        return f"model: got {name!r}, which is not known; the nearest are {', '.join(close[:5])}"
    return f"model: got {name!r}, which is not known; needs {FORMS}"
