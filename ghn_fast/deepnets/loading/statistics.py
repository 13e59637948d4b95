"""Statistics of a set of architectures, and the table that shows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from ghn_fast.deepnets.architectures.genotype import NetworkConfig
from ghn_fast.deepnets.architectures.primitives import PRIMITIVES
from ghn_fast.deepnets.architectures.record import HEAD_FIELDS, HEAD_SIZE
from ghn_fast.deepnets.files.packed import PackFile
from ghn_fast.deepnets.loading.items import ArchItem
from ghn_fast.deepnets.loading.splits import DeepNets

if TYPE_CHECKING:
    from rich.table import Table


# Records of a packed file that are looked at together.
_AT_ONCE = 1 << 16


def describe(nets: Iterable[ArchItem]) -> dict[str, Any]:
    """Statistics of architectures.

    Graphs are not read where a file tells the number of nodes. Of a packed file, configurations
    are not read one by one either: a million architectures take about a second.

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
    if isinstance(nets, DeepNets) and isinstance(nets.file, PackFile):
        return _describe_packed(nets.file)
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


def _describe_packed(file: PackFile) -> dict[str, Any]:
    cells, steps = [], []
    genes = np.zeros(len(PRIMITIVES), dtype=np.int64)
    properties: dict[str, int] = {}
    for start in range(0, len(file), _AT_ONCE):
        stop = min(start + _AT_ONCE, len(file))
        heads, primitives, owners = _columns(file, start, stop)
        cells.append(heads["n_cells"])
        steps.append(heads["steps"])
        genes += np.bincount(primitives, minlength=len(PRIMITIVES))
        for name, values in _packed_properties(heads, primitives, owners).items():
            properties[name] = properties.get(name, 0) + int(np.count_nonzero(values))
    return {
        "count": len(file),
        "nodes": _range(file.nodes),
        "params": _range(file.params[:, 0]),
        "cells": _range(np.concatenate(cells)),
        "steps": _range(np.concatenate(steps)),
        "primitives": dict(zip(PRIMITIVES, (genes / genes.sum()).tolist(), strict=True)),
        "fractions": {name: count / len(file) for name, count in properties.items()},
    }


def _columns(file: PackFile, start: int, stop: int) -> tuple[Any, Any, Any]:
    """Heads of records, the primitives of all their operations, and the record of each."""
    chunk = file.chunk(start, stop)
    data = np.frombuffer(chunk.records, np.uint8)
    starts = np.concatenate(([0], chunk.ends[:-1]))
    heads = data[starts[:, None] + np.arange(HEAD_SIZE)].view(np.dtype(list(HEAD_FIELDS)))[:, 0]
    count = 2 * (heads["steps"].astype(np.int64) + heads["reduce_steps"])
    owners = np.repeat(np.arange(stop - start), count)
    position = np.arange(len(owners)) - np.repeat(np.cumsum(count) - count, count)
    return heads, data[starts[owners] + HEAD_SIZE + 2 * position], owners


def _packed_properties(heads: Any, primitives: Any, owners: Any) -> dict[str, Any]:
    """As :func:`_properties`, of many records."""

    def use(*names: str) -> Any:
        found = np.zeros(len(heads), dtype=bool)
        wanted = [PRIMITIVES.index(name) for name in names]
        found[owners[np.isin(primitives, wanted)]] = True
        return found

    flags, vit = heads["flags"], use("msa")
    return {
        "batch normalisation": flags & 4,
        "self-attention (msa)": vit,
        "squeeze and excitation (cse)": use("cse"),
        "large convolutions": use("conv_5x5", "conv_7x7"),
        "preprocessing": flags & 8,
        "global average pooling": flags & 16,
        "doubled channels": heads["C_mult"] > 1,
        "ImageNet-style stem": (flags & 1) * ~vit,
        "pooling in the stem": (flags & 2) * ~vit,
        "two linear layers": heads["fc_layers"] > 1,
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


def _range(values: Any) -> dict[str, float]:
    values = np.asarray(values)
    if not len(values):
        return {}
    mean = float(values.mean(dtype=np.float64))
    return {"min": int(values.min()), "mean": mean, "max": int(values.max())}


def _show(values: dict[str, float], *, millions: bool) -> str:
    if not values:
        return "–"
    if millions:
        return " / ".join(f"{values[key] / 1e6:.2f}" for key in ("min", "mean", "max"))
    return f"{values['min']:,} / {values['mean']:,.1f} / {values['max']:,}"
