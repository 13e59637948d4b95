"""Sets of architectures seen through their embeddings: distances, neighbours, a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ghn_fast.studies.curves import COLOURS
from ghn_fast.studies.embeddings import frechet_distance, nearest, principal_components
from ghn_fast.utils.optional import require
from ghn_fast.vision.results import check_picture_name

# To the training split, GHN-2 for CIFAR-10 (arXiv 2110.13100, appendix).
PUBLISHED = {"test": 0.30, "wide": 0.80, "deep": 1.11, "dense": 0.59, "bnfree": 3.64}


@dataclass
class Landscape:
    """Sets of architectures and what their embeddings say.

    Attributes:
        names: Names of the architectures of each set.
        frechet: Set to its Fréchet distance to the reference, ``None`` for sets of one.
        points: Set to the projections of its architectures onto two principal components.
        shares: Shares of the variance that the two hold.
        neighbours: Architecture that was asked for to the nearest others, with distances.
    """

    names: dict[str, list[str]]
    frechet: dict[str, float | None]
    points: dict[str, list[tuple[float, float]]]
    shares: tuple[float, float]
    neighbours: dict[str, list[tuple[str, float]]]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def survey(
    reference: Tensor,
    sets: Mapping[str, tuple[Sequence[str], Tensor]],
    *,
    queries: Sequence[str] = (),
    count: int = 5,
) -> Landscape:
    """Compare sets of architectures with a reference, and find neighbours.

    Args:
        reference: Embeddings (N, hid) of training architectures.
        sets: Name of each set to the names of its architectures and their embeddings.
        queries: Names of architectures whose neighbours are asked for, among all sets.
        count: Neighbours of each.

    Raises:
        ValueError: If there are no sets, or a query is in none.
    """
    if not sets:
        raise ValueError("sets: got none, needs at least one")
    together = torch.cat([embeddings for _, embeddings in sets.values()])
    everybody = [name for names, _ in sets.values() for name in names]
    projected, shares = principal_components(torch.cat([reference, together]))
    points = iter(projected[len(reference) :].tolist())
    neighbours = {}
    for query in queries:
        if query not in everybody:
            raise ValueError(f"near: got {query!r}, which is in none of the sets")
        own = everybody.index(query)
        found = zip(*nearest(together, together[own], count + 1), strict=True)
        neighbours[query] = [(everybody[i], d) for i, d in found if i != own][:count]
    return Landscape(
        {name: list(names) for name, (names, _) in sets.items()},
        {
            name: frechet_distance(embeddings, reference) if len(embeddings) > 1 else None
            for name, (_, embeddings) in sets.items()
        },
        {name: [tuple(next(points)) for _ in names] for name, (names, _) in sets.items()},  # type: ignore[misc]
        (float(shares[0]), float(shares[1])),
        neighbours,
    )


def draw_landscape(
    landscape: Landscape,
    path: str | Path,
    labels: Mapping[str, float] | None = None,
    label: str = "",
) -> None:
    """Draw the architectures of all sets on their two principal components.

    Args:
        landscape: What to draw.
        path: The picture: .png, .svg or .pdf.
        labels: Architecture to a value that colours it, instead of its set.
        label: What the value is.

    Raises:
        ValueError: If the suffix is another, or no architecture has a value.
    """
    Figure = require("matplotlib.figure", "drawing", "pictures").Figure

    path = check_picture_name(path)
    figure = Figure(figsize=(5.2, 4.0), layout="constrained")
    axes = figure.add_subplot()
    if labels is None:
        for place, (name, points) in enumerate(landscape.points.items()):
            xs, ys = zip(*points, strict=True)
            size = 60 if len(points) == 1 else 9
            axes.scatter(xs, ys, s=size, color=COLOURS[place % len(COLOURS)], label=name, alpha=0.7)
        axes.legend(frameon=False, fontsize=8)
    else:
        coloured = [
            (*point, labels[name])
            for kind, points in landscape.points.items()
            for name, point in zip(landscape.names[kind], points, strict=True)
            if name in labels
        ]
        if not coloured:
            raise ValueError("labels: none of the architectures has a value")
        xs, ys, values = zip(*coloured, strict=True)
        drawn = axes.scatter(xs, ys, s=12, c=values, cmap="viridis")
        figure.colorbar(drawn, ax=axes, label=label)
    first, second = (f"{100 * share:.0f} % of the variance" for share in landscape.shares)
    axes.set_xlabel(f"first component, {first}")
    axes.set_ylabel(f"second component, {second}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
