"""Networks by the names that people use for them."""

from ghn_fast.models.model import NamedModel
from ghn_fast.models.resolve import known_names, resolve

__all__ = ["NamedModel", "known_names", "resolve"]
