"""Records: every configuration comes back, and what is none is refused."""

from __future__ import annotations

import random
import struct
from dataclasses import replace

import numpy as np
import pytest

from ghn_fast.deepnets import PRIMITIVES, Genotype, NetworkConfig, sample_config
from ghn_fast.deepnets.architectures.genotype import DARTS, VIT_CONFIG
from ghn_fast.deepnets.architectures.record import (
    BY_CELL,
    FLAGS_AT,
    HEAD_FIELDS,
    HEAD_SIZE,
    decode,
    encode,
)
from ghn_fast.deepnets.graphs.sizes import sizes_of_records
from ghn_fast.deepnets.sampling.splits import SPACES
from random_configs import random_config


def test_configurations_come_back(seeded: int) -> None:
    rng = random.Random(seeded)
    configs = [random_config(rng, max_steps=12, max_cells=40) for _ in range(200)]
    configs += [sample_config(split, index, 3) for split in SPACES for index in range(10)]
    for config in configs:
        record = encode(config)
        assert decode(record) == config
        marked = encode(config, by_cell=True)
        assert decode(marked) == config
        different = [i for i, (a, b) in enumerate(zip(record, marked, strict=True)) if a != b]
        assert different == [FLAGS_AT]
        assert marked[FLAGS_AT] - record[FLAGS_AT] == BY_CELL


def test_the_layout() -> None:
    """Field by field as documented: files of other machines have to be read."""
    genotype = Genotype((("conv_5x5", 1), ("cse", 0)), (2,), (("none", 0), ("msa", 1)), (2,))
    config = NetworkConfig(
        genotype=genotype, n_cells=258, C=65538, C_mult=1, fc_dim=65537, fc_layers=259, ks=513
    )
    record = encode(config)
    parts = (
        (1, 1, 1, 1),
        (2, 1, 1, 0, 2, 0, 1, 0, 1, 0, 1, 0, 3, 1, 1, 2),
        (4 + 8 + 16, 0, 0, 0),
        (11, 1, 14, 0, 0, 0, 13, 1),
        (2, 2),
    )
    assert record == bytes(value for part in parts for value in part)
    fields = np.frombuffer(record[:HEAD_SIZE], np.dtype(list(HEAD_FIELDS)))[0]
    assert (fields["n_cells"], fields["C"], fields["fc_dim"]) == (258, 65538, 65537)
    assert (fields["fc_layers"], fields["ks"], fields["flags"]) == (259, 513, 28)
    assert len(PRIMITIVES) == 15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fc_dim": 1 << 32}, "does not fit into a packed record"),
        ({"C": (1 << 24) + 2, "C_mult": 1}, r"C: got 16777218 and C_mult 1, needs C \* C_mult"),
        ({"C": 1 << 23, "C_mult": 2}, r"needs C \* C_mult\*\*2 up to 2\^24"),
    ],
)
def test_what_does_not_fit(changes: dict[str, int], message: str) -> None:
    config = replace(NetworkConfig(genotype=DARTS, n_cells=4), **changes)
    with pytest.raises(ValueError, match=message):
        encode(config)


def test_too_many_steps() -> None:
    genes = (("conv_1x1", 0),) * 508
    config = NetworkConfig(genotype=Genotype(genes, (2,), genes[:2], (2,)), n_cells=4)
    with pytest.raises(ValueError, match="normal: got 254 steps, needs at most 253"):
        encode(config)
    fits = NetworkConfig(genotype=Genotype(genes[:506], (254,), genes[:2], (2,)), n_cells=4)
    assert decode(encode(fits)) == fits


def test_what_is_no_record() -> None:
    good = encode(VIT_CONFIG)
    for bad, message in (
        (b"", "got 0 bytes, needs at least 24"),
        (good[:-1], "got 33 bytes, needs 34 for cells of 1 and 1 steps"),
        (good + b"\0", "got 35 bytes, needs 34"),
        (good[:FLAGS_AT] + b"\x40" + good[FLAGS_AT + 1 :], r"got flags 64 and \[0, 0\]"),
        (good[:21] + b"\1" + good[22:], r"and \[1, 0\], knows those below 64, and zeros"),
        (good[:24] + b"\x0f" + good[25:], "got 'primitive 15', needs one of none"),
        (good[:25] + b"\x02" + good[26:], r"normal\[0\]: got 2, needs the index of an earlier"),
        (struct.pack("<24s", good) + good[24:-1] + b"\x07", "reduce_concat: got"),
    ):
        with pytest.raises(ValueError, match=message):
            decode(bad)


def test_a_record_cannot_ask_for_hours_of_work() -> None:
    head = struct.pack("<BBBBHHIIHHB3x", 253, 253, 1, 1, 65535, 1, 32, 64, 1, 3, 12)
    genes = b"".join(bytes([4, 1 + step]) * 2 for step in range(253))
    record = head + genes * 2 + bytes([254]) * 2
    for read in (decode, lambda data: sizes_of_records([data], 10, (32,))):
        with pytest.raises(ValueError, match="65535"):
            read(record)
    config = VIT_CONFIG.to_dict() | {"n_cells": 10**9}
    with pytest.raises(ValueError, match=r"n_cells: got 1000000000, needs at most \d+ cells"):
        NetworkConfig.from_dict(config)
