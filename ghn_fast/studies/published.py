"""Numbers that others published, to stand beside ours."""

from __future__ import annotations

from typing import Final

CIFAR10: Final[dict[str, dict[str, float | None]]] = {
    "val": {"GHN-1": 50.9, "GHN-2": 66.7, "GHN-2 best": 77.4, "SGD": 88.5},
    "test": {"GHN-1": 51.4, "GHN-2": 66.9, "GHN-2 best": 77.1, "SGD": 88.5},
    "wide": {"GHN-1": 43.1, "GHN-2": 64.0, "GHN-2 best": 76.0, "SGD": 88.9},
    "deep": {"GHN-1": 48.3, "GHN-2": 60.5, "GHN-2 best": 76.5, "SGD": 84.5},
    "dense": {"GHN-1": 51.8, "GHN-2": 65.8, "GHN-2 best": 76.6, "SGD": 87.3},
    "bnfree": {"GHN-1": 13.7, "GHN-2": 36.8, "GHN-2 best": 58.7, "SGD": 45.6},
    "resnet50": {"GHN-1": 19.2, "GHN-2": 58.6, "GHN-2 best": None, "SGD": 93.5},
    "ViT": {"GHN-1": 18.2, "GHN-2": 11.4, "GHN-2 best": None, "SGD": 75.7},
}
"""Top-1 % on CIFAR-10 by split or network (arXiv 2110.13100, table 3): batch statistics; SGD for 50
epochs. The averages are those of the published results of each architecture."""

COLUMNS: Final = ("GHN-1", "GHN-2", "GHN-2 best", "SGD")
