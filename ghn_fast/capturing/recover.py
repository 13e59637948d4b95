"""Operations that PyTorch has no shape for: what they yield is found out on zeros."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from ghn_fast.capturing.known import MOST_ELEMENTS, as_meta, values_needed
from ghn_fast.capturing.selections import nms
from ghn_fast.capturing.tensors import edge, tensors_in
from ghn_fast.capturing.tracer import Recorder


def recover(
    recorder: Recorder,
    func: Any,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    given: tuple[Sequence[Any], dict[str, Any]],
    error: Exception,
) -> Any:
    """Find the result of an operation that failed on meta tensors.

    Args:
        recorder: The recorder.
        func, args, kwargs: The operation and its arguments, all of them meta.
        given: The arguments with their known values.
        error: What PyTorch said.

    Raises:
        ValuesNeededError: If the result depends on values.
        Exception: What PyTorch says about the arguments.
    """
    if getattr(func, "__name__", "") == "nms":
        return nms(recorder, args)
    leaves, structure = tree_flatten(given)
    numbers = [_number_if_single(leaf) for leaf in leaves]
    if any(a is not b for a, b in zip(leaves, numbers, strict=True)):
        try:
            metas = [as_meta(n) if isinstance(n, Tensor) else n for n in numbers]
            plain_args, plain_kwargs = tree_unflatten(metas, structure)
            return func(*plain_args, **plain_kwargs)
        except (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError):
            pass
    tensors = [tensor for tensor in tensors_in([*args, *kwargs.values()]) if tensor.is_meta]
    if not tensors or sum(tensor.numel() for tensor in tensors) > MOST_ELEMENTS:
        raise error
    real_args, real_kwargs = tree_map(_real_zeros, given)
    try:
        with torch.no_grad():
            result = func(*real_args, **real_kwargs)
    except Exception as real_error:
        raise (real_error if "meta" in str(error).lower() else error) from None
    if getattr(func, "__name__", "").endswith("_") and isinstance(args[0], Tensor):
        return args[0]
    if not any(True for _ in tensors_in(result)):
        if result is None:
            return None
        values_needed(recorder, func, args, kwargs)
    kind = "".join(part.capitalize() for part in str(getattr(func, "__name__", "")).split("_"))
    sources = [edge(tensor) for tensor in tensors]
    recorded = any(source is not None for source in sources)

    def out(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if recorded and (value.is_floating_point() or value.is_complex()):
            return recorder.record(kind, sources, value.shape, value)
        return torch.empty(value.shape, dtype=value.dtype, device="meta")

    return tree_map(out, result)


def _number_if_single(value: Any) -> Any:
    is_single = isinstance(value, Tensor) and not value.is_meta and value.dim() == 0
    return value.item() if is_single else value


def _real_zeros(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_meta:
        return torch.zeros(value.shape, dtype=value.dtype)
    return value
