"""Whether a stored state of an optimizer is one that it can go on with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_ADAM = frozenset(("exp_avg", "exp_avg_sq", "step"))
_MUON = frozenset(("momentum_buffer",))
# What a run may change when it is continued, or sets anew in each step.
_MAY_DIFFER = frozenset(("lr", "initial_lr"))


def check_optimizer_state(
    state: Any, optimizer: torch.optim.Optimizer, steps: int, updates: int | None = None
) -> None:
    """Compare a stored state with the parameters that it is for.

    torch compares lengths alone, and Adam's fused step reads and writes as many elements of the
    moments as the parameter has, in the order in which they lie in memory.

    Args:
        state: What ``optimizer.state_dict()`` gave, from a file.
        optimizer: One of :func:`ghn_fast.metatrain.optimizers.make_optimizer`, with the parameters
            that it is to go on with.
        steps: Steps that the run had done.
        updates: Updates among them, if that is known; before the first there are no moments.

    Raises:
        ValueError, TypeError, LookupError: If the state is of other parameters, or damaged.
    """
    groups = optimizer.state_dict()["param_groups"]
    _check_groups(state["param_groups"], groups)
    parameters = [
        (parameter, _MUON if "momentum" in group else _ADAM)
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    moments = state["state"]
    if not isinstance(moments, Mapping):
        raise TypeError(f"state: got a {type(moments).__name__}, needs a mapping")
    if moments or (steps > 0 and updates != 0):
        numbers = [number for group in groups for number in group["params"]]
        if set(moments) != set(numbers):
            raise ValueError(f"state: has {len(moments)} parameters, needs {len(numbers)}")
        for number, (parameter, entries) in zip(numbers, parameters, strict=True):
            _check_moments(f"state[{number}]", moments[number], parameter, entries, steps)


def _check_groups(stored: Any, groups: list[dict[str, Any]]) -> None:
    if len(stored) != len(groups):
        raise ValueError(f"param_groups: has {len(stored)}, needs {len(groups)}")
    for have, need in zip(stored, groups, strict=True):
        for name in (need.keys() & have.keys()) - _MAY_DIFFER:
            if have[name] != need[name]:
                raise ValueError(f"{name}: is {have[name]}, needs {need[name]}")
        if "params" not in have:
            raise ValueError("params: is missing")


def _check_moments(
    where: str, stored: Any, parameter: Tensor, entries: frozenset[str], steps: int
) -> None:
    if not isinstance(stored, Mapping) or set(stored) != entries:
        raise ValueError(f"{where}: needs the entries {', '.join(sorted(entries))}")
    if "step" in entries:
        done = stored["step"]
        if not isinstance(done, Tensor) or done.ndim or not 0 < float(done) <= steps:
            raise ValueError(f"{where}: step: needs one number from 1 to {steps}")
    for name in sorted(entries - {"step"}):
        value = stored[name]
        if not isinstance(value, Tensor):
            raise TypeError(f"{where}: {name}: got a {type(value).__name__}, needs a tensor")
        got = (value.shape, value.dtype, value.layout)
        if got != (parameter.shape, parameter.dtype, parameter.layout):
            raise ValueError(
                f"{where}: {name}: got {list(value.shape)} of {value.dtype}, needs "
                f"{list(parameter.shape)} of {parameter.dtype}"
            )
        if value.stride() != parameter.stride():
            raise ValueError(f"{where}: {name}: lies in memory in another order than its parameter")
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{where}: {name}: has NaN or infinite values")
