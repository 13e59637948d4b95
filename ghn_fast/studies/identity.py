"""What makes two trainings the same: results and states are taken up for these alone."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

from ghn_fast.hypernet import GHN
from ghn_fast.studies.initialisation import FILES
from ghn_fast.studies.networks import Network
from ghn_fast.utils.json_files import to_json
from ghn_fast.vision.data import DATASETS
from ghn_fast.vision.images import ImageSet, ImageSplits

SHOWN = 60
"""Letters of a value in a message."""

# They are asked for by every training of a study.
_digests: WeakKeyDictionary[ImageSet, str] = WeakKeyDictionary()


class OtherTrainingError(ValueError):
    """A folder holds a training of something else than what is asked for."""


def about_network(network: Network) -> dict[str, Any]:
    """What identifies an architecture: name, configuration, and the file that it is from."""
    about: dict[str, Any] = {"name": network.name}
    if network.config is not None:
        about |= network.config.to_dict()
    if network.source is not None:
        about["file"] = file_digest(network.source)
    return {"network": about}


def about_start(init: str, ghn: GHN | None = None) -> dict[str, Any]:
    """What identifies where a training starts: the kind, with the hypernetwork or the file.

    Args:
        init: As :func:`ghn_fast.studies.initialise` takes it. A file is known by its contents.
        ghn: The hypernetwork, if parameters are predicted.
    """
    if init.endswith(FILES):
        return {"init": file_digest(init)}
    if init.startswith("predicted") and ghn is not None:
        return {"init": init, "hypernetwork": fingerprint(ghn)}
    return {"init": init}


def about_training(
    splits: ImageSplits, settings: Mapping[str, Any], images: str, seed: int
) -> dict[str, Any]:
    """What identifies how and on what a network is trained and evaluated."""
    data = {
        "name": splits.name,
        "classes": splits.num_classes,
        "image_size": splits.image_size,
        "augment": splits.augment,
        **{part: len(splits.split(part)) for part in ("train", "val", "test")},
    }
    if splits.name not in DATASETS:
        # The name of a folder does not say what is in it today, or under another root.
        parts = [images_digest(splits.split(part)) for part in ("train", "val", "test")]
        data["contents"] = hashlib.sha256("".join(parts).encode()).hexdigest()[:16]
    return {**settings, "seed": seed, "images": images, "dataset": data}


def start_name(init: str) -> str:
    """A start as part of a file's name; files of one name and other contents differ in it."""
    return f"{Path(init).stem}-{file_digest(init)[:8]}" if init.endswith(FILES) else init


def refuse_another(wanted: Mapping[str, Any], found: Mapping[str, Any], where: Path) -> None:
    """Refuse what was found if it is not what is wanted.

    Args:
        wanted: Identity of the training that is asked for.
        found: Identity of the training in a file, as JSON gave it back.
        where: Its folder, for the message.

    Raises:
        OtherTrainingError: If they differ; the message names the first difference.
    """
    new, old = dict(_flat(json.loads(to_json(wanted)))), dict(_flat(found))
    for name in (*new, *old):
        if name not in old:
            raise OtherTrainingError(
                f"{name}: got {_short(new[name])}, but {where} holds a training that does not say "
                "which one it has; choose another folder"
            )
        if name not in new or new[name] != old[name]:
            raise OtherTrainingError(
                f"{name}: got {_short(new.get(name))}, but {where} holds a training with "
                f"{_short(old[name])}; choose another folder or the same settings"
            )


def fingerprint(ghn: GHN) -> str:
    """16 letters that are others if a hypernetwork's settings or parameters are."""
    digest = hashlib.sha256(json.dumps(asdict(ghn.config), sort_keys=True, default=str).encode())
    for name, tensor in sorted(ghn.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def images_digest(images: ImageSet) -> str:
    """16 letters that are others if images or their classes are.

    Images in files that are decoded on demand are known by class folder, name and size of the file.
    """
    found = _digests.get(images)
    if found is None:
        digest = hashlib.sha256(images.targets.cpu().numpy().tobytes())
        if images.images is not None:
            digest.update(images.images.cpu().contiguous().numpy().data)
        for path in images.paths or ():
            name = "/".join(Path(path).parts[-2:])
            digest.update(f"{name} {os.stat(path).st_size}\n".encode(errors="surrogateescape"))
        found = _digests[images] = digest.hexdigest()[:16]
    return found


def file_digest(path: str | Path) -> str:
    """16 letters that are others if the contents of a file are."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        if isinstance(item, Mapping):
            yield from _flat(item, f"{prefix}{name}.")
        else:
            yield prefix + name, item


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
