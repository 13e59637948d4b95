from __future__ import annotations

import pytest

from ghn_fast.hypernet.encode import channel_table, kernel_table, shape_4d

CHANNELS = [1, 3, 10, *range(8, 57, 8), *range(64, 4081, 16), *range(4096, 8193, 32)]


def known_channel(table_index: int, num_classes: int = 10) -> int:
    return sorted({*CHANNELS, num_classes} - ({10} if num_classes != 10 else set()))[table_index]


@pytest.mark.parametrize(
    ("channels", "known"),
    [(1, 1), (2, 1), (3, 3), (4, 8), (7, 8), (8, 8), (9, 8), (10, 10), (12, 10), (13, 10), (14, 16),
     (60, 56), (61, 64), (72, 64), (73, 80), (4088, 4080), (4089, 4096), (8192, 8192)],
)  # fmt: skip
def test_nearest_channels(channels: int, known: int) -> None:
    assert known_channel(int(channel_table(10)[channels])) == known


def test_number_of_classes_is_known() -> None:
    assert known_channel(int(channel_table(37)[37]), 37) == 37
    # Even when it is between 4 and 7, which count as 8.
    assert known_channel(int(channel_table(5)[5]), 5) == 8


@pytest.mark.parametrize(
    ("kernel", "known"),
    [(1, 1), (2, 3), (3, 3), (4, 3), (6, 5), (11, 11), (12, 11), (13, 14), (15, 14), (16, 16)],
)  # fmt: skip
def test_nearest_kernels(kernel: int, known: int) -> None:
    assert [1, 3, 5, 7, 9, 11, 14, 16][int(kernel_table(11)[kernel])] == known


def test_kernels_of_large_images() -> None:
    assert [1, 3, 5, 7, 9, 11, 13, 14, 15, 16][int(kernel_table(16)[13])] == 13


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((7,), (7, 1, 1, 1)),
        ((7, 5), (7, 5, 1, 1)),
        ((1, 197, 768), (1, 768, 14, 14)),
        ((96, 1, 1), (96, 1, 1, 1)),
        ((8, 4, 3, 5), (8, 4, 3, 5)),
        ((8, 4, 3, 5, 2), (8, 4, 3, 10)),
    ],
)
def test_shape_4d(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert shape_4d(shape) == expected
