"""Where the time of a call goes, by named parts: each gets what no other part inside it took."""

from __future__ import annotations

import contextlib
import functools
import importlib
import statistics
import time
from collections.abc import Iterator
from typing import Any


class Parts:
    """Processor time of functions, exclusive of one another.

    Args:
        places: Label of each function, as "module:name" or "module:Class.name". Functions that
            share a label are one part.
        rest: Label of what happens in none of them.

    Attributes:
        counted: What :meth:`count` has counted for each part, over all calls.
    """

    def __init__(self, places: dict[str, str], rest: str) -> None:
        self._places = places
        self._rest = rest
        self._calls: list[dict[str, int]] = []
        self.counted: dict[str, int] = {}
        self._open: list[str] = []
        self._since = 0

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Inside, the functions are timed.

        Raises:
            AttributeError: If there is no function of such a name.
        """
        with contextlib.ExitStack() as stack:
            for place, label in self._places.items():
                module, _, path = place.partition(":")
                owner: Any = importlib.import_module(module)
                *classes, name = path.split(".")
                for part in classes:
                    owner = getattr(owner, part)
                before = getattr(owner, name)
                setattr(owner, name, self._timed(before, label))
                stack.callback(setattr, owner, name, before)
            yield

    def count(self) -> None:
        """Count something for the part that is at work, if a call is being measured."""
        if self._open:
            label = self._open[-1]
            self.counted[label] = self.counted.get(label, 0) + 1

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """One call of what is measured."""
        self._calls.append({})
        self._since = time.thread_time_ns()
        self._open = [self._rest]
        yield
        self._book()
        self._open = []

    def milliseconds(self) -> dict[str, float]:
        """Median over the calls of each part, the largest first."""
        labels = dict.fromkeys([*self._places.values(), self._rest])
        medians = {
            label: statistics.median(call.get(label, 0) for call in self._calls) / 1e6
            for label in labels
        }
        return dict(sorted(medians.items(), key=lambda item: -item[1]))

    def _book(self) -> None:
        now = time.thread_time_ns()
        label, call = self._open[-1], self._calls[-1]
        call[label] = call.get(label, 0) + now - self._since
        self._since = now

    def _timed(self, function: Any, label: str) -> Any:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            if not self._open:
                return function(*args, **kwargs)
            self._book()
            self._open.append(label)
            try:
                return function(*args, **kwargs)
            finally:
                self._book()
                self._open.pop()

        return run
