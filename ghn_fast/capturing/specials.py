"""Functions of PyTorch that a forward pass on meta tensors needs more than shapes for.

Some only look at the shape of features and yield known values (``zeros_like``); some read a value
of features, which is not there (``item``); some yield a tensor whose size depends on values
(:mod:`ghn_fast.capturing.selections`); some stop gradients, through which a record goes on
(``detach``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ghn_fast.capturing import selections
from ghn_fast.capturing.known import (
    MOST_ELEMENTS,
    UnsupportedError,
    constructors,
    values_needed,
    zeros_like_without_memory,
)
from ghn_fast.capturing.tensors import edge, tensors_in
from ghn_fast.capturing.tracer import Recorder

Special = Callable[..., Any]
"""Takes the recorder, a function, its arguments and keyword arguments; ``NotImplemented`` leaves it
to what is done with others."""


# ---- functions that look at the shape and type of features alone


def _by_shape(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """A tensor with values of its own, of the shape or type of features."""
    others = (args[1:], {key: v for key, v in kwargs.items() if key not in ("input", "self")})
    if not args or _has_meta(others):
        return NotImplemented
    return recorder.known.run(func, (_proxy(args[0]), *args[1:]), _without_pinning(kwargs))


def _in_shape_of(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """A known tensor in the shape or type of features."""
    if not isinstance(args[0], Tensor) or args[0].is_meta or len(args) < 2:
        return NotImplemented
    return recorder.known.run(func, tree_map(_proxy, args), tree_map(_proxy, kwargs))


def _finite(value: bool) -> Special:
    def special(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
        """Features are finite."""
        if not args or args[0].numel() > MOST_ELEMENTS:
            return NotImplemented
        full = torch.ones if value else torch.zeros
        return recorder.known.own(full(args[0].shape, dtype=torch.bool))

    return special


def _always(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    return recorder.known.own(torch.ones((), dtype=torch.bool))


def _device(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """All tensors of a forward pass say that they are on one device, as in the real network."""
    return torch.device("cpu")


def _to(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    tensor, *rest = args
    if not tensor.is_meta:
        return _in_shape_of(recorder, func, args, kwargs)
    rest = [torch.device("meta") if _is_device(value) else value for value in rest]
    kwargs = {key: torch.device("meta") if key == "device" else v for key, v in kwargs.items()}
    kwargs = tree_map(lambda v: _own_meta(v) if isinstance(v, Tensor) else v, kwargs)
    return tensor.to(*(_own_meta(v) if isinstance(v, Tensor) else v for v in rest), **kwargs)


def _type(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    dtype = torch.empty(0, dtype=args[0].dtype).type(*args[1:], **kwargs)
    return dtype if isinstance(dtype, str) else args[0].to(dtype.dtype)


def _is_device(value: Any) -> bool:
    return isinstance(value, (torch.device, str)) or type(value) is int


def _own_meta(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_meta else torch.empty(0, dtype=tensor.dtype, device="meta")


def _proxy(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_meta:
        return zeros_like_without_memory(value)
    return value


def _has_meta(values: Any) -> bool:
    found = False

    def look(value: Any) -> None:
        nonlocal found
        found = found or (isinstance(value, Tensor) and value.is_meta)

    tree_map(look, values)
    return found


def _without_pinning(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if key != "pin_memory"}


# ---- gradients


def _same(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    return args[0]


def _through(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Detached features flow on: gradients stop there, values do not."""
    tensor = args[0]
    return tensor.view_as(tensor) if tensor.is_meta else NotImplemented


def _keep_data(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    """``p.data = value`` changes values, and they are not there."""
    tensor, value = args
    return None if tensor.shape == value.shape and tensor.requires_grad else NotImplemented


def _requires_grad(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    """Inputs may start to require gradients; what has a record keeps it."""
    tensor, wanted = args[0], (*args[1:], True)[0]
    if tensor.is_meta and tensor.grad_fn is None and wanted and tensor.is_floating_point():
        tensor.requires_grad_(True)
    return None if getattr(func, "__name__", "") == "__set__" else tensor


def _gradient(recorder: Recorder, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """``torch.autograd.grad``: one operation for each input, from the differentiated outputs."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return NotImplemented
    names = ("outputs", "inputs", "grad_outputs")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    sources = [
        edge(tensor)
        for name in ("outputs", "grad_outputs")
        for tensor in tensors_in(given.get(name))
    ]
    return tuple(
        recorder.record("AutogradGrad", sources, tensor.shape, tensor)
        for tensor in tensors_in(given["inputs"])
    )


def _backward(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    raise UnsupportedError(
        "the forward pass calls backward(), and gradients are not computed while a graph is "
        "captured; torch.autograd.grad can be captured"
    )


def _never(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> bool:
    """No nested tensors: the encoder's fast path computes the same without a record."""
    return False


def _empty(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """A constructor that is told a shape by features: ``torch.as_tensor(x)``, ``torch.full``."""
    kwargs = {**kwargs, "device": "meta"}
    return recorder.on_meta(func, args, kwargs)


def _table() -> dict[Any, Special]:
    t = torch.Tensor
    table: dict[Any, Special] = dict.fromkeys(constructors(), _empty)
    for name in _READING.split():
        for owner in (torch, t):
            if hasattr(owner, name):
                table[getattr(owner, name)] = values_needed
    for name in _SHAPE_READING.split():
        for owner in (torch, t):
            if hasattr(owner, name):
                table[getattr(owner, name)] = _by_shape
    for names, special in _SPECIALS.items():
        for name in names.split():
            for owner in (torch, t):
                if hasattr(owner, name):
                    table[getattr(owner, name)] = special
    table.update(
        {
            t.data.__get__: _through,  # type: ignore[attr-defined]
            t.data.__set__: _keep_data,  # type: ignore[attr-defined]
            t.device.__get__: _device,  # type: ignore[attr-defined]
            t.is_meta.__get__: _never,  # type: ignore[attr-defined]
            t.requires_grad.__set__: _requires_grad,  # type: ignore[attr-defined]
            torch.autograd.grad: _gradient,
            torch.autograd.backward: _backward,
            torch.functional.unique: selections.unique,
            torch.functional.unique_consecutive: selections.unique,
        }
    )
    return table


_READING = """
__array__ __bool__ __complex__ __contains__ __float__ __index__ __int__ allclose equal is_nonzero
item numpy tolist
"""
_SHAPE_READING = """
empty_like full_like new new_empty new_empty_strided new_full new_ones new_tensor new_zeros
ones_like rand_like randint_like randn_like zeros_like
"""
_SPECIALS: dict[str, Special] = {
    "isnan isinf isneginf isposinf": _finite(False),
    "isfinite": _finite(True),
    # What is checked of distributions holds for features.
    "_is_all_true": _always,
    "type_as expand_as reshape_as view_as": _in_shape_of,
    "to": _to,
    "type": _type,
    "cuda cpu pin_memory detach_": _same,
    "detach": _through,
    "requires_grad_": _requires_grad,
    "backward": _backward,
    "nonzero argwhere": selections.nonzero,
    "where": selections.where,
    "masked_select": selections.masked_select,
    "unique unique_consecutive": selections.unique,
    "repeat_interleave": selections.repeat_interleave,
    "tensor_split": selections.tensor_split,
    "__getitem__": selections.getitem,
    "__setitem__": selections.setitem,
    "_pack_padded_sequence": selections.pack,
    "_pad_packed_sequence": selections.unpack,
    "_nested_tensor_from_mask_left_aligned": _never,
}

SPECIALS = _table()
"""What is done with each of these functions, if features or parameters are among its arguments."""
