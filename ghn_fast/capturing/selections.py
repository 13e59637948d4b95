"""Operations whose result has a size that depends on values.

Where the values are known (a mask that was computed, lengths of sequences), so is the size. Where
features decide, all elements are assumed to be chosen, and the recorder remembers that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ghn_fast.capturing.known import as_meta, values_needed
from ghn_fast.capturing.tensors import edge
from ghn_fast.capturing.tracer import Recorder


def all_places(recorder: Recorder, shape: Sequence[int]) -> tuple[Tensor, ...]:
    """Index tensors of all elements: what ``nonzero`` yields if no element is zero."""
    recorder.assumed["that conditions on features hold for all elements"] = None
    count = torch.Size(shape).numel()
    return tuple(
        torch.empty(count, dtype=torch.int64, device="meta") for _ in range(max(1, len(shape)))
    )


def nonzero(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    places = all_places(recorder, args[0].shape)
    if kwargs.get("as_tuple") or args[1:] == (True,):
        return places
    return torch.stack(places[: args[0].dim()], 1) if args[0].dim() else places[0][:, None][:, :0]


def where(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    if len(args) + len(kwargs) > 1:
        return NotImplemented
    return all_places(recorder, args[0].shape)


def masked_select(
    recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> Any:
    tensor, mask = (*args, *kwargs.values())
    tensor, mask = torch.broadcast_tensors(as_meta(tensor), mask)
    return getitem(recorder, torch.Tensor.__getitem__, (tensor, mask), {})


def unique(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    recorder.assumed["that values of features which are counted are all the same"] = None
    tensor = args[0]
    result = [torch.empty(1, dtype=tensor.dtype, device="meta")]
    if kwargs.get("return_inverse") or args[2:3] == (True,):
        result.append(torch.empty(tensor.shape, dtype=torch.int64, device="meta"))
    if kwargs.get("return_counts") or args[3:4] == (True,):
        result.append(torch.empty(1, dtype=torch.int64, device="meta"))
    return result[0] if len(result) == 1 else tuple(result)


def nms(recorder: Recorder, args: Sequence[Any]) -> Any:
    """Non-maximum suppression keeps all boxes."""
    return all_places(recorder, (args[0].shape[0],))[0]


def repeat_interleave(
    recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> Any:
    names = ("input", "repeats", "dim")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    tensor, repeats, dim = given.get("input"), given.get("repeats"), given.get("dim")
    if not isinstance(tensor, Tensor) or not isinstance(repeats, Tensor):
        return NotImplemented
    if dim is None:
        tensor, dim = as_meta(tensor).reshape(-1), 0
    count = tensor.shape[dim]
    if repeats.is_meta:
        recorder.assumed["that counts which depend on features are 1"] = None
        places = torch.empty(count, dtype=torch.int64, device="meta")
    else:
        known = torch.arange(count).repeat_interleave(repeats.cpu())
        places = torch.empty(known.shape, dtype=torch.int64, device="meta")
    return as_meta(tensor).index_select(dim, places)


def getitem(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    tensor, index = args
    if type(index) in (int, slice) and not _tensors_in_slice(index):
        return NotImplemented
    return recorder.on_meta(func, (as_meta(tensor), _index(recorder, index)), {})


def setitem(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    tensor, index, value = args
    if not tensor.is_meta:
        tensor = recorder.known.lose(tensor)
    value = as_meta(value) if isinstance(value, Tensor) else value
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
                result.extend(all_places(recorder, item.shape))
            else:
                result.extend(map(as_meta, item.nonzero(as_tuple=True)))
        else:
            result.append(as_meta(item) if item.dim() or item.is_meta else _number(item))
    return tuple(result) if isinstance(index, tuple) or len(result) > 1 else result[0]


def _tensors_in_slice(index: Any) -> bool:
    return type(index) is slice and any(
        isinstance(item, Tensor) for item in (index.start, index.stop, index.step)
    )


def _number(value: Any) -> Any:
    """A known tensor of one element as a number."""
    if isinstance(value, Tensor):
        if value.is_meta:
            values_needed(None, torch.Tensor.__index__, (), {})  # type: ignore[arg-type]
        return value.item()
    return value


def tensor_split(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    if len(args) < 2 or not isinstance(args[1], Tensor) or args[1].is_meta:
        return NotImplemented
    places = args[1].tolist()
    return func(args[0], places, *args[2:], **kwargs)


def pack(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    tensor, lengths, batch_first = args
    if not tensor.is_meta or lengths.is_meta:
        return NotImplemented if not lengths.is_meta else values_needed(recorder, func, (), {})
    data, sizes = func(torch.zeros(*tensor.shape[:2], 1), lengths, batch_first)
    shape = (data.shape[0], *tensor.shape[2:])
    return recorder.record("View", (edge(tensor),), shape, tensor), recorder.known.own(sizes)


def unpack(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    tensor, sizes, *rest = args
    if not tensor.is_meta or sizes.is_meta:
        return NotImplemented
    data, lengths = func(torch.zeros(tensor.shape[0], 1), sizes, *rest)
    shape = (*data.shape[:2], *tensor.shape[1:])
    return recorder.record("View", (edge(tensor),), shape, tensor), recorder.known.own(lengths)
