"""Parameters of a network: names, shapes, node types and positions, in the module's order."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from ghn_fast.deepnets.architectures.primitives import (
    Param,
    factorized_parameters,
    linear_parameters,
    norm_parameters,
    op_parameters,
)
from ghn_fast.deepnets.architectures.spec import CellSpec, NetworkSpec, PreprocessSpec


def network_parameters(spec: NetworkSpec) -> Iterator[Param]:
    """All parameters of a network, also of operations that are not executed."""
    yield from stem_parameters(spec)
    for index, cell in enumerate(spec.cells):
        for block in cell_parameters(index, cell, spec.norm):
            yield from block
    yield from classifier_parameters(spec)


def stem_parameters(spec: NetworkSpec) -> list[Param]:
    """Parameters before the first cell."""
    stem, norm = spec.stem, spec.norm
    channels, square = stem.channels, (stem.kernel, stem.kernel)
    first, second = stem.first_size**2, stem.sizes[0] ** 2
    if stem.kind == "vit":
        encoding = (1, channels, stem.sizes[1], stem.sizes[1])
        return [
            Param("stem0.weight", (channels, 3, *square), "conv", first),
            Param("pos_enc.weight", encoding, "pos_enc"),
        ]
    if stem.kind == "simple":
        return [
            Param("stem.0.weight", (channels, 3, *square), "conv", first),
            *norm_parameters("stem.1", channels, norm),
        ]
    half = channels // 2
    return [
        Param("stem0.0.weight", (half, 3, *square), "conv", first),
        *norm_parameters("stem0.1", half, norm),
        Param("stem0.3.weight", (channels, half, 3, 3), "conv", second),
        *norm_parameters("stem0.4", channels, norm),
        # Executed only where the second output of the stem matters.
        Param(
            "stem1.1.weight",
            (channels, channels, 3, 3),
            "conv",
            spec.stem1_alive * stem.sizes[1] ** 2,
        ),
        *norm_parameters("stem1.2", channels, norm),
    ]


def cell_parameters(index: int, cell: CellSpec, norm: bool) -> list[list[Param]]:
    """Parameters of a cell: of its two inputs, then of each of its operations."""
    return [
        *(
            preprocess_parameters(f"cells.{index}.preprocess{i}", part, cell.channels, norm)
            for i, part in enumerate(cell.preprocess)
        ),
        *(
            op_parameters(
                f"cells.{index}._ops.{i}", op.primitive, cell.channels, op.size, op.stride, norm
            )
            for i, op in enumerate(cell.ops)
        ),
    ]


def preprocess_parameters(
    prefix: str, part: PreprocessSpec, channels: int, norm: bool
) -> list[Param]:
    """Parameters of what a cell does to one of its inputs."""
    if part.kind == "conv":
        shape = (channels, part.in_channels, 1, 1)
        return [
            Param(f"{prefix}.op.1.weight", shape, "conv", part.in_size**2),
            *norm_parameters(f"{prefix}.op.2", channels, norm),
        ]
    if part.kind == "factorized":
        return factorized_parameters(prefix, part.in_channels, channels, part.in_size, norm)
    return []


def classifier_parameters(spec: NetworkSpec) -> list[Param]:
    """Parameters of the classifier; a ReLU and a dropout stand between its linear layers."""
    return [
        param
        for layer, (width, following) in enumerate(pairwise(spec.classifier))
        for param in linear_parameters(f"classifier.{3 * layer}", width, following)
    ]
