"""Architectures that are kept for testing, so that none of them is trained on."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

from ghn_fast.deepnets.sampling.sampler import architecture_key, sample_config
from ghn_fast.deepnets.sampling.splits import SPLIT_SIZES


@cache
def held_out_keys(seed: int = 0) -> frozenset[str]:
    """Keys of all architectures of the splits for testing, of the published sizes, for a seed.

    Small architectures can come up in two splits by chance. The split ``train`` leaves these out,
    sampled or in files, so that the test architectures that ``ghn-fast evaluate`` samples by
    default have never been trained on. (``wide`` has the structures of ``test``.)
    """
    return frozenset(
        architecture_key(sample_config(split, index, seed))
        for split in ("test", "deep", "dense", "bnfree")
        for index in range(SPLIT_SIZES[split])
    )


def left_out(split: str, exclude: Collection[str] | None) -> frozenset[str]:
    """What a split is sampled without: ``exclude``, or if that is ``None`` what its kind needs.

    Args:
        split: Name of the split.
        exclude: Keys, or ``None`` for :func:`held_out_keys` in ``train`` and for none elsewhere.
    """
    if exclude is None:
        return held_out_keys() if split == "train" else frozenset()
    return frozenset(exclude)
