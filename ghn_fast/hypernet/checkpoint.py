"""Saving and loading hypernetworks.

A checkpoint is a folder with ``config.json`` (the fields of :class:`GHNConfig`) and
``model.safetensors`` (the weights, float32). Published ``.pt`` layouts are read as well. Nothing
that is loaded can run code: safetensors, JSON, ``torch.load(weights_only=True)``, and an unpickler
that knows no name but those of tensors (:mod:`ghn_fast.hypernet.unpickle`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ghn_fast.hypernet import hub
from ghn_fast.hypernet.config import GHNConfig
from ghn_fast.hypernet.explain import ACCURACIES_FILE
from ghn_fast.hypernet.ghn import GHN
from ghn_fast.hypernet.propagate import BUILT_IN
from ghn_fast.hypernet.published import (
    inferred_config,
    is_bare,
    is_published,
    published_config,
    published_state,
)
from ghn_fast.hypernet.unpickle import load
from ghn_fast.utils.files import write_atomically
from ghn_fast.utils.logs import get_logger

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_BUNDLED = Path(__file__).resolve().parent.parent / "pretrained"
_LOG = get_logger(__name__)


def bundled() -> list[str]:
    """Names of the pretrained hypernetworks that are part of the package."""
    return sorted(path.parent.name for path in _BUNDLED.glob(f"*/{CONFIG_FILE}"))


def from_pretrained(
    name_or_path: str | os.PathLike[str],
    *,
    filename: str | None = None,
    rules: str | None = None,
    device: str | torch.device = "cpu",
) -> GHN:
    """Load a hypernetwork.

    Args:
        name_or_path: Name of a bundled one (``"ghn2-digits"``), a checkpoint folder, the folder of
            a training run, a file in a published layout (of GHN-1, GHN-2, GHN-3), or
            ``"owner/name"`` of a repository of the Hugging Face Hub.
        filename: A file of that repository, or of a local folder, that is in a published layout:
            ``from_pretrained("SamsungSAILMontreal/ghn3", filename="ghn3xlm16.pt")``. Without it the
            repository has to be in our layout. :func:`save_pretrained` writes it in ours, which
            loads faster.
        rules: Name of other rules for its graphs than the checkpoint's own
            (:class:`ghn_fast.graph.rules.GraphRules`): ``"ghn2-published"`` gives a GHN-2 the
            graphs of the published code, in which LayerScale and class tokens keep their values.
        device: Where to put it.

    Returns:
        The hypernetwork, in evaluation mode.

    Raises:
        FileNotFoundError: If there is no such file, folder or model, or no network; the message
            says what there is, or what to download and where to put it.
        ValueError: If the file is not a checkpoint, or weights are missing, of another shape or
            type, or not finite; the message names the first such entry, what was expected and what
            the file has.
    """
    path = _locate(os.fspath(name_or_path), filename)
    config, state = _read_folder(path) if path.is_dir() else _read_file(path)
    if rules is not None:
        config = replace(config, rules=rules)
    _compare_sizes(config, state, str(path))
    ghn = GHN(config)
    load_weights(ghn, state, str(path))
    accuracies = path / ACCURACIES_FILE
    ghn.accuracies = accuracies if accuracies.is_file() else None
    _LOG.info("hypernetwork %s loaded from %s", name_or_path, path)
    return ghn.to(device).eval()


def save_pretrained(ghn: GHN, folder: str | os.PathLike[str]) -> Path:
    """Save a hypernetwork as ``config.json`` and ``model.safetensors``, each replaced atomically.

    What its checkpoint said of the accuracy of predicted networks (``accuracies.json``) goes along;
    a file of these that the folder has from another hypernetwork is removed.

    Returns:
        The folder.
    """
    from safetensors.torch import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in ghn.state_dict().items()}
    weights = save(state)
    stale = folder / ACCURACIES_FILE
    if ghn.accuracies is None and stale.is_file() and not _holds(folder / WEIGHTS_FILE, weights):
        stale.unlink()
    write_atomically(folder / WEIGHTS_FILE, weights)
    text = json.dumps(ghn.config.to_dict(), indent=2) + "\n"
    write_atomically(folder / CONFIG_FILE, text)
    if ghn.accuracies is not None and ghn.accuracies.is_file():
        write_atomically(folder / ACCURACIES_FILE, ghn.accuracies.read_bytes())
    return folder


def _holds(path: Path, data: bytes) -> bool:
    """Whether a file has these contents."""
    return path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data


def load_weights(ghn: GHN, state: Mapping[str, Tensor], source: str) -> None:
    """Load weights after comparing every name, shape and type.

    Raises:
        ValueError: On the first difference, naming the entry, what was expected and what came; or
            if a weight is not finite.
    """
    expected = ghn.state_dict()
    _compare(expected, state, source)
    converted = {name: state[name].to(tensor.dtype) for name, tensor in expected.items()}
    for name, tensor in converted.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(
                f"{source}: entry '{name}' has NaN or infinite values, needs finite ones"
            )
    ghn.load_state_dict(converted)


def _compare_sizes(config: GHNConfig, state: Mapping[str, Tensor], source: str) -> None:
    """Compare weights with a configuration before anything of its size is allocated.

    Raises:
        ValueError: If they do not fit.
    """
    try:
        with torch.device("meta"):
            expected = GHN(config).state_dict()
    except (RuntimeError, OverflowError, MemoryError, NotImplementedError) as error:
        if config.propagator in BUILT_IN:
            raise ValueError(f"{source}: no network can be as large as {config}") from error
        return  # a network of the user's own may need values when it is built
    _compare(expected, state, source)


def _compare(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    for name, tensor in expected.items():
        if name not in state:
            raise ValueError(
                f"{source}: entry '{name}' is missing, expected shape {tuple(tensor.shape)}, got "
                "nothing"
            )
        if state[name].shape != tensor.shape:
            raise ValueError(
                f"{source}: entry '{name}' has the wrong shape, expected {tuple(tensor.shape)}, "
                f"got {tuple(state[name].shape)}"
            )
        if _kind(state[name]) != _kind(tensor):
            raise ValueError(
                f"{source}: entry '{name}' has the wrong type, expected {_kind(tensor)} such as "
                f"{tensor.dtype}, got {state[name].dtype}"
            )
    unknown = sorted(set(state) - set(expected))
    if unknown:
        got = tuple(state[unknown[0]].shape)
        raise ValueError(
            f"{source}: entry '{unknown[0]}' is unknown, expected no such entry, got shape {got}"
        )


def _kind(tensor: Tensor) -> str:
    """What is never converted silently: a type of numbers for another kind of them."""
    if tensor.is_floating_point():
        return "a floating-point type"
    return str(tensor.dtype)


def _locate(name: str, filename: str | None) -> Path:
    path = Path(name).expanduser()
    if filename is not None:
        return _locate_file(name, path, filename)
    if path.is_file():
        return path
    if path.is_dir():
        return _newest_in_run(path)
    if name in bundled():
        return _BUNDLED / name
    if hub.is_name(name):
        return download_checkpoint(name)
    raise FileNotFoundError(
        f"name_or_path: got {name!r}, needs a checkpoint file or folder, one of {bundled()}, or "
        "owner/name on the Hugging Face Hub"
    )


def download_checkpoint(repository: str, **options: Any) -> Path:
    """The folder of a checkpoint in our layout on the Hugging Face Hub.

    Raises:
        FileNotFoundError: As :func:`ghn_fast.hypernet.hub.download_folder`.
    """
    names = [CONFIG_FILE, WEIGHTS_FILE]
    return hub.download_folder(repository, names, optional=[ACCURACIES_FILE], **options)


def _locate_file(name: str, path: Path, filename: str) -> Path:
    if path.is_dir():
        if (path / filename).is_file():
            return path / filename
        held = sorted(entry.name for entry in path.iterdir() if entry.is_file())
        raise FileNotFoundError(f"filename: {path} holds no {filename!r}; its files are {held}")
    if not hub.is_name(name):
        raise FileNotFoundError(
            f"name_or_path: got {name!r} with a filename, needs a folder or owner/name on the "
            "Hugging Face Hub"
        )
    return hub.download(name, filename)


def _newest_in_run(path: Path) -> Path:
    """The checkpoint folder itself, or the newest checkpoint of a training run."""
    if (path / CONFIG_FILE).is_file():
        return path
    steps = sorted(path.glob(f"checkpoints/step-*/{CONFIG_FILE}"))
    if not steps:
        raise FileNotFoundError(
            f"{path}: neither a checkpoint ({CONFIG_FILE}, {WEIGHTS_FILE}) nor a training run with "
            "checkpoints"
        )
    return steps[-1].parent


def _read_folder(path: Path) -> tuple[GHNConfig, dict[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config_path, weights_path = path / CONFIG_FILE, path / WEIGHTS_FILE
    for file in (config_path, weights_path):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: missing, a checkpoint needs it")
    values = _read_json(config_path)
    try:
        config = GHNConfig.from_dict(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{config_path}: {error}") from error
    try:
        return config, load_file(weights_path)
    except SafetensorError as error:
        raise ValueError(f"{weights_path}: not a valid safetensors file: {error}") from error


def _read_file(path: Path) -> tuple[GHNConfig, dict[str, Tensor]]:
    if path.suffix == ".safetensors":
        raise ValueError(
            f"{path}: give the folder of the checkpoint, which holds {CONFIG_FILE}, too"
        )
    values = load(path)
    beside = _read_beside(path)
    try:
        if is_bare(values):
            return replace(inferred_config(values), **beside), published_state(values)
        if not is_published(values):
            found = (
                sorted(map(str, values)) if isinstance(values, Mapping) else type(values).__name__
            )
            raise ValueError(
                "not a checkpoint in the published layout, needs 'state_dict' and 'config', "
                f"got {found}"
            )
        state, config = values["state_dict"], values["config"]
        if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
            raise ValueError("entry 'state_dict' needs to be a mapping from names to tensors")
        return replace(published_config(config, state), **beside), published_state(state)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _read_beside(path: Path) -> dict[str, Any]:
    """What ``NAME.config.json`` beside a file says that the file does not: the cutoff.

    Raises:
        ValueError: If it is not valid.
    """
    beside = path.with_name(f"{path.name.split('.')[0]}.config.json")
    if not beside.is_file():
        return {}
    values = _read_json(beside)
    edges = values.get("virtual_edges")
    if edges is None:
        return {}
    if type(edges) is not int or edges < 1:
        raise ValueError(f"{beside}: virtual_edges: got {edges!r}, needs at least 1 (1 means none)")
    return {"virtual_edges": edges}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: got a {type(values).__name__}, needs an object")
    return values
