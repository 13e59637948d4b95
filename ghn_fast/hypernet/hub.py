"""Files of the Hugging Face Hub, and what to do where there is none or no network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def is_name(text: str) -> bool:
    """Whether a text may be the name of a repository, ``owner/name``."""
    return _NAME.fullmatch(text) is not None


def download(repository: str, filename: str, **options: Any) -> Path:
    """One file of a repository, from the cache or from the network.

    Args:
        repository: ``owner/name``.
        filename: The file.
        options: What ``huggingface_hub`` is told beside (revision, token, ...).

    Raises:
        FileNotFoundError: If the repository does not hold it, which says what it holds; or if it is
            not in the cache and cannot be had, which says what to download and where to put it.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    try:
        return Path(hf_hub_download(repository, filename, **options))
    except LocalEntryNotFoundError as error:
        raise _without_network(repository, filename, error, options) from error
    except EntryNotFoundError as error:
        held = ", ".join(_files(repository)) or "none that could be listed"
        raise FileNotFoundError(
            f"filename: {repository} on the Hugging Face Hub holds no {filename!r}; its files are "
            f"{held}"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise _without_network(repository, filename, error, options) from error


def download_folder(
    repository: str, names: Sequence[str], *, optional: Sequence[str] = (), **options: Any
) -> Path:
    """The folder of a repository with some of its files, those of a checkpoint in our layout.

    Args:
        repository: ``owner/name``.
        names: The files.
        optional: Files that come along where there are any.
        options: What ``huggingface_hub`` is told beside (revision, token, ...).

    Raises:
        FileNotFoundError: As :func:`download`; or if the repository holds none of them, which says
            what it holds.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        wanted = [*names, *optional]
        folder = Path(snapshot_download(repository, allow_patterns=wanted, **options))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise _without_network(repository, " and ".join(names), error, options) from error
    if not any((folder / name).is_file() for name in names):
        held = ", ".join(_files(repository)) or "none that could be listed"
        raise FileNotFoundError(
            f"name_or_path: {repository} on the Hugging Face Hub has no checkpoint in our layout "
            f"({', '.join(names)}); choose one of its files with filename=...: {held}"
        )
    return folder


def _files(repository: str) -> list[str]:
    """Files of a repository that may hold weights; none where they cannot be listed."""
    from huggingface_hub import list_repo_files

    try:
        return [name for name in list_repo_files(repository) if not name.startswith(".")]
    except Exception:  # whatever keeps the Hub from answering, the caller has another error to tell
        return []


def _without_network(
    repository: str, filename: str, error: Exception, options: Mapping[str, Any]
) -> FileNotFoundError:
    text = str(error).strip()
    reason = text.splitlines()[0] if text else type(error).__name__
    told = ", ".join(f"{key}={value!r}" for key, value in options.items() if key != "token")
    return FileNotFoundError(
        f"{repository!r}{f', {told},' if told else ''} could not be had from the Hugging Face Hub "
        f"({reason}). Without network, download {filename} from "
        f"https://huggingface.co/{repository}/tree/main elsewhere, copy it here, and give its path "
        "instead of the name; or copy the cache (~/.cache/huggingface or $HF_HOME) of a machine "
        "that has loaded it"
    )
