"""Statistics of a set of architectures, and the table that shows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ghn_fast.deepnets.dataset import ArchItem
from ghn_fast.deepnets.genotype import PRIMITIVES, NetworkConfig

if TYPE_CHECKING:
    from rich.table import Table


def describe(nets: Iterable[ArchItem]) -> dict[str, Any]:
    """Statistics of architectures.

    Graphs are not read where a file tells the number of nodes.

    Args:
        nets: The architectures, at least one.

    Returns:
        ``count``; ``nodes``, ``params`` (for images of 32 pixels and, unless they are predefined,
        at 32 channels), ``cells`` and ``steps``, each a dict with ``min``, ``mean`` and ``max``;
        ``primitives``, from primitive to its share of all operations in normal and reduction cells;
        ``fractions``, from a property to the share of architectures that have it. Networks that are
        not made of cells count only for ``count``, ``nodes`` and ``params``; the last four are
        empty if there are no others.

    Raises:
        ValueError: If there are no architectures.
    """
    nodes, params, configs = [], [], []
    for item in nets:
        nodes.append(item.num_nodes)
        params.append(item.base_params["cifar10"])
        if item.config is not None:
            configs.append(item.config)
    if not nodes:
        raise ValueError("nets: got no architectures, needs at least one")
    genes = Counter(
        name for config in configs for name, _ in config.genotype.normal + config.genotype.reduce
    )
    total = max(genes.total(), 1)
    properties = [_properties(config) for config in configs]
    return {
        "count": len(nodes),
        "nodes": _range(nodes),
        "params": _range(params),
        "cells": _range([config.n_cells for config in configs]),
        "steps": _range([len(config.genotype.normal) // 2 for config in configs]),
        "primitives": {name: genes[name] / total for name in PRIMITIVES} if configs else {},
        "fractions": {
            name: sum(p[name] for p in properties) / len(properties)
            for name in (properties[0] if properties else {})
        },
    }


def statistics_table(summaries: dict[str, dict[str, Any]]) -> Table:
    """A table of the statistics of several splits, one column each.

    Args:
        summaries: From the name of a split to what :func:`describe` says of it.
    """
    from rich.table import Table

    table = Table(title="DeepNets-1M")
    table.add_column("")
    for name in summaries:
        table.add_column(name, justify="right")

    def add(label: str, cells: list[str]) -> None:
        table.add_row(label, *cells)

    columns = list(summaries.values())
    add("architectures", [f"{column['count']:,}" for column in columns])
    for key, label in (
        ("nodes", "nodes"),
        ("params", "parameters (million)"),
        ("cells", "cells"),
        ("steps", "steps per cell"),
    ):
        add(label, [_show(column[key], millions=key == "params") for column in columns])
    for section, prefix in (("fractions", "with "), ("primitives", "")):
        table.add_section()
        names = dict.fromkeys(name for column in columns for name in column[section])
        for name in names:
            shares = [column[section].get(name) for column in columns]
            add(prefix + name, ["–" if share is None else f"{share:.1%}" for share in shares])
    return table


def _properties(config: NetworkConfig) -> dict[str, bool]:
    primitives = config.genotype.primitives()
    return {
        "batch normalisation": config.norm is not None,
        "self-attention (msa)": "msa" in primitives,
        "squeeze and excitation (cse)": "cse" in primitives,
        "large convolutions": not primitives.isdisjoint(("conv_5x5", "conv_7x7")),
        "preprocessing": config.preproc,
        "global average pooling": config.glob_avg,
        "doubled channels": config.C_mult > 1,
        "ImageNet-style stem": config.stem_type == 1 and not config.is_vit,
        "pooling in the stem": config.stem_pool and not config.is_vit,
        "two linear layers": config.fc_layers > 1,
    }


def _range(values: Sequence[int]) -> dict[str, float]:
    if not values:
        return {}
    return {"min": min(values), "mean": sum(values) / len(values), "max": max(values)}


def _show(values: dict[str, float], *, millions: bool) -> str:
    if not values:
        return "–"
    if millions:
        return " / ".join(f"{values[key] / 1e6:.2f}" for key in ("min", "mean", "max"))
    return f"{values['min']:,} / {values['mean']:,.1f} / {values['max']:,}"
