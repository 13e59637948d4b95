"""A bounded cache: what was used last stays, safe to use from several threads."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


_all: weakref.WeakSet[BoundedCache[Any, Any]] = weakref.WeakSet()


class BoundedCache(Generic[K, V]):
    """A mapping that forgets what has not been used for longest.

    It holds its keys and values, so a key must not hold what should go before the entry does.

    Args:
        capacity: Number of entries that stay, at least 1.

    Attributes:
        hits: Number of times that :meth:`get` found a value.
        misses: Number of times that it did not.

    Raises:
        ValueError: If ``capacity`` is below 1.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity: got {capacity}, needs at least 1")
        self.capacity = capacity
        self.hits = 0
        self.misses = 0
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._unlock()
        _all.add(self)

    def _unlock(self) -> None:
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def get(self, key: K) -> V | None:
        """The value of a key, which is then the one used last; ``None`` if there is none."""
        with self._lock:
            if key not in self._entries:
                self.misses += 1
                return None
            self.hits += 1
            self._entries.move_to_end(key)
            return self._entries[key]

    def keep(self, key: K, value: V) -> V:
        """Keep a value, unless another thread was faster; everyone gets the value that is kept."""
        with self._lock:
            value = self._entries.setdefault(key, value)
            self._entries.move_to_end(key)
            while len(self._entries) > self.capacity:
                self._entries.popitem(last=False)
            return value

    def pop(self, key: K) -> V | None:
        """Take a value out; ``None`` if there is none."""
        with self._lock:
            return self._entries.pop(key, None)

    def clear(self) -> None:
        """Forget everything, the numbers of hits and misses too."""
        with self._lock:
            self._entries.clear()
            self.hits = self.misses = 0


def _unlock_all() -> None:
    """Open the locks in a child process, whose one thread would wait for those of its parent."""
    for cache in _all:
        cache._unlock()


os.register_at_fork(after_in_child=_unlock_all)
