"""Values that are known while a forward pass runs on meta tensors, and those that are not.

What depends on neither features nor parameters (constants, masks, positions, small buffers, integer
inputs) is computed for real, on CPU tensors that the recorder owns. As soon as features or
parameters take part, a meta tensor stands for the known one. A known tensor into which features are
written has no values any more; it and all its views are meta tensors from then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._device import _device_constructors
from torch.utils._pytree import tree_leaves, tree_map_only

from ghn_fast.capturing.strides import broadcast

MOST_ELEMENTS = 1 << 22
"""Tensors with more elements have no values: known values must not fill the memory."""
_FEW_ELEMENTS = 1 << 11


class ValuesNeededError(RuntimeError):
    """The forward pass asks for the value of a tensor that depends on features or parameters."""


class UnsupportedError(RuntimeError):
    """The forward pass does something that a capture cannot follow; the message says what."""


def values_needed(recorder: Any, func: Any, args: Any, kwargs: Any) -> Any:
    raise ValuesNeededError(
        f"{_name(func)} asks for values of a tensor that depends on features or parameters"
    )


def _name(func: Any) -> str:
    name = str(getattr(func, "__name__", func))
    return _READERS.get(name, f"'{name}'")


_READERS = {
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


class KnownValues:
    """The known tensors of one forward pass."""

    def __init__(self) -> None:
        # Marks the tensors that belong to this pass; others are copied before they are used.
        self._mark = object()
        self._foreign: dict[int, tuple[Tensor, Tensor]] = {}
        # Storage to the known tensor that filled it and the meta tensor that stands for it now.
        self._lost: dict[int, tuple[Tensor, Tensor]] = {}
        self._generators: dict[int, tuple[Any, torch.Generator]] = {}

    def own(self, result: Any) -> Any:
        """Mark tensors as belonging to this pass; too large ones turn into meta tensors."""
        if isinstance(result, Tensor):
            if result.is_meta or _is_wrapped(result):
                return result
            if result.numel() > MOST_ELEMENTS:
                return meta_like(result)
            result.__dict__["_ghn_known"] = self._mark
            return result
        if isinstance(result, (tuple, list)):
            items = [self.own(item) for item in result]
            if any(a is not b for a, b in zip(items, result, strict=True)):
                return tuple(items) if isinstance(result, tuple) else items
        return result

    def copy(self, tensor: Tensor) -> Tensor:
        """The tensor of this pass that stands for one from outside: known, or meta."""
        found = self._foreign.get(id(tensor))
        if found is None:
            found = self._foreign[id(tensor)] = (tensor, self._copy(tensor))
        return found[1]

    def _copy(self, tensor: Tensor) -> Tensor:
        plain = type(tensor) in _PLAIN_TENSORS and not tensor.is_meta
        if not plain or tensor.numel() > MOST_ELEMENTS:
            return meta_like(tensor)
        with torch.no_grad():
            made = tensor.detach().cpu()
            return self.own(made.clone() if made.layout is torch.strided else made)

    def owns(self, tensor: Tensor) -> bool:
        """Whether a real tensor belongs to this pass."""
        return tensor.__dict__.get("_ghn_known") is self._mark or _is_wrapped(tensor)

    def current(self, tensor: Tensor) -> Tensor:
        """A known tensor, or what stands for it since features were written into it."""
        if not self._lost or tensor.layout is not torch.strided or _is_wrapped(tensor):
            return tensor
        lost = self._lost.get(tensor.untyped_storage()._cdata)
        if lost is None:
            return tensor
        base, meta = lost
        same = (tensor.shape, tensor.stride(), tensor.storage_offset())
        if same == (base.shape, base.stride(), base.storage_offset()):
            return meta
        if tensor.dtype != base.dtype:
            return meta_like(tensor)
        offset = tensor.storage_offset() - base.storage_offset()
        return meta.as_strided(tensor.shape, tensor.stride(), offset)

    def lose(self, tensor: Tensor) -> Tensor:
        """Forget the values of a known tensor, into which features are written."""
        base = tensor._base if tensor._is_view() and tensor._base is not None else tensor
        key = base.untyped_storage()._cdata
        if key not in self._lost:
            self._lost[key] = (base, meta_like(base))
        return self.current(tensor)

    def construct(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Create a tensor, with values unless it is large."""
        kwargs = {**kwargs, "device": "cpu"}
        kwargs.pop("pin_memory", None)
        if getattr(func, "__name__", "") not in _FROM_DATA:
            shape_only = {key: v for key, v in kwargs.items() if key != "generator"}
            try:
                probe = func(*args, **{**shape_only, "device": "meta"})
            except (RuntimeError, TypeError, NotImplementedError):
                probe = None
            if isinstance(probe, Tensor) and probe.numel() > MOST_ELEMENTS:
                return probe
        return self.own(func(*args, **self._draw(kwargs)))

    def run(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run an operation on known tensors."""
        if func in constructors():
            return self.construct(func, args, kwargs)
        if kwargs:
            kwargs = {key: _on_cpu(v) if key == "device" else v for key, v in kwargs.items()}
            kwargs = self._draw(kwargs)
        leaves = tree_leaves((args, kwargs))
        large = sum(leaf.numel() for leaf in leaves if isinstance(leaf, Tensor)) > _FEW_ELEMENTS
        if large or any(type(leaf) is int and abs(leaf) > _FEW_ELEMENTS for leaf in leaves):
            small = self._result_if_large(func, args, kwargs)
            if small is not None:
                return small
        return self.own(func(*args, **kwargs))

    def _result_if_large(
        self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Tensor | None:
        """The meta result of an operation whose real one would be too large."""
        name = getattr(func, "__name__", "")
        if name.endswith("_") or name == "__get__" or name in _VIEWS:
            return None
        if name in _ELEMENTWISE and _broadcast_elements((*args, *kwargs.values())) <= MOST_ELEMENTS:
            return None
        try:
            shape_only = {key: v for key, v in kwargs.items() if key != "generator"}
            metas = tree_map_only(Tensor, meta_like, (tuple(args), shape_only))
            result = func(*metas[0], **metas[1])
        except Exception:  # without a shape function, or with values as arguments
            return None
        large = isinstance(result, Tensor) and result.numel() > MOST_ELEMENTS
        return result if large else None

    def _draw(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Draw from a copy of a generator, never from the network's own."""
        generator = kwargs.get("generator")
        if generator is None:
            return kwargs
        found = self._generators.get(id(generator))
        if found is None:
            own = torch.Generator()
            if generator.device.type == "cpu":
                own.set_state(generator.get_state())
            found = self._generators[id(generator)] = (generator, own)
            self._generators[id(own)] = (own, own)
        return {**kwargs, "generator": found[1]}


def meta_like(tensor: Tensor) -> Tensor:
    """A meta tensor of the shape, strides and type of another; sparse ones become dense."""
    if tensor.layout is not torch.strided or tensor.is_quantized:
        dtype = torch.float32 if tensor.is_quantized else tensor.dtype
        return torch.empty(tensor.shape, dtype=dtype, device="meta")
    if type(tensor) is Tensor and _is_wrapped(tensor):
        return torch.empty_like(tensor, device="meta")
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def as_meta(tensor: Tensor) -> Tensor:
    """The tensor itself, or a meta tensor in its place."""
    return tensor if tensor.is_meta else meta_like(tensor)


def zeros_like_without_memory(tensor: Tensor) -> Tensor:
    """A real tensor of the shape and type of a meta tensor; all elements are one zero."""
    return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)


def constructors() -> frozenset[Any]:
    """The functions of PyTorch that create tensors."""
    global _CONSTRUCTORS
    if _CONSTRUCTORS is None:
        _CONSTRUCTORS = frozenset(_device_constructors())
    return _CONSTRUCTORS


def _broadcast_elements(values: Sequence[Any]) -> int:
    """Number of elements of the common shape of all tensors among values; 0 if there is none."""
    shape: Sequence[int] = ()
    for value in values:
        if isinstance(value, Tensor):
            common = broadcast(shape, value.shape)
            if common is None:
                return 0
            shape = common
    return prod(shape)


def _on_cpu(value: Any) -> Any:
    return torch.device("cpu") if isinstance(value, (torch.device, str, int)) else value


def _is_wrapped(tensor: Tensor) -> bool:
    """Whether a tensor is a view of another that ``torch.func`` made."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


_FROM_DATA = frozenset(("tensor", "as_tensor", "asarray", "scalar_tensor"))
# Results have at most as many elements as the first operand.
_VIEWS_AND_COPIES = """
chunk contiguous detach flatten movedim narrow permute ravel reshape select split squeeze transpose
unbind unflatten unsqueeze view
"""
_VIEWS = frozenset(_VIEWS_AND_COPIES.split())
# Results have the common shape of all operands.
_BY_ELEMENT = """
__add__ __and__ __eq__ __ge__ __gt__ __invert__ __le__ __lt__ __mul__ __ne__ __neg__ __or__ __radd__
__rmul__ __rsub__ __sub__ __truediv__ abs add bool clone cos div eq exp float ge gt int le log
logical_and logical_not logical_or long lt masked_fill mul ne neg pow sin sub to where
"""
_ELEMENTWISE = frozenset(_BY_ELEMENT.split())
_CONSTRUCTORS: frozenset[Any] | None = None
_PLAIN_TENSORS = (Tensor, torch.nn.Parameter, torch.nn.Buffer)
