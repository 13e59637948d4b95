"""The splits of DeepNets-1M (arXiv 2110.13100, appendix A), and what differs between them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

IMAGE_SIZES: Final[dict[str, int]] = {"cifar10": 32, "imagenet": 224}
"""Image sizes for which parameters are counted, by the names that published files use."""


@dataclass(frozen=True, slots=True)
class Space:
    """What differs between the splits.

    Attributes:
        cells: Least and largest number of cells.
        steps: Least and largest number of steps per cell.
        deep_steps: Largest number of steps in networks with more cells than the threshold.
        deep: Thresholds, in cells, of which one is drawn.
        max_params: Largest number of parameters.
        norm: ``"mixed"``, or the ``norm`` of all architectures.
        preproc: Probability of ``preproc`` where it is optional, without and with ``msa``.
        stream: Name that seeds the split.
    """

    cells: tuple[int, int] = (4, 18)
    steps: tuple[int, int] = (1, 4)
    deep_steps: int = 2
    deep: tuple[int, ...] = (7, 8, 9, 10)
    max_params: int = 10**7
    norm: str | None = "mixed"
    preproc: tuple[float, float] = (1.0, 0.2)
    stream: str = ""


SPACES: Final[dict[str, Space]] = {
    "train": Space(stream="train"),
    "val": Space(stream="val"),
    "test": Space(stream="test"),
    "search": Space(
        cells=(6, 20),
        steps=(1, 6),
        deep_steps=3,
        deep=(10,),
        norm="bnorm",
        preproc=(0.8, 0.2),
        stream="search",
    ),
    "wide": Space(stream="test"),
    "deep": Space(cells=(10, 36), deep=(18,), max_params=10**8, stream="deep"),
    "dense": Space(steps=(2, 10), deep_steps=6, max_params=10**8, stream="dense"),
    "bnfree": Space(norm=None, stream="bnfree"),
}
"""The splits that are sampled."""

SPLIT_SIZES: Final[dict[str, int]] = {
    "train": 10**6,
    "val": 500,
    "test": 500,
    "search": 10**5,
    "wide": 100,
    "deep": 100,
    "dense": 100,
    "bnfree": 100,
}
"""Number of architectures in the published splits."""


def check_split(split: str, valid: Collection[str] = tuple(SPACES)) -> None:
    """Refuse a name that is not among the valid splits.

    Raises:
        ValueError: If ``split`` is unknown; the message lists the valid ones.
    """
    if split not in valid:
        raise ValueError(f"split: got {split!r}, needs one of {', '.join(valid)}")
