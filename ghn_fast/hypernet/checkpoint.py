"""Saving and loading hypernetworks.

A checkpoint is a folder with ``config.json`` (the fields of :class:`GHNConfig`) and
``model.safetensors`` (the weights, float32). The published ``.pt`` layout is read as well. Nothing
that is loaded can run code: safetensors, JSON and ``torch.load(weights_only=True)`` only.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ghn_fast.hypernet.config import GHNConfig
from ghn_fast.hypernet.ghn import GHN
from ghn_fast.hypernet.propagate import BUILT_IN
from ghn_fast.hypernet.published import is_published, published_config, published_state
from ghn_fast.utils.files import write_atomically
from ghn_fast.utils.logs import get_logger

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_BUNDLED = Path(__file__).resolve().parent.parent / "pretrained"
_LOG = get_logger(__name__)
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def bundled() -> list[str]:
    """Names of the pretrained hypernetworks that are part of the package."""
    return sorted(path.parent.name for path in _BUNDLED.glob(f"*/{CONFIG_FILE}"))


def from_pretrained(
    name_or_path: str | os.PathLike[str], *, device: str | torch.device = "cpu"
) -> GHN:
    """Load a hypernetwork.

    Args:
        name_or_path: Name of a bundled one (``"ghn2-digits"``), a checkpoint folder, the folder of
            a training run, a file in the published ``.pt`` layout, or ``"owner/name"`` of a model
            on the Hugging Face Hub in our layout.
        device: Where to put it.

    Returns:
        The hypernetwork, in evaluation mode.

    Raises:
        FileNotFoundError: If there is no such file, folder or model.
        ValueError: If the file is not a checkpoint, or weights are missing, of another shape or
            type, or not finite; the message names the first such entry, what was expected and what
            the file has.
    """
    path = _locate(os.fspath(name_or_path))
    config, state = _read_folder(path) if path.is_dir() else _read_file(path)
    _compare_sizes(config, state, str(path))
    ghn = GHN(config)
    load_weights(ghn, state, str(path))
    _LOG.info("hypernetwork %s loaded from %s", name_or_path, path)
    return ghn.to(device).eval()


def save_pretrained(ghn: GHN, folder: str | os.PathLike[str]) -> Path:
    """Save a hypernetwork as ``config.json`` and ``model.safetensors``, each replaced atomically.

    Returns:
        The folder.
    """
    from safetensors.torch import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in ghn.state_dict().items()}
    write_atomically(folder / WEIGHTS_FILE, save(state))
    text = json.dumps(ghn.config.to_dict(), indent=2) + "\n"
    write_atomically(folder / CONFIG_FILE, text)
    return folder


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


def _locate(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        return _newest_in_run(path)
    if name in bundled():
        return _BUNDLED / name
    if _HUB_NAME.fullmatch(name):
        return _download(name)
    raise FileNotFoundError(
        f"name_or_path: got {name!r}, needs a checkpoint file or folder, one of {bundled()}, or "
        "owner/name on the Hugging Face Hub"
    )


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


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"name_or_path: {name!r} is no local file or folder, none of the bundled {bundled()}, "
            f"and could not be had from the Hugging Face Hub: {str(error).splitlines()[0]}"
        ) from error


def _read_folder(path: Path) -> tuple[GHNConfig, dict[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config_path, weights_path = path / CONFIG_FILE, path / WEIGHTS_FILE
    for file in (config_path, weights_path):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: missing, a checkpoint needs it")
    try:
        values = json.loads(config_path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{config_path}: not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{config_path}: got a {type(values).__name__}, needs an object")
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
    try:
        values: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # the unpickler raises nearly anything on foreign bytes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not a checkpoint that can be loaded safely: {reason}") from error
    if not is_published(values):
        found = sorted(map(str, values)) if isinstance(values, Mapping) else type(values).__name__
        raise ValueError(
            f"{path}: not a checkpoint in the published layout, needs 'state_dict' and 'config', "
            f"got {found}"
        )
    state = values["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path}: entry 'state_dict' needs to be a mapping from names to tensors")
    try:
        return published_config(values["config"]), published_state(state)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from error
