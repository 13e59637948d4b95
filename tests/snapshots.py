"""Everything that a network holds, as values that can be compared."""

from __future__ import annotations

import collections
import hashlib
import itertools
import random
import types
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_PLAIN = (int, float, complex, str, bytes, bool, type(None), type, torch.dtype, torch.device)


def snapshot(network: nn.Module) -> Any:
    """Parameters, buffers, attributes and hooks of a network, down to what functions close over.

    Two snapshots of one network are equal if nothing changed in between: neither a value nor which
    object is where.
    """
    return _Lister().list(network)


class _Lister:
    def __init__(self) -> None:
        self.seen: dict[int, int] = {}

    def list(self, value: Any) -> Any:
        kind = type(value)
        if kind in _PLAIN:
            return (kind, value)
        if kind in (weakref.ProxyType, weakref.CallableProxyType):
            return ("proxy", self.list(value.__init__.__self__))
        if id(value) in self.seen:
            return ("again", self.seen[id(value)])
        self.seen[id(value)] = len(self.seen)
        return (kind, id(value), *self.parts(value, kind))

    def parts(self, value: Any, kind: type) -> Any:
        if isinstance(value, Tensor):
            yield (value.dtype, tuple(value.shape), value.device, value.requires_grad)
            yield (value.stride() if value.layout is torch.strided else None, value._version)
            if not value.is_meta and value.layout is torch.strided:
                yield (value.data_ptr(), _digest(value))
            yield None if value.grad is None else self.list(value.grad)
        elif isinstance(value, np.ndarray):
            yield value.tolist() if value.dtype != object else [self.list(v) for v in value.flat]
        elif isinstance(value, torch.Generator):
            yield value.get_state().tolist()
        elif isinstance(value, random.Random):
            yield value.getstate()
        elif isinstance(value, np.random.Generator):
            yield str(value.bit_generator.state)
        elif isinstance(value, np.random.RandomState):
            yield str(value.get_state())
        elif kind in (itertools.count, itertools.cycle, type(iter([]))):
            yield repr(value.__reduce__())
        elif isinstance(value, weakref.ref):
            yield self.list(value())
        elif isinstance(value, types.FunctionType):
            for cell in value.__closure__ or ():
                yield self.list(cell.cell_contents)
            for item in (value.__defaults__, value.__kwdefaults__, value.__dict__):
                yield self.list(item)
        elif isinstance(value, (types.MethodType, types.BuiltinMethodType)):
            yield (value.__name__, self.list(value.__self__))
        elif isinstance(value, (list, tuple, collections.deque)):
            yield [self.list(item) for item in value]
        elif isinstance(value, (set, frozenset, weakref.WeakSet)):
            yield sorted(str(self.list(item)) for item in value)
        elif isinstance(value, (dict, weakref.WeakKeyDictionary)):
            yield [(self.list(key), self.list(item)) for key, item in list(value.items())]
        if hasattr(value, "cache_info") and hasattr(value, "__wrapped__"):
            yield (value.cache_info().currsize, self.list(value.__wrapped__))
        elif not isinstance(value, (types.FunctionType, types.ModuleType, Tensor)):
            attributes = getattr(value, "__dict__", {})
            yield [(name, self.list(item)) for name, item in attributes.items()]
            for name in getattr(kind, "__slots__", ()):
                yield self.list(getattr(value, name, None)) if isinstance(name, str) else None


def _digest(tensor: Tensor) -> str:
    """A checksum of the values, which takes less memory than their copy."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data if flat.numel() else b"").hexdigest()
