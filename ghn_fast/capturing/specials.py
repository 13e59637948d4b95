"""Functions of PyTorch that a forward pass on meta tensors needs more than shapes for.

Some only look at the shape of features and yield known values (``zeros_like``); some read a value
of features, which is not there (``item``); some yield a tensor whose size depends on values of
features (``nonzero``), where all elements are assumed to be chosen; some stop gradients, through
which a record goes on (``detach``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from ghn_fast.capturing.known import MOST_ELEMENTS, constructors, zeros_like_without_memory
from ghn_fast.capturing.tensors import edge, tensors_in

if TYPE_CHECKING:
    from ghn_fast.capturing.tracer import Recorder

Special = Callable[..., Any]
"""Takes the recorder, a function, its arguments and keyword arguments; ``NotImplemented`` leaves it
to what is done with others."""


class ValuesNeededError(RuntimeError):
    """The forward pass asks for the value of a tensor that depends on features or parameters."""


class UnsupportedError(RuntimeError):
    """The forward pass does something that a capture cannot follow; the message says what."""


def _values_needed(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    raise ValuesNeededError(
        f"{_name(func)} asks for values of a tensor that depends on features or parameters"
    )


def _name(func: Any) -> str:
    name = str(getattr(func, "__name__", func))
    return _SAID.get(name, f"'{name}'")


_SAID = {
    "__bool__": "a condition",
    "__int__": "int()",
    "__float__": "float()",
    "__index__": "an index",
    "__contains__": "'in'",
    "item": "'.item()'",
    "tolist": "'.tolist()'",
    "numpy": "'.numpy()'",
    "__array__": "NumPy",
}


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


# ---- functions whose result has a size that depends on values


def _all_places(recorder: Recorder, shape: Sequence[int]) -> tuple[Tensor, ...]:
    """Index tensors of all elements: what ``nonzero`` yields if no element is zero."""
    recorder.assumed["that conditions on features hold for all elements"] = None
    count = torch.Size(shape).numel()
    return tuple(
        torch.empty(count, dtype=torch.int64, device="meta") for _ in range(max(1, len(shape)))
    )


def _nonzero(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    places = _all_places(recorder, args[0].shape)
    if kwargs.get("as_tuple") or args[1:] == (True,):
        return places
    return torch.stack(places[: args[0].dim()], 1) if args[0].dim() else places[0][:, None][:, :0]


def _where(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    if len(args) + len(kwargs) > 1:
        return NotImplemented
    return _all_places(recorder, args[0].shape)


def _masked_select(
    recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> Any:
    tensor, mask = (*args, *kwargs.values())
    tensor, mask = torch.broadcast_tensors(_to_meta(tensor), mask)
    return _getitem(recorder, torch.Tensor.__getitem__, (tensor, mask), {})


def _unique(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    recorder.assumed["that values of features which are counted are all the same"] = None
    tensor = args[0]
    result = [torch.empty(1, dtype=tensor.dtype, device="meta")]
    if kwargs.get("return_inverse") or args[2:3] == (True,):
        result.append(torch.empty(tensor.shape, dtype=torch.int64, device="meta"))
    if kwargs.get("return_counts") or args[3:4] == (True,):
        result.append(torch.empty(1, dtype=torch.int64, device="meta"))
    return result[0] if len(result) == 1 else tuple(result)


def _nms(recorder: Recorder, args: Sequence[Any]) -> Any:
    """Non-maximum suppression keeps all boxes."""
    return _all_places(recorder, (args[0].shape[0],))[0]


def _repeat_interleave(
    recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> Any:
    names = ("input", "repeats", "dim")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    tensor, repeats, dim = given.get("input"), given.get("repeats"), given.get("dim")
    if not isinstance(tensor, Tensor) or not isinstance(repeats, Tensor):
        return NotImplemented
    if dim is None:
        tensor, dim = _to_meta(tensor).reshape(-1), 0
    count = tensor.shape[dim]
    if repeats.is_meta:
        recorder.assumed["that counts which depend on features are 1"] = None
        places = torch.empty(count, dtype=torch.int64, device="meta")
    else:
        known = torch.arange(count).repeat_interleave(repeats.cpu())
        places = torch.empty(known.shape, dtype=torch.int64, device="meta")
    return _to_meta(tensor).index_select(dim, places)


def _getitem(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    tensor, index = args
    if type(index) in (int, slice) and not _tensors_in_slice(index):
        return NotImplemented
    return recorder.on_meta(func, (_to_meta(tensor), _index(recorder, index)), {})


def _setitem(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    tensor, index, value = args
    if not tensor.is_meta:
        tensor = recorder.known.lose(tensor)
    value = _to_meta(value) if isinstance(value, Tensor) else value
    return recorder.on_meta(func, (tensor, _index(recorder, index), value), {})


def _index(recorder: Recorder, index: Any) -> Any:
    """An index without values: masks become places, single known numbers become numbers."""
    items = index if isinstance(index, tuple) else (index,)
    result: list[Any] = []
    for item in items:
        if isinstance(item, slice):
            result.append(slice(*(map(_number, (item.start, item.stop, item.step)))))
        elif not isinstance(item, Tensor):
            result.append(item)
        elif item.dtype in (torch.bool, torch.uint8) and item.dim():
            if item.is_meta:
                result.extend(_all_places(recorder, item.shape))
            else:
                result.extend(map(_to_meta, item.nonzero(as_tuple=True)))
        else:
            result.append(_to_meta(item) if item.dim() or item.is_meta else _number(item))
    return tuple(result) if isinstance(index, tuple) or len(result) > 1 else result[0]


def _tensors_in_slice(index: Any) -> bool:
    return type(index) is slice and any(
        isinstance(item, Tensor) for item in (index.start, index.stop, index.step)
    )


def _number(value: Any) -> Any:
    """A known tensor of one element as a number."""
    if isinstance(value, Tensor):
        if value.is_meta:
            _values_needed(None, torch.Tensor.__index__, (), {})  # type: ignore[arg-type]
        return value.item()
    return value


def _to_meta(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_meta else torch.empty_like(tensor, device="meta")


def _tensor_split(
    recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> Any:
    if len(args) < 2 or not isinstance(args[1], Tensor) or args[1].is_meta:
        return NotImplemented
    places = args[1].tolist()
    return func(args[0], places, *args[2:], **kwargs)


# ---- packed sequences and padding


def _pack(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    tensor, lengths, batch_first = args
    if not tensor.is_meta or lengths.is_meta:
        return NotImplemented if not lengths.is_meta else _values_needed(recorder, func, (), {})
    data, sizes = func(torch.zeros(*tensor.shape[:2], 1), lengths, batch_first)
    shape = (data.shape[0], *tensor.shape[2:])
    return recorder.record("View", (edge(tensor),), shape, tensor), recorder.known.own(sizes)


def _unpack(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    tensor, sizes, *rest = args
    if not tensor.is_meta or sizes.is_meta:
        return NotImplemented
    data, lengths = func(torch.zeros(tensor.shape[0], 1), sizes, *rest)
    shape = (*data.shape[:2], *tensor.shape[1:])
    return recorder.record("View", (edge(tensor),), shape, tensor), recorder.known.own(lengths)


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
                table[getattr(owner, name)] = _values_needed
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
            torch.functional.unique: _unique,
            torch.functional.unique_consecutive: _unique,
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
    "type_as expand_as reshape_as view_as": _in_shape_of,
    "to": _to,
    "type": _type,
    "cuda cpu pin_memory detach_": _same,
    "detach": _through,
    "requires_grad_": _requires_grad,
    "backward": _backward,
    "nonzero argwhere": _nonzero,
    "where": _where,
    "masked_select": _masked_select,
    "unique unique_consecutive": _unique,
    "repeat_interleave": _repeat_interleave,
    "tensor_split": _tensor_split,
    "__getitem__": _getitem,
    "__setitem__": _setitem,
    "_pack_padded_sequence": _pack,
    "_pad_packed_sequence": _unpack,
    "_nested_tensor_from_mask_left_aligned": _never,
}

SPECIALS = _table()
"""What is done with each of these functions, if features or parameters are among its arguments."""


# ---- operations that PyTorch has no shape for


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
        return _nms(recorder, args)
    leaves, structure = tree_flatten(given)
    numbers = [_number_if_single(leaf) for leaf in leaves]
    if any(a is not b for a, b in zip(leaves, numbers, strict=True)):
        try:
            metas = [_to_meta(n) if isinstance(n, Tensor) else n for n in numbers]
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
        _values_needed(recorder, func, args, kwargs)
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
