from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass, replace
from functools import partial

import pytest

from ghn_fast.utils.deferred import Deferred


@dataclass(frozen=True)
class Pair:
    first: Deferred[list[int]] = Deferred()
    second: Deferred[dict[str, int]] = Deferred(dict)


calls: list[int] = []


def make(value: int) -> list[int]:
    calls.append(value)
    return [value]


def test_a_function_is_called_once_when_the_field_is_read() -> None:
    calls.clear()
    pair = Pair(partial(make, 3))
    assert calls == []
    assert pair.first is pair.first
    assert (pair.first, calls) == ([3], [3])
    assert Pair([5]).first == [5]


def test_defaults() -> None:
    one, other = Pair([1]), Pair([1])
    assert one.second == {}
    assert one.second is not other.second
    with pytest.raises(TypeError, match="first"):
        Pair()


def test_copies_keep_what_there_is() -> None:
    calls.clear()
    pair = Pair(partial(make, 4), {"a": 1})
    copies = [copy.deepcopy(pair), pickle.loads(pickle.dumps(pair))]
    assert calls == []
    assert [c.first for c in copies] == [[4], [4]]
    assert replace(pair, first=[1]).second == {"a": 1}
    with pytest.raises(AttributeError):
        pair.first = [2]  # type: ignore[misc]
