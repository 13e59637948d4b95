"""Modules and parameters with their names, in a fraction of the time that torch's walks take."""

from __future__ import annotations

from torch import Tensor, nn


def named_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """All modules, each once and in order, with their names as prefixes ("" or ending in a dot).

    As ``model.named_modules()``, whose nested generators take several times as long.
    """
    found: list[tuple[str, nn.Module]] = []
    seen: set[int] = set()
    waiting: list[tuple[str, nn.Module]] = [("", model)]
    while waiting:
        prefix, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        found.append((prefix, module))
        children = module._modules
        if children:
            waiting += [
                (f"{prefix}{name}.", child)
                for name, child in reversed(children.items())
                if child is not None
            ]
    return found


def named_parameters(model: nn.Module) -> list[tuple[str, Tensor]]:
    """As ``list(model.named_parameters())``, which takes several times as long."""
    found: list[tuple[str, Tensor]] = []
    seen: set[int] = set()
    for prefix, module in named_modules(model):
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                found.append((prefix + name, parameter))
    return found
