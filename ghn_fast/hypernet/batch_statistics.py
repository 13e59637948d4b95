"""Batch normalisation without running statistics, and the way back.

A hypernetwork predicts scale and shift of a BatchNorm layer but no running statistics
(arXiv 2110.13100), so its networks normalise by the statistics of the current batch, when they are
evaluated too.

The state dict keeps its keys. A layer without running statistics puts fresh ones (mean 0, variance
1) into it, so that a predicted network loads into a network as it was built. The other way round,
fresh statistics say nothing and the layer goes on with those of the batch; statistics that were
collected from images are taken, and the layer uses them from then on.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ghn_fast.hypernet.named import named_modules

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_NO_STATISTICS = dict.fromkeys(_STATISTICS)
# Under this key our hooks of the state dict lie among those of a module.
HOOK_KEY = "ghn_fast"


def norm_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """All BatchNorm layers with their names, each once and in order."""
    return [
        (p[:-1], module) for p, module in named_modules(model) if isinstance(module, _BatchNorm)
    ]


def use_batch_statistics(model: nn.Module) -> list[str]:
    """Make every BatchNorm layer normalise by batch statistics, in train and in eval mode.

    Args:
        model: The network. Its running statistics are dropped in place; its state dict keeps their
            keys, with the values of a fresh layer.

    Returns:
        The names of the modules that were changed; those without running statistics already are not
        among them.
    """
    return drop_running_statistics(norm_layers(model))


def drop_running_statistics(layers: Iterable[tuple[str, nn.Module]]) -> list[str]:
    """:func:`use_batch_statistics` for BatchNorm layers that are known, with their names."""
    changed = []
    for name, module in layers:
        # A module's own way of getting buffers and setting attributes takes as long as predicting.
        buffers = module._buffers
        if not module.track_running_stats and not any(
            buffers.get(buffer) is not None for buffer in _STATISTICS
        ):
            continue
        in_state = buffers.get("running_mean") is not None
        object.__setattr__(module, "track_running_stats", False)
        buffers.update(_NO_STATISTICS)
        if in_state:
            module._state_dict_hooks[HOOK_KEY] = _add_statistics  # type: ignore[index]
            hook = partial(_load_statistics, module)
            module._load_state_dict_pre_hooks[HOOK_KEY] = hook  # type: ignore[index]
        changed.append(name)
    return changed


def track_running_statistics(model: nn.Module, momentum: float | None = 0.1) -> list[str]:
    """Give every BatchNorm layer without running statistics fresh ones, for fine-tuning.

    Means start at 0 and variances at 1, on the device and in the dtype of the layer's parameters
    (of the model's first parameter for a layer that has none).

    Args:
        model: The network, which is changed in place.
        momentum: As in PyTorch: the weight of the newest batch, ``None`` for the plain average over
            batches.

    Returns:
        The names of the modules that were changed; those with running statistics keep them and
        their momentum.

    Raises:
        ValueError: If ``momentum`` is outside 0..1.
    """
    if momentum is not None and not 0 <= momentum <= 1:
        raise ValueError(f"momentum must be None or lie between 0 and 1, got {momentum}")
    fallback = next(iter(model.parameters()), torch.empty(0))
    changed = []
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm):
            continue
        if module.track_running_stats and module.running_mean is not None:
            continue
        _track(module, fallback if module.weight is None else module.weight)
        module.momentum = momentum
        changed.append(name)
    return changed


def _track(layer: Any, like: Tensor) -> None:
    """Give a layer fresh running statistics, and let its state dict be its own again."""
    for name, value in _fresh_statistics(layer, like).items():
        setattr(layer, name, value)
    layer.track_running_stats = True
    for hooks in (layer._state_dict_hooks, layer._load_state_dict_pre_hooks):
        hooks.pop(HOOK_KEY, None)


def _fresh_statistics(layer: Any, like: Tensor) -> dict[str, Tensor]:
    """Running statistics as a layer is built with, on the device and in the dtype of a tensor."""
    count, device, dtype = layer.num_features, like.device, like.dtype
    return {
        "running_mean": torch.zeros(count, device=device, dtype=dtype),
        "running_var": torch.ones(count, device=device, dtype=dtype),
        "num_batches_tracked": torch.zeros((), device=device, dtype=torch.long),
    }


def _add_statistics(layer: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """The state dict of a layer without running statistics has those of a fresh one."""
    like = torch.empty(0) if layer.weight is None else layer.weight
    for name, value in _fresh_statistics(layer, like).items():
        state.setdefault(f"{prefix}{name}", value)


def _load_statistics(layer: Any, state: dict[str, Any], prefix: str, *others: Any) -> None:
    """Leave fresh statistics of a state dict out; make room for those that were collected."""
    mean, variance = (state.get(f"{prefix}{name}") for name in _STATISTICS[:2])
    if mean is None or variance is None:
        return
    if mean.is_meta or bool((mean == 0).all() and (variance == 1).all()):
        for name in _STATISTICS:
            state.pop(f"{prefix}{name}", None)
        return
    _track(layer, mean if layer.weight is None else layer.weight)
