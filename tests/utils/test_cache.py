"""The bounded cache: what stays, what goes, and several threads at once."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from ghn_fast.utils.cache import BoundedCache


def test_what_was_used_last_stays() -> None:
    cache: BoundedCache[str, int] = BoundedCache(2)
    cache.keep("a", 1)
    cache.keep("b", 2)
    assert cache.get("a") == 1
    cache.keep("c", 3)
    assert ("a" in cache, "b" in cache, "c" in cache, len(cache)) == (True, False, True, 2)
    assert cache.get("b") is None
    assert (cache.hits, cache.misses) == (1, 1)


def test_the_first_value_of_a_key_stays() -> None:
    cache: BoundedCache[str, list[int]] = BoundedCache(1)
    first = cache.keep("a", [1])
    assert cache.keep("a", [2]) is first
    assert cache.pop("a") is first
    assert cache.pop("a") is None


def test_clear_forgets_the_counts_too() -> None:
    cache: BoundedCache[int, int] = BoundedCache(3)
    cache.keep(1, 1)
    cache.get(1)
    cache.clear()
    assert (len(cache), cache.hits, cache.misses) == (0, 0, 0)


def test_a_capacity_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity: got 0, needs at least 1"):
        BoundedCache(0)


def test_threads_share_it() -> None:
    cache: BoundedCache[int, int] = BoundedCache(8)
    wrong: list[int] = []

    def work(start: int) -> None:
        for i in range(start, start + 2000):
            key = i % 16
            value = cache.get(key)
            if value is None:
                value = cache.keep(key, key)
            if value != key:
                wrong.append(key)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(cache) == 8
    assert cache.hits + cache.misses == 8000


def test_a_child_process_can_use_a_cache_that_was_locked() -> None:
    cache: BoundedCache[int, int] = BoundedCache(2)
    cache.keep(1, 1)
    with cache._lock:
        child = os.fork()
        if child == 0:
            os._exit(0 if cache.get(1) == 1 else 1)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the child waits for a lock that nobody will open")
