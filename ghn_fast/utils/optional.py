"""Libraries that need not be installed, and what to say where one is missing."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any


def require(module: str, extra: str, purpose: str) -> Any:
    """Import a library that is optional.

    Args:
        module: Name of the module, for example ``"torchvision"``.
        extra: The extra of ghn-fast that brings it, for example ``"vision"``.
        purpose: What needs it, as the subject of a sentence in the plural.

    Returns:
        The module.

    Raises:
        ModuleNotFoundError: If it is not installed; the message says how to install it. A library
            that is there but lacks one of its own is reported as it says itself.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != library:
            raise
        raise missing(library, extra, purpose) from None


def missing(library: str, extra: str, purpose: str) -> ModuleNotFoundError:
    """The error of :func:`require` for a library that is not installed."""
    return ModuleNotFoundError(
        f"{purpose} need {library}, which is not installed; "
        f"pip install 'ghn-fast[{extra}]' brings it",
        name=library,
    )


def installed(module: str) -> bool:
    """Whether a library can be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
