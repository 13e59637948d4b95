"""What people are told about a forward pass that could not be followed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ghn_fast.capturing.known import UnsupportedError, ValuesNeededError
from ghn_fast.capturing.shadow import Shadow
from ghn_fast.capturing.tensors import tensors_in

# What PyTorch, and assertions of layers, say if an input has another size than a layer expects.
_ABOUT_SIZES = re.compile(
    r"\bshapes?\b|\bdims?\b|\bsizes?\b|dimension|channels|\bheight|\bwidth|resolution|divisible|elements"
    r"|too small|kernel size|to match|equal to \d|in_features|stride",
    re.IGNORECASE,
)
_SIZE = "If the network expects another input size, pass it, for example input_shape=(3, 32, 32)"
_ARGUMENTS = (
    "If the network takes several inputs, pass a shape for each, or example_inputs with the "
    "arguments"
)
_VALUES = (
    "The capture has shapes but no values of features: a forward pass that depends on values before"
    " it comes to its last parameter cannot be captured"
)
_HOOKS = "Hooks of the network were not called, apart from its own; it may need what they do"


def explain_failure(
    model: nn.Module,
    shadow: Shadow,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    error: Exception,
) -> str:
    """Say which layer failed, why, and what to change."""
    path, layer = _where(model, shadow, error)
    shapes = [tuple(t.shape) for t in tensors_in([*args, *kwargs.values()])]
    of = f"shape {shapes[0]}" if len(shapes) == 1 else f"shapes {shapes}"
    text = str(error).strip()
    reason = text.splitlines()[0] if text else type(error).__name__
    if isinstance(error, UnsupportedError):
        hint = ""
    elif isinstance(error, ValuesNeededError):
        hint = _VALUES
    elif isinstance(error, TypeError) and "argument" in reason:
        hint = _ARGUMENTS
    elif shadow.ignored_hooks:
        hint = _HOOKS
    else:
        is_size = isinstance(error, (RuntimeError, ValueError, AssertionError))
        hint = _SIZE if is_size and _ABOUT_SIZES.search(text) else ""
    message = (
        f"model: the forward pass failed in layer '{path or 'the network itself'}' ({layer}) on an "
        f"input of {of}: {reason}"
    )
    return f"{message}. {hint}" if hint else message


def explain_partial(shadow: Shadow, error: Exception) -> str:
    """Say what of a forward pass a graph stands for that does not come to its end."""
    path, layer = _where(shadow.module, shadow, error)
    return (
        f"the forward pass was followed up to layer '{path or 'the network itself'}' ({layer}), "
        f"where {str(error).strip()}; all parameters were used before"
    )


def _where(model: nn.Module, shadow: Shadow, error: Exception) -> tuple[str, str]:
    """Name and class of the innermost module whose code was running."""
    where: Any = model
    path = ""
    trace = error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        name = shadow.name_of(owner) if isinstance(owner, nn.Module) else None
        if name is not None:
            where, path = owner, name
        trace = trace.tb_next
    return path, type(where).__name__
