"""The table of primitives: against the modules made from it, and against the C++ sources."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
import torch

from ghn_fast.deepnets import PRIMITIVES
from ghn_fast.deepnets.architectures.layers import make_op
from ghn_fast.deepnets.architectures.primitives import HEADS, TABLE, op_parameters
from ghn_fast.deepnets.architectures.record import HEAD_SIZE, decode, encode
from ghn_fast.deepnets.architectures.spec import LARGE_IMAGE
from ghn_fast.deepnets.graphs import derive
from ghn_fast.deepnets.graphs.sizes import sizes_of_records
from ghn_fast.graph import NODE_TYPES
from ghn_fast.ops.backend import library_problem
from random_configs import random_config

SOURCES = Path(__file__).resolve().parents[2] / "csrc" / "deepnets"


def enumerators(file: str, name: str) -> list[str]:
    """Names in an enumeration, in lower case without prefix and separators."""
    text = (SOURCES / file).read_text()
    found = re.search(rf"enum {name} : \w+ {{(.*?)}}", text, re.DOTALL)
    assert found is not None
    names = [entry.split("=")[0].strip() for entry in found[1].split(",")]
    return [entry.removeprefix("k").replace("_", "").lower() for entry in names]


def plain(name: str) -> str:
    """The same of a name in Python; weights go by the name of what owns them."""
    return re.sub(r"[._]|weight$", "", name)


def test_cpp_has_the_same_primitives_and_types() -> None:
    assert enumerators("network.h", "Primitive") == [*map(plain, PRIMITIVES), "primitives"]
    types = [f"type{plain(name)}" for name in NODE_TYPES]
    assert enumerators("network.h", "NodeType") == ["notype", *types]
    text = (SOURCES / "network.h").read_text()
    assert f"kHeads = {HEADS}, kLargeImage = {LARGE_IMAGE};" in text
    bits = f"kSuffixBits = {derive._SUFFIX_BITS}, kSlotBits = {derive._SLOT_BITS};"
    assert bits in text
    assert f"kHead = {HEAD_SIZE};" in (SOURCES / "network.cpp").read_text()


def test_cpp_has_the_same_names_of_parameters() -> None:
    assert enumerators("parameters.cpp", "Suffix") == [*map(plain, derive._SUFFIXES)]
    assert enumerators("parameters.cpp", "StemName") == [
        *("patches", "posenc"),
        *map(plain, derive._STEM_NAMES[2:]),
    ]


# Networks with attention halve nothing.
@pytest.mark.parametrize(
    ("name", "stride"),
    [(name, s) for name in PRIMITIVES for s in (1, 2) if (name, s) != ("msa", 2)],
)
@pytest.mark.parametrize("channels", [16, 24])
def test_parameters_are_those_of_the_module(name: str, stride: int, channels: int) -> None:
    for norm in (True, False):
        module = make_op(name, channels, stride, norm)
        expected = [(key, tuple(p.shape)) for key, p in module.named_parameters()]
        found = op_parameters("cell", name, channels, 9, stride, norm)
        assert [(param.name.removeprefix("cell."), param.shape) for param in found] == expected
        types = {param.node_type for param in found} - {None}
        assert types <= set(NODE_TYPES)
        assert ("bn" in types) == (norm and any(key.endswith("bias") for key, _ in expected)) or (
            name in ("msa", "cse")
        )
        # Every second pixel where a primitive halves, rounded up.
        if name != "none":
            size = module(torch.randn(2, channels, 9, 9)).shape[-1]
            assert size == (9 + stride - 1) // stride
        for param in found:
            assert (param.positions > 0) == (len(param.shape) > 1)


def test_the_order_is_that_of_the_published_generator() -> None:
    """Records number the primitives, so that it cannot change."""
    assert list(TABLE) == [
        *("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5"),
        *("dil_conv_3x3", "dil_conv_5x5", "conv_1x1", "conv_7x1_1x7", "conv_3x3", "conv_5x5"),
        *("conv_7x7", "msa", "cse"),
    ]


@pytest.mark.skipif(library_problem() is not None, reason="the compiled ops are not here")
def test_both_readers_refuse_the_same_records(seeded: int) -> None:
    rng = random.Random(seeded)
    outcomes = {True: 0, False: 0}
    for _ in range(3000):
        record = bytearray(encode(random_config(rng, max_steps=3)))
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(4, len(record))
            # Mostly small numbers, which are more often valid.
            record[at] = rng.choice((0, 1, 2, 3, 5, 7, rng.randrange(256)))
        try:
            encode(decode(bytes(record)))
            valid = True
        except ValueError:
            valid = False
        try:
            sizes_of_records([bytes(record)], 1, ())
            accepted = True
        except ValueError:
            accepted = False
        assert accepted == valid, bytes(record)
        outcomes[valid] += 1
    assert min(outcomes.values()) > 500
