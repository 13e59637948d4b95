from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import count, islice
from typing import Any

import pytest

from ghn_fast.metatrain.pool import pooled_batches


def batches(start_step: int = 0, **changes: Any) -> Iterator[list[int]]:
    settings = {"size": 6, "refresh": 3, "meta_batch": 2, "seed": 1, **changes}
    return pooled_batches(count, start_step=start_step, **settings)


def test_step_is_a_function_of_its_number() -> None:
    whole = list(islice(batches(), 50))
    for start in (1, 17, 30):
        assert list(islice(batches(start), 50 - start)) == whole[start:]
    assert list(islice(batches(seed=2), 50)) != whole


def test_pool_is_a_window_on_the_stream() -> None:
    for step, chosen in enumerate(islice(batches(), 200)):
        first = step // 3
        assert len(set(chosen)) == 2
        assert all(first <= number < first + 6 for number in chosen)


def test_architectures_come_again() -> None:
    seen = Counter(number for chosen in islice(batches(), 600) for number in chosen)
    # Each stays for size * refresh = 18 steps, with chances of 2 in 6.
    inner = [seen[number] for number in range(10, 190)]
    # compared by hand: a mean of random draws.
    assert sum(inner) / len(inner) == pytest.approx(6, abs=0.5)


def test_rejected_batches_are_drawn_again() -> None:
    chosen = list(islice(batches(accept=lambda numbers: sum(numbers) % 2 == 0), 30))
    assert all(sum(numbers) % 2 == 0 for numbers in chosen)
    with pytest.raises(ValueError, match="pool_size: no meta-batch of 2"):
        next(batches(accept=lambda numbers: False))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 1}, "size: got 1, needs at least the meta-batch of 2"),
        ({"refresh": 0}, "refresh: got 0"),
        ({"meta_batch": 0}, "meta_batch: got 0"),
        ({"start_step": -1}, "start_step: got -1"),
    ],
)
def test_mistakes(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batches(**changes)
