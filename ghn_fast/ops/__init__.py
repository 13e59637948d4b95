"""Operations: validation, back ends and the plain-PyTorch reference of each."""

import importlib
import pkgutil


def load_all() -> None:
    """Import the module of every op: each registers itself when it is imported."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
