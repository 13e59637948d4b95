"""A configuration in a few dozen bytes: what packed files hold and the compiled builder reads.

A record is little-endian and has no padding:

====== ===== ======================================================================================
offset bytes
====== ===== ======================================================================================
0      1     steps n of the normal cell, 1 to 253
1      1     steps r of the reduction cell
2      1     number of states a in ``normal_concat``
3      1     number of states b in ``reduce_concat``
4      2     ``n_cells``
6      2     ``C_mult``
8      4     ``C``; ``C * C_mult**2`` is at most 2^24
12     4     ``fc_dim``
16     2     ``fc_layers``
18     2     ``ks``
20     1     flags: 1 ``stem_type``, 2 ``stem_pool``, 4 batch normalisation, 8 ``preproc``,
             16 ``glob_avg``, 32 nodes are listed cell by cell
             (:mod:`ghn_fast.deepnets.files.node_table`)
21     1     0
22     2     0
24     4 n   operations of the normal cell: index in ``PRIMITIVES``, index of the state, a byte each
\\      4 r   operations of the reduction cell
\\      a     ``normal_concat``
\\      b     ``reduce_concat``
====== ===== ======================================================================================
"""

from __future__ import annotations

import struct
from typing import Final

from ghn_fast.deepnets.architectures.genotype import Genotype, NetworkConfig
from ghn_fast.deepnets.architectures.primitives import PRIMITIVES

BY_CELL: Final = 32
"""Flag of a record: nodes are listed cell by cell, as in files of the published generator."""

FLAGS_AT: Final = 20
"""Offset of the flags in a record."""

HEAD_FIELDS: Final[tuple[tuple[str, str], ...]] = (
    *(("steps", "u1"), ("reduce_steps", "u1"), ("normal_concat", "u1"), ("reduce_concat", "u1")),
    *(("n_cells", "<u2"), ("C_mult", "<u2"), ("C", "<u4"), ("fc_dim", "<u4")),
    *(("fc_layers", "<u2"), ("ks", "<u2"), ("flags", "u1"), ("zero", "u1"), ("zeros", "<u2")),
)
"""Fields before the operations of a record, and their types in the notation of NumPy."""

_HEAD = struct.Struct("<4BHHIIHHBBH")
HEAD_SIZE: Final = _HEAD.size
_INDEX = {name: index for index, name in enumerate(PRIMITIVES)}
_MOST_STEPS = 253
_MOST_CHANNELS = 1 << 24


def encode(config: NetworkConfig, *, by_cell: bool = False) -> bytes:
    """The record of a configuration.

    Args:
        config: The configuration.
        by_cell: Whether its nodes are listed cell by cell.

    Raises:
        ValueError: If a field does not fit into a record; the message names it.
    """
    genotype = config.genotype
    normal, reduce = genotype.normal, genotype.reduce
    flags = (
        config.stem_type
        | config.stem_pool << 1
        | (config.norm is not None) << 2
        | config.preproc << 3
        | config.glob_avg << 4
        | (BY_CELL if by_cell else 0)
    )
    if config.C * config.C_mult**2 > _MOST_CHANNELS:
        raise ValueError(
            f"C: got {config.C} and C_mult {config.C_mult}, needs C * C_mult**2 up to 2^24 for a "
            "packed record"
        )
    for name, genes in (("normal", normal), ("reduce", reduce)):
        if len(genes) > 2 * _MOST_STEPS:
            raise ValueError(
                f"{name}: got {len(genes) // 2} steps, needs at most {_MOST_STEPS} for a packed "
                "record"
            )
    try:
        head = _HEAD.pack(
            len(normal) // 2,
            len(reduce) // 2,
            len(genotype.normal_concat),
            len(genotype.reduce_concat),
            config.n_cells,
            config.C_mult,
            config.C,
            config.fc_dim,
            config.fc_layers,
            config.ks,
            flags,
            0,
            0,
        )
    except struct.error:
        raise ValueError(
            "config: got a field that does not fit into a packed record, needs n_cells, C_mult, "
            "fc_layers and ks below 65536, and C and fc_dim below 2^32"
        ) from None
    genes_bytes = bytes([v for name, state in normal + reduce for v in (_INDEX[name], state)])
    return head + genes_bytes + bytes(genotype.normal_concat + genotype.reduce_concat)


def decode(record: bytes) -> NetworkConfig:
    """The configuration of a record.

    Raises:
        ValueError: If the bytes are not a record, or the configuration is not valid.
    """
    if len(record) < _HEAD.size:
        raise ValueError(f"record: got {len(record)} bytes, needs at least {_HEAD.size}")
    n, r, a, b, n_cells, c_mult, channels, fc_dim, fc_layers, ks, flags, *zeros = _HEAD.unpack_from(
        record
    )
    size = _HEAD.size + 4 * (n + r) + a + b
    if len(record) != size:
        raise ValueError(
            f"record: got {len(record)} bytes, needs {size} for cells of {n} and {r} steps"
        )
    if flags >= 64 or any(zeros):
        raise ValueError(f"record: got flags {flags} and {zeros}, knows those below 64, and zeros")
    genes, concat = record[_HEAD.size : size - a - b], record[size - a - b :]
    return NetworkConfig(
        genotype=Genotype(
            _genes(genes[: 4 * n]), tuple(concat[:a]), _genes(genes[4 * n :]), tuple(concat[a:])
        ),
        n_cells=n_cells,
        C=channels,
        stem_type=flags & 1,
        stem_pool=bool(flags & 2),
        norm="bnorm" if flags & 4 else None,
        preproc=bool(flags & 8),
        fc_layers=fc_layers,
        fc_dim=fc_dim,
        glob_avg=bool(flags & 16),
        ks=ks,
        C_mult=c_mult,
    )


def _genes(data: bytes) -> tuple[tuple[str, int], ...]:
    known = len(PRIMITIVES)
    return tuple(
        (PRIMITIVES[kind] if kind < known else f"primitive {kind}", state)
        for kind, state in zip(data[::2], data[1::2], strict=True)
    )
