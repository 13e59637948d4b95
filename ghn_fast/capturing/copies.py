"""Copies of what modules hold besides parameters, buffers and modules.

A forward pass may change anything it can reach: append to a list, count in an object, draw from a
generator, set a variable of an enclosing function. A stand-in (:mod:`ghn_fast.capturing.shadow`)
gets a copy of all that, in which the network's modules and tensors are replaced by their own
stand-ins; what cannot change is shared.
"""

from __future__ import annotations

import copy
import copyreg
import functools
import logging
import random
import sys
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

PLAIN = frozenset(
    (int, float, str, bool, bytes, complex, type(None), type, torch.dtype, torch.device, torch.Size)
)
IMMUTABLE = (int, float, complex, str, bytes, Enum, type, types.ModuleType)
METHODS = (types.BuiltinMethodType, types.MethodWrapperType)
CACHED = type(functools.lru_cache(lambda: None))
# Objects of these belong to the process, not to a network.
_OUTSIDE_NAMES = """
asyncio concurrent importlib inspect io logging multiprocessing pathlib queue socket subprocess
tempfile threading typing
"""
_OUTSIDE = frozenset(_OUTSIDE_NAMES.split())
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class that is not part of the interpreter


class Copier:
    """Makes the copies for one stand-in; each object is copied once, however often it is held.

    Args:
        tensor: Stand-in of a tensor.
        module: Stand-in of a module.
    """

    def __init__(
        self, tensor: Callable[[Tensor], Tensor], module: Callable[[nn.Module], nn.Module]
    ) -> None:
        self._tensor = tensor
        self._module = module
        self._done: dict[int, Any] = {}
        # Ids stay valid as long as what they stand for lives.
        self._kept: list[Any] = []

    def __call__(self, value: Any) -> Any:
        """The copy of a value; the value itself where nothing of it can change."""
        kind = type(value)
        if kind in PLAIN or (kind is tuple and _all_plain(value)):
            return value
        if id(value) in self._done:
            return self._done[id(value)]
        if isinstance(value, Tensor):
            return self._tensor(value)
        # By its type: a proxy of a weak reference says that it is what it refers to.
        if issubclass(kind, nn.Module):
            return self._module(value)
        if kind is list and _all_plain(value):
            return self._keep(value, value.copy())
        make = _MAKERS.get(kind)
        if make is not None:
            return make(self, value)
        return self._other(value, kind)

    def knows(self, value: object) -> bool:
        """Whether a value was copied, or met while others were."""
        return id(value) in self._done

    def _keep(self, value: Any, made: Any) -> Any:
        self._kept.append(value)
        self._done[id(value)] = made
        return made

    def _other(self, value: Any, kind: type) -> Any:
        for base, make in _BASES:
            if issubclass(kind, base):
                return make(self, value)
        if issubclass(kind, IMMUTABLE) or kind.__module__.partition(".")[0] in _OUTSIDE:
            return value
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            if issubclass(kind, numpy.ndarray):
                return self._array(value)
            generators = (numpy.random.Generator, numpy.random.RandomState)
            if issubclass(kind, (*generators, numpy.random.BitGenerator)):
                return self._keep(value, copy.deepcopy(value))
        if issubclass(kind, Iterator) and not kind.__flags__ & _HEAP_TYPE:
            return self._keep(value, self._iterator(value))
        original = getattr(value, "_torchdynamo_orig_callable", None) if callable(value) else None
        if original is not None:
            # A compiled function runs as it was written.
            return self(original)
        return self._object(value, kind)

    def _object(self, value: Any, kind: type) -> Any:
        """An object of a class of one's own, made without its constructor."""
        if kind is types.SimpleNamespace:
            made: Any = types.SimpleNamespace()
        else:
            try:
                made = object.__new__(kind)
            except TypeError:  # a class of an extension, with a state of its own
                return value
        if not self._has_state(value, kind):
            return value  # a mark, which is compared by identity
        self._keep(value, made)
        self._state(value, made)
        return made

    @staticmethod
    def _has_state(value: Any, kind: type) -> bool:
        return bool(getattr(value, "__dict__", None) or copyreg._slotnames(kind))  # type: ignore[attr-defined]

    def _state(self, value: Any, made: Any) -> Any:
        """Copy attributes, those in slots included."""
        attributes = _attributes(value)
        if attributes:
            _attributes(made).update((key, self(item)) for key, item in attributes.items())
        for name in copyreg._slotnames(type(value)):  # type: ignore[attr-defined]
            try:
                item = object.__getattribute__(value, name)
            except AttributeError:
                continue
            object.__setattr__(made, name, self(item))
        return made

    def _list(self, value: Any) -> Any:
        made = self._keep(value, _blank(value))
        list.extend(made, [self(item) for item in list.__iter__(value)])
        return self._state(value, made)

    def _tuple(self, value: Any) -> Any:
        items = [self(item) for item in tuple.__iter__(value)]
        if all(a is b for a, b in zip(items, tuple.__iter__(value), strict=True)):
            return value
        made = self._keep(value, tuple.__new__(type(value), items))
        return self._state(value, made) if type(value) is not tuple else made

    def _dict(self, value: Any) -> Any:
        base: Any = OrderedDict if isinstance(value, OrderedDict) else dict
        made = self._keep(value, _blank(value))
        for key, item in list(base.items(value)):
            base.__setitem__(made, self(key), self(item))
        if isinstance(value, defaultdict):
            made.default_factory = self(value.default_factory)
        return self._state(value, made) if type(value) is not dict else made

    def _set(self, value: Any) -> Any:
        base = set if isinstance(value, set) else frozenset
        items = [self(item) for item in base.__iter__(value)]
        if base is frozenset:
            made = self._keep(value, frozenset.__new__(type(value), items))
        else:
            made = self._keep(value, _blank(value))
            set.update(made, items)
        return self._state(value, made)

    def _deque(self, value: Any) -> Any:
        made = self._keep(value, _blank(value))
        deque.__init__(made, (self(item) for item in deque.__iter__(value)), value.maxlen)
        return self._state(value, made)

    def _method(self, value: Any) -> Any:
        return types.MethodType(self(value.__func__), self(value.__self__))

    def _builtin(self, value: Any) -> Any:
        owner = value.__self__
        if owner is None or isinstance(owner, (types.ModuleType, type)):
            return value
        made = self(owner)
        return value if made is owner else getattr(made, value.__name__)

    def _partial(self, value: Any) -> Any:
        args = [self(item) for item in value.args]
        keywords = {key: self(item) for key, item in value.keywords.items()}
        return self._keep(value, type(value)(self(value.func), *args, **keywords))

    def _uncached(self, value: Any) -> Any:
        """A function without the cache around it, which would keep results of the stand-in."""
        return self(value.__wrapped__)

    def _function(self, value: Any) -> Any:
        attributes = value.__dict__
        if attributes and "_torchdynamo_orig_callable" in attributes:
            return self(attributes["_torchdynamo_orig_callable"])
        cells = value.__closure__ or ()
        defaults, keywords = value.__defaults__, value.__kwdefaults__
        if not (cells or attributes or defaults or keywords):
            return value
        if value.__module__ is not None and value.__module__.partition(".")[0] == "torch":
            return value
        made = types.FunctionType(
            value.__code__,
            value.__globals__,
            value.__name__,
            None,
            tuple(self._cell(cell) for cell in cells),
        )
        self._keep(value, made)
        made.__defaults__, made.__kwdefaults__ = self(defaults), self(keywords)
        made.__qualname__, made.__module__ = value.__qualname__, value.__module__
        made.__dict__.update((key, self(item)) for key, item in attributes.items())
        for cell, own in zip(cells, made.__closure__ or (), strict=True):
            self._fill(cell, own)
        same = not cells and made.__defaults__ is defaults and keywords is None and not attributes
        if same:
            self._done[id(value)] = value
            return value
        return made

    def _cell(self, cell: Any) -> Any:
        """A variable of an enclosing function; functions that share it go on sharing it."""
        if id(cell) not in self._done:
            self._keep(cell, types.CellType())
        return self._done[id(cell)]

    def _fill(self, cell: Any, own: Any) -> None:
        try:
            content = cell.cell_contents
        except ValueError:  # not assigned yet
            return
        try:
            own.cell_contents  # noqa: B018
        except ValueError:
            own.cell_contents = self(content)

    def _reference(self, value: Any) -> Any:
        referent = value()
        made = None if referent is None else self(referent)
        if made is referent:
            return value
        self._kept.append(made)
        return self._keep(value, weakref.ref(made))

    def _proxy(self, value: Any) -> Any:
        try:
            referent = value.__init__.__self__
        except ReferenceError:
            return value
        made = self(referent)
        self._kept.append(made)
        return value if made is referent else weakref.proxy(made)

    def _weak_collection(self, value: Any) -> Any:
        made = self._keep(value, type(value)())
        if isinstance(value, weakref.WeakSet):
            items: Sequence[Any] = [self(item) for item in value]
            made.update(items)
        else:
            items = [(self(key), self(item)) for key, item in value.items()]
            made.update(items)
        self._kept.append(items)
        return made

    def _generator(self, value: torch.Generator) -> Any:
        made = torch.Generator(value.device)
        made.set_state(value.get_state())
        return self._keep(value, made)

    def _random(self, value: random.Random) -> Any:
        return self._keep(value, copy.deepcopy(value))

    def _array(self, value: Any) -> Any:
        made = self._keep(value, value.copy())
        if value.dtype.hasobject:
            for place, item in enumerate(value.flat):
                made.flat[place] = self(item)
        return made

    def _iterator(self, value: Any) -> Any:
        """An iterator of the interpreter, with what it goes through copied, too."""
        try:
            make, args, *state = value.__reduce__()
        except TypeError:
            return value
        made = make(*(self(item) for item in args))
        if state and state[0] is not None:
            made.__setstate__(self(state[0]))
        return made

    def _unread(self, value: Any) -> Any:
        return self._keep(value, _Unread())


class _Unread:
    """Stands for a Python generator, which cannot be copied; reading it is refused."""

    def __iter__(self) -> _Unread:
        return self

    def __next__(self) -> NoReturn:
        raise RuntimeError(
            "the forward pass reads a Python generator that the network holds; generators cannot "
            "be copied, and reading this one would change the network"
        )

    send = throw = __next__

    def close(self) -> None:
        """Nothing is open."""


def _all_plain(values: Any) -> bool:
    return PLAIN.issuperset(map(type, values))


def _blank(value: Any) -> Any:
    """An empty container of the class of another, made without its constructor."""
    kind: Any = type(value)
    return kind.__new__(kind)


def _attributes(value: Any) -> dict[str, Any]:
    try:
        return object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}


_MAKERS: dict[type, Callable[[Copier, Any], Any]] = {
    list: Copier._list,
    tuple: Copier._tuple,
    dict: Copier._dict,
    OrderedDict: Copier._dict,
    types.FunctionType: Copier._function,
    types.MethodType: Copier._method,
    types.BuiltinMethodType: Copier._builtin,
    types.MethodWrapperType: Copier._builtin,
    types.GeneratorType: Copier._unread,
    functools.partial: Copier._partial,
    CACHED: Copier._uncached,
    weakref.ref: Copier._reference,
    weakref.ProxyType: Copier._proxy,
    weakref.CallableProxyType: Copier._proxy,
    logging.Logger: lambda copier, value: value,
}
_BASES: tuple[tuple[Any, Callable[[Copier, Any], Any]], ...] = (
    (list, Copier._list),
    (tuple, Copier._tuple),
    (dict, Copier._dict),
    ((set, frozenset), Copier._set),
    (deque, Copier._deque),
    (functools.partial, Copier._partial),
    (
        (weakref.WeakSet, weakref.WeakKeyDictionary, weakref.WeakValueDictionary),
        Copier._weak_collection,
    ),
    (torch.Generator, Copier._generator),
    (random.Random, Copier._random),
)
