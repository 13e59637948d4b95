"""The way to the Hugging Face Hub and back: what ``GHN`` does by the names of that house."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch

from ghn_fast.hypernet.hub import download, is_name
from ghn_fast.hypernet.model_card import CARD_FILE, model_card, read_results
from ghn_fast.utils.files import write_atomically


def load(
    name_or_path: str | os.PathLike[str],
    *,
    device: str | torch.device,
    hub: dict[str, Any],
    **options: Any,
) -> Any:
    """Load a hypernetwork; what is said of the Hub is heeded where it is asked.

    Args:
        name_or_path: As in :func:`ghn_fast.from_pretrained`.
        device: Where to put it.
        hub: What ``huggingface_hub`` is told beside the name; empty for its defaults.
        options: What :func:`ghn_fast.from_pretrained` takes beside.
    """
    from ghn_fast.hypernet.checkpoint import bundled, download_checkpoint, from_pretrained

    name = os.fspath(name_or_path)
    there = Path(name).expanduser().exists() or name in bundled()
    if not hub or there or not is_name(name):
        return from_pretrained(name_or_path, device=device, **options)
    filename = options.pop("filename", None)
    found = download(name, filename, **hub) if filename else download_checkpoint(name, **hub)
    return from_pretrained(found, device=device, **options)


def save(
    ghn: Any,
    folder: str | os.PathLike[str],
    *,
    name: str = "owner/name",
    run: str | os.PathLike[str] | None = None,
    reports: Sequence[str | os.PathLike[str]] = (),
    license: str | None = None,
) -> Path:
    """Save a hypernetwork with its model card.

    Args:
        ghn: The hypernetwork.
        folder: Where to.
        name: Its name on the Hub, for the card.
        run: Folder of the run that trained it, for the card.
        reports: Files or folders that ``ghn-fast evaluate`` wrote, for the card.
        license: Identifier of the licence of the weights, for the card.

    Returns:
        The folder.
    """
    from ghn_fast.hypernet.checkpoint import save_pretrained

    results = read_results(None if run is None else Path(run), [Path(p) for p in reports])
    parameters = sum(parameter.numel() for parameter in ghn.parameters())
    card = model_card(ghn.config, results, name=name, parameters=parameters, license=license)
    written = save_pretrained(ghn, folder)
    write_atomically(written / CARD_FILE, card)
    return written


def push(
    ghn: Any,
    repo_id: str,
    *,
    commit_message: str,
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    create_pr: bool | None = None,
    **card: Any,
) -> str:
    """Save into a repository of the Hub, which is made if it does not exist.

    Returns:
        The address of the commit.

    Raises:
        ValueError: If ``repo_id`` is no ``owner/name``.
    """
    from huggingface_hub import HfApi

    if not is_name(repo_id):
        raise ValueError(f"repo_id: got {repo_id!r}, needs owner/name")
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save(ghn, folder, name=repo_id, **card)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if branch is not None:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message,
            revision=branch,
            create_pr=create_pr,
        )
    return str(done)


class Published:
    """What a hypernetwork does by the names that models of the Hugging Face Hub have for it.

    The signatures are those of ``huggingface_hub.PyTorchModelHubMixin``.
    """

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        device: str | torch.device = "cpu",
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **options: Any,
    ) -> Self:
        """Load a hypernetwork, as :func:`ghn_fast.from_pretrained`, with the options of the Hub.

        Args:
            pretrained_model_name_or_path: Name, folder, file, or ``owner/name`` on the Hub.
            device: Where to put it.
            force_download, token, cache_dir, local_files_only, revision: What ``huggingface_hub``
                is told, where the Hub is asked.
            options: What :func:`ghn_fast.from_pretrained` takes beside.

        Returns:
            The hypernetwork, in evaluation mode.

        Raises:
            FileNotFoundError, ValueError: As :func:`ghn_fast.from_pretrained`.
        """
        told = {
            "force_download": force_download or None,
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only or None,
            "revision": revision,
        }
        loaded: Self = load(
            pretrained_model_name_or_path,
            device=device,
            hub={name: value for name, value in told.items() if value is not None},
            **options,
        )
        return loaded

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: Mapping[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> Path:
        """Save as ``config.json``, ``model.safetensors`` and a model card (``README.md``).

        Args:
            save_directory: The folder.
            repo_id: Its name on the Hub, ``owner/name``; that of the folder in the card otherwise.
            push_to_hub: Whether to push it there, too.
            model_card_kwargs: What the card is written from: ``run`` (folder of the run that
                trained it), ``reports`` (what ``ghn-fast evaluate`` wrote), ``license``.
            push_to_hub_kwargs: As in :meth:`push_to_hub`.

        Returns:
            The folder.

        Raises:
            ValueError: If a file that the card is written from cannot be read, or ``repo_id`` is
                missing for a push.
        """
        card = dict(model_card_kwargs or {})
        if push_to_hub and repo_id is None:
            raise ValueError("repo_id: got None with push_to_hub=True, needs owner/name")
        name = repo_id or Path(save_directory).resolve().name
        folder = save(self, save_directory, name=name, **card)
        if push_to_hub and repo_id is not None:
            self.push_to_hub(repo_id, model_card_kwargs=card, **push_to_hub_kwargs)
        return folder

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Hypernetwork of ghn_fast",
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
        model_card_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Push weights, configuration and model card to the Hugging Face Hub.

        Args:
            repo_id: ``owner/name``; the repository is made if it does not exist.
            commit_message, private, token, branch, create_pr: As in ``huggingface_hub``.
            model_card_kwargs: As in :meth:`save_pretrained`.

        Returns:
            The address of the commit.

        Raises:
            ValueError: If ``repo_id`` is no ``owner/name``.
        """
        return push(
            self,
            repo_id,
            commit_message=commit_message,
            private=private,
            token=token,
            branch=branch,
            create_pr=create_pr,
            **dict(model_card_kwargs or {}),
        )
