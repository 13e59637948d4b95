"""What a forward pass can reach without the network: its classes, and the modules of their code.

Both are shared by all networks and all threads, so that no stand-in has its own. What a pass
changes there is put back afterwards: of classes everything, of modules what it would break to leave
there, results without values and parts of the stand-in.
"""

from __future__ import annotations

import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ghn_fast.capturing.copies import CACHED, IMMUTABLE, METHODS, PLAIN, Copier
from ghn_fast.capturing.tensors import STAND_IN

_CONTAINERS = (dict, list, set, deque)
# Elements of containers that are looked at, so that tables in a module of data cost no time.
_MOST_ELEMENTS = 1 << 12
_DEEPEST = 4


class ClassAttributes:
    """Attributes of the classes of a network, which a forward pass may change, too.

    Args:
        copier: Makes the copies that stand for containers and objects that classes hold.
    """

    def __init__(self, copier: Copier) -> None:
        self._copier = copier
        self._changeable: dict[type, tuple[tuple[str, Any], ...]] = {}

    def of(self, kind: type) -> tuple[tuple[str, Any], ...]:
        """Name and copy of each attribute of a class that can change without being set."""
        found = self._changeable.get(kind)
        if found is None:
            copies: dict[str, Any] = {}
            for cls in reversed(kind.__mro__):
                if _is_own(cls.__module__):
                    for name, value in vars(cls).items():
                        if _can_change(name, value):
                            copies[name] = self._copier(value)
                        else:
                            copies.pop(name, None)
            found = self._changeable[kind] = tuple(copies.items())
        return found

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Put back what is changed meanwhile in classes, and what must not stay in modules."""
        kinds = self._changeable
        classes = {cls for kind in kinds for cls in kind.__mro__ if _is_own(cls.__module__)}
        before = [(cls, dict(vars(cls))) for cls in classes]
        held = _Contents()
        for _, attributes in before:
            held.add_all(value for name, value in attributes.items() if not name.startswith("__"))
        around = _Contents()
        for module in _modules_of(classes):
            around.add(vars(module), deep=False)
            around.add_all(v for name, v in vars(module).items() if not name.startswith("__"))
        try:
            yield
        finally:
            for cls, attributes in before:
                for name in vars(cls).keys() - attributes.keys():
                    delattr(cls, name)
                for name, value in attributes.items():
                    if vars(cls).get(name) is not value:
                        setattr(cls, name, value)
            held.put_back()
            around.put_back(only=_is_of_stand_in)


class _Contents:
    """What containers and caches hold at a time."""

    def __init__(self) -> None:
        self._saved: list[tuple[Any, list[Any]]] = []
        self._caches: list[tuple[Any, int]] = []
        self._seen: set[int] = set()
        self._left = _MOST_ELEMENTS

    def add_all(self, values: Iterable[Any]) -> None:
        for value in list(values):
            value = getattr(value, "__wrapped__", value) if type(value) is staticmethod else value
            if isinstance(value, _CONTAINERS):
                self.add(value)
            elif type(value) is CACHED:
                self._caches.append((value, value.cache_info().currsize))

    def add(self, container: Any, *, deep: bool = True) -> None:
        """Remember a container and, within limits, those in it."""
        if id(container) in self._seen or len(container) > self._left:
            return
        self._seen.add(id(container))
        self._left -= len(container) if deep else 0
        content = list(_items(container))
        self._saved.append((container, content))
        if deep:
            values = [value for _, value in content] if isinstance(container, dict) else content
            for value in values:
                if isinstance(value, _CONTAINERS):
                    self.add(value)

    def put_back(self, only: Callable[[Any], bool] | None = None) -> None:
        """Restore what was changed.

        Args:
            only: Tells of a value that was not there before whether it must go; without it
                everything is restored.
        """
        for container, content in self._saved:
            if isinstance(container, dict):
                _restore_dict(container, dict(content), only)
            elif _has_changed(list(_items(container)), content, only):
                _restore(container, content)
        for cache, size in self._caches:
            if cache.cache_info().currsize > size:
                cache.cache_clear()


def _items(container: Any) -> Iterable[Any]:
    if isinstance(container, dict):
        return dict.items(container)
    base = next(base for base in _CONTAINERS if isinstance(container, base))
    return base.__iter__(container)


def _restore_dict(
    now: dict[Any, Any], then: dict[Any, Any], only: Callable[[Any], bool] | None
) -> None:
    for key, value in list(dict.items(now)):
        if key not in then:
            if only is None or only(value):
                dict.__delitem__(now, key)
        elif then[key] is not value and (only is None or only(value)):
            dict.__setitem__(now, key, then[key])
    if only is None:
        for key in then.keys() - dict.keys(now):
            dict.__setitem__(now, key, then[key])


def _has_changed(now: list[Any], then: list[Any], only: Callable[[Any], bool] | None) -> bool:
    if len(now) == len(then) and all(a is b for a, b in zip(now, then, strict=True)):
        return False
    if only is None:
        return True
    before = {id(item) for item in then}
    return any(id(item) not in before and only(item) for item in now)


def _restore(container: Any, content: list[Any]) -> None:
    if isinstance(container, list):
        list.__setitem__(container, slice(None), content)
    elif isinstance(container, set):
        set.clear(container)
        set.update(container, content)
    else:
        deque.clear(container)
        deque.extend(container, content)


def _is_of_stand_in(value: Any, depth: int = 0) -> bool:
    """Whether a value is, or holds, a result without values or a module of the stand-in."""
    if isinstance(value, Tensor):
        return value.is_meta
    if isinstance(value, nn.Module):
        return STAND_IN in vars(value)
    if depth < _DEEPEST and isinstance(value, MutableMapping):
        return any(_is_of_stand_in(item, depth + 1) for item in list(value.values()))
    if depth < _DEEPEST and isinstance(value, (list, tuple, set, deque)):
        return any(_is_of_stand_in(item, depth + 1) for item in list(value))
    return False


def _modules_of(classes: Iterable[type]) -> list[types.ModuleType]:
    """The modules that classes are defined in, and those of the functions that these import."""
    found: dict[str, types.ModuleType] = {}
    for cls in classes:
        module = sys.modules.get(cls.__module__)
        if module is not None:
            found.setdefault(cls.__module__, module)
    for module in list(found.values()):
        for value in list(vars(module).values()):
            name = getattr(value, "__module__", None) if type(value) in _FUNCTIONS else None
            if name is not None and name not in found and name in sys.modules and _is_own(name):
                found[name] = sys.modules[name]
    return list(found.values())


def _is_own(module: str) -> bool:
    """Whether a class or function is neither PyTorch's nor the interpreter's."""
    root = module.partition(".")[0]
    return (root not in _NOT_OWN and root not in sys.stdlib_module_names) or root == "__main__"


def _can_change(name: str, value: Any) -> bool:
    kind = type(value)
    if kind in PLAIN or kind in _FIXED or name.startswith("__") or hasattr(kind, "__get__"):
        return False
    return not isinstance(value, (*IMMUTABLE, tuple, frozenset, nn.Module))


_FUNCTIONS = (types.FunctionType, CACHED)
_FIXED = frozenset((types.FunctionType, property, classmethod, staticmethod, *METHODS))
_NOT_OWN = frozenset(("torch", "torchvision", "numpy"))
