"""The op that decodes blocks: against the modules that it stands for, in float64."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import ghn_fast
from ghn_fast.hypernet.decode import BlockDecoder, VectorDecoder, plain_layers
from ghn_fast.ops.decode_blocks import (
    Decoder,
    DecoderWeights,
    GroupRow,
    decode_blocks,
    group_numbers,
    is_compiled,
)
from tolerances import assert_close

CONFIGS = {
    "small": ghn_fast.GHNConfig(hid=8, max_shape=(16, 16, 3, 3), num_classes=5),
    "narrow": ghn_fast.GHNConfig(hid=4, max_shape=(3, 7, 2, 2), num_classes=3),
    "wide": ghn_fast.GHNConfig(hid=16, max_shape=(6, 4, 5, 5), num_classes=11),
    "GHN-2": ghn_fast.GHNConfig(),
    "middle": ghn_fast.GHNConfig(hid=8, max_shape=(6, 4, 5, 5), num_classes=7, window="middle"),
    "even middle": ghn_fast.GHNConfig(hid=8, max_shape=(6, 4, 4, 4), window="middle"),
}


@pytest.fixture(params=["reference", pytest.param("cpu", marks=pytest.mark.library)])
def name_of_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each back end in turn, for the whole test."""
    with ghn_fast.backend(request.param):
        yield request.param


each_backend = pytest.mark.usefixtures("name_of_backend")


def decoders(config: ghn_fast.GHNConfig) -> tuple[BlockDecoder, VectorDecoder]:
    torch.manual_seed(1)
    return BlockDecoder(config).requires_grad_(False), VectorDecoder(config).requires_grad_(False)


def weights_of(blocks: BlockDecoder, vectors: VectorDecoder) -> DecoderWeights:
    return DecoderWeights(*plain_layers(blocks), *plain_layers(vectors))  # type: ignore[misc]


def random_groups(
    config: ghn_fast.GHNConfig, seed: int, nodes: int
) -> tuple[list[GroupRow], Tensor]:
    """Groups of every kind, some of one shape in channels and some without nodes."""
    draw = random.Random(seed)
    rows, indices = [], []
    out, in_, size, _ = config.max_shape
    for decoder in draw.choices(list(Decoder), weights=(6, 1, 1, 1), k=12) + list(Decoder):
        channels = draw.choice([(out, in_), (out, 1), (draw.randint(1, out), draw.randint(1, in_))])
        shape = (*channels, draw.randint(1, size), draw.randint(1, size))
        count = draw.choice([0, 1, 2, 3, 17, 40])
        rows.append(GroupRow(decoder, shape, count))
        indices += [draw.randrange(nodes) for _ in range(count)]
    return rows, torch.tensor(indices, dtype=torch.int64)


def expected(
    x: Tensor, rows: list[GroupRow], nodes: Tensor, blocks: BlockDecoder, vectors: VectorDecoder
) -> list[Tensor]:
    """Every block of the full size from the plain layers, of which the window is taken."""
    middle = blocks.window == "middle"
    max_out, max_in, size, _ = blocks.max_shape
    result = []
    for row, index in zip(rows, nodes.split([row.nodes for row in rows]), strict=True):
        h = x[index]
        if row.decoder is Decoder.VECTOR:
            result.append(vectors.layers(h).view(-1, 2, vectors.channels))
        elif row.decoder is Decoder.HEAD_BIAS:
            vector = vectors.layers(h).view(-1, 2, vectors.channels)[:, 1]
            result.append(vectors.head(torch.relu(vector)))
        else:
            wide = torch.relu(blocks.expand(h)).unflatten(1, (-1, size, size))
            wide = torch.relu(blocks.hidden(wide.permute(0, 2, 3, 1)))
            full = blocks.output(wide).view(len(h), size, size, max_out, max_in)
            full = full.permute(0, 3, 4, 1, 2)
            out, in_, height, width = row.shape
            if row.decoder is Decoder.HEAD_WEIGHT:
                place = size // 2 if middle else 0
                corner = torch.relu(full[:, :, :in_, place, place])
                result.append(torch.einsum("noi,ko->nki", corner, blocks.head.weight))
                result[-1] += blocks.head.bias[:, None]
            else:
                top, left = (size // 2 - n // 2 if middle else 0 for n in (height, width))
                window = full[:, :out, :in_, top : top + height, left : left + width]
                result.append(window)
    return result


@each_backend
@pytest.mark.usefixtures("nan_empty")
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", CONFIGS)
def test_equals_the_plain_layers(name: str, seed: int) -> None:
    config = CONFIGS[name]
    blocks, vectors = decoders(config)
    x = torch.randn(30, config.hid)
    rows, nodes = random_groups(config, seed, 30)
    if name == "GHN-2":
        rows, counts = rows[:6], [row.nodes for row in rows[:6]]
        nodes = nodes[: sum(counts)]
    middle = config.window == "middle"
    weights = weights_of(blocks, vectors)
    got = decode_blocks(x, nodes, group_numbers(rows), weights, middle=middle)
    want = expected(x.double(), rows, nodes, blocks.double(), vectors.double())
    for number, (row, a, b) in enumerate(zip(rows, got, want, strict=True)):
        assert a.is_contiguous()
        assert_close(a, b, name=f"group {number}, {row}", dtype=torch.float32)


@pytest.mark.library
def test_values_depend_on_nothing_else() -> None:
    """One node alone, in a crowd, and with other numbers of threads: the same bits."""
    config = CONFIGS["small"]
    weights = weights_of(*decoders(config))
    x = torch.randn(50, config.hid)
    rows, nodes = random_groups(config, 7, 50)
    together = decode_blocks(x, nodes, group_numbers(rows), weights)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            again = decode_blocks(x, nodes, group_numbers(rows), weights)
            assert all(torch.equal(a, b) for a, b in zip(together, again, strict=True))
    finally:
        torch.set_num_threads(threads)
    for row, index, blocks in zip(
        rows, nodes.split([row.nodes for row in rows]), together, strict=True
    ):
        for node, block in itertools.islice(zip(index, blocks, strict=True), 3):
            alone = group_numbers([row._replace(nodes=1)])
            (single,) = decode_blocks(x, node.reshape(1), alone, weights)
            assert torch.equal(single[0], block)


@each_backend
def test_nan_and_infinity_pass() -> None:
    config = CONFIGS["small"]
    blocks, vectors = decoders(config)
    x = torch.zeros(2, config.hid)
    x[0, 0] = float("nan")
    rows = [GroupRow(Decoder.BLOCK, (2, 2, 3, 3), 2), GroupRow(Decoder.VECTOR, (1, 1, 1, 1), 2),
            GroupRow(Decoder.HEAD_WEIGHT, (1, 4, 1, 1), 2),
            GroupRow(Decoder.HEAD_BIAS, (1, 1, 1, 1), 2)]  # fmt: skip
    nodes = torch.tensor([0, 1] * 4)
    for result in decode_blocks(x, nodes, group_numbers(rows), weights_of(blocks, vectors)):
        assert result[0].isnan().all()
        assert result[1].isfinite().all()


def test_weights_need_not_be_contiguous_nor_x(name_of_backend: str) -> None:
    config = CONFIGS["small"]
    weights = weights_of(*decoders(config))
    x = torch.randn(config.hid, 9)
    rows, nodes = random_groups(config, 3, 9)
    strided = DecoderWeights(*(torch.stack([w, w], -1)[..., 0] for w in weights))
    assert not strided[0].is_contiguous()
    got = decode_blocks(x.t(), nodes, group_numbers(rows), strided)
    want = decode_blocks(x.t().contiguous(), nodes, group_numbers(rows), weights)
    for number, (a, b) in enumerate(zip(got, want, strict=True)):
        assert_close(a, b, name=f"group {number}")
        assert name_of_backend == "reference" or torch.equal(a, b)


@each_backend
def test_nothing_to_decode() -> None:
    config = CONFIGS["small"]
    empty = torch.empty(0, dtype=torch.int64)
    weights = weights_of(*decoders(config))
    assert decode_blocks(torch.randn(3, config.hid), empty, [], weights) == []
    numbers = group_numbers([GroupRow(Decoder.BLOCK, (2, 3, 1, 1), 0)])
    (blocks,) = decode_blocks(torch.empty(0, config.hid), empty, numbers, weights)
    assert blocks.shape == (0, 2, 3, 1, 1)


@pytest.mark.library
def test_opcheck() -> None:
    config = CONFIGS["small"]
    rows, nodes = random_groups(config, 2, 20)
    weights = list(weights_of(*decoders(config)))
    op = torch.ops.ghn_fast.decode_blocks.default
    torch.library.opcheck(op, (torch.randn(20, config.hid), nodes, group_numbers(rows), weights))


@pytest.mark.library
def test_compiles_as_one_graph() -> None:
    config = CONFIGS["small"]
    rows, nodes = random_groups(config, 2, 20)
    weights, numbers = weights_of(*decoders(config)), group_numbers(rows)

    def run(x: Tensor) -> list[Tensor]:
        return [2 * blocks for blocks in decode_blocks(x, nodes, numbers, weights)]

    x = torch.randn(20, config.hid)
    found = torch.compile(run, fullgraph=True, backend="eager")(x)
    assert all(torch.equal(a, b) for a, b in zip(found, run(x), strict=True))


@pytest.mark.library
def test_what_is_compiled() -> None:
    config = CONFIGS["small"]
    weights = weights_of(*decoders(config))
    x = torch.randn(3, config.hid)
    assert is_compiled(x, weights)
    assert not is_compiled(x.double(), weights)
    assert not is_compiled(x, weights._replace(head_bias=weights.head_bias.double()))
    learnt = weights._replace(head_bias=weights.head_bias.clone().requires_grad_())
    assert not is_compiled(x, learnt)
    with_gradient = x.clone().requires_grad_()
    assert not is_compiled(with_gradient, weights)
    with torch.no_grad():
        assert is_compiled(with_gradient, learnt)
        with ghn_fast.backend("reference"):
            assert not is_compiled(x, weights)
        with ghn_fast.backend("triton"), pytest.raises(ValueError, match="decode_blocks on cpu"):
            is_compiled(x, weights)
    assert not is_compiled(torch.empty(3, config.hid, device="meta"), weights)


def test_double_precision_runs_on_the_reference() -> None:
    config = CONFIGS["small"]
    blocks, vectors = (module.double() for module in decoders(config))
    rows, nodes = random_groups(config, 5, 20)
    x = torch.randn(20, config.hid, dtype=torch.float64)
    found = decode_blocks(x, nodes, group_numbers(rows), weights_of(blocks, vectors))
    want = expected(x, rows, nodes, blocks, vectors)
    for number, (a, b) in enumerate(zip(found, want, strict=True)):
        assert_close(a, b, name=f"group {number}")


def test_gradients_of_the_reference() -> None:
    config = CONFIGS["narrow"]
    rows = [
        GroupRow(Decoder.BLOCK, (2, 5, 2, 1), 2), GroupRow(Decoder.VECTOR, (1, 1, 1, 1), 1),
        GroupRow(Decoder.HEAD_WEIGHT, (1, 4, 1, 1), 1),
        GroupRow(Decoder.HEAD_BIAS, (1, 1, 1, 1), 1),
    ]  # fmt: skip
    weights = [w.double().requires_grad_() for w in weights_of(*decoders(config))]
    x = torch.randn(4, config.hid, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, *weights: Tensor) -> list[Tensor]:
        nodes = torch.tensor([0, 3, 1, 2, 2])
        return decode_blocks(x, nodes, group_numbers(rows), DecoderWeights(*weights))

    assert torch.autograd.gradcheck(run, (x, *weights))


def double(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return 2 * output


class Halved(VectorDecoder):
    def classifier(self, x: Tensor) -> Tensor:
        return super().classifier(x) / 2


def halve(ghn: ghn_fast.GHN) -> None:
    vectors = Halved(ghn.config)
    vectors.load_state_dict(ghn.vectors.state_dict())
    ghn.vectors = vectors


CHANGES = {
    "pruned": lambda ghn: prune.l1_unstructured(ghn.blocks.output, "weight", 0.5),
    "normalised": lambda ghn: nn.utils.parametrizations.weight_norm(ghn.vectors.head),
    "activation": lambda ghn: ghn.vectors.layers.__setitem__(1, nn.GELU()),
    "layer": lambda ghn: ghn.vectors.layers.append(nn.Tanh()),
    "no bias": lambda ghn: ghn.vectors.head.register_parameter("bias", None),
    "hook": lambda ghn: ghn.vectors.layers[0].register_forward_hook(double),
    "hook of the decoder": lambda ghn: ghn.vectors.register_forward_hook(double),
    "class": halve,
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_decoders_are_not_taken_for_plain_ones(name: str) -> None:
    torch.manual_seed(0)
    ghn = ghn_fast.GHN(CONFIGS["small"]).eval()
    CHANGES[name](ghn)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 30 * 30, 5))
    graph = ghn_fast.capture(net, (3, 32, 32))
    (tensors,) = ghn.predict_tensors([graph])  # with gradients: the modules themselves
    ghn.predict(net, graph)
    for key, parameter in net.named_parameters():
        assert_close(parameter, tensors[key], context="ghn", name=key)


BLOCK = (0, 2, 2, 1, 1, 1)
WRONG = [
    ([0, 2, 2, 1, 1], r"groups: got 5 numbers, needs six"),
    ([4, 2, 2, 1, 1, 1], r"groups\[0\]: got decoder 4, needs 0 to 3"),
    ([0, 2, 2, 1, 1, 2], r"groups\[0\]: got 2 nodes, needs 0 to 1"),
    ([0, 2, 2, 1, 1, -1], r"groups\[0\]: got -1 nodes"),
    ([0, 2, 2, 1, 1, 2**62], r"groups\[0\]: got \d+ nodes"),
    ([0, 17, 2, 1, 1, 1], r"groups\[0\]: got a block of shape \(17, 2, 1, 1\).*at most \(16, 16"),
    ([0, 2, 0, 1, 1, 1], r"groups\[0\]: got a block of shape \(2, 0, 1, 1\)"),
    ([0, 2, 2, 4, 1, 1], r"groups\[0\]: got a block"),
    ([2, 1, 17, 1, 1, 1], r"groups\[0\]: got a block"),
    ([], r"nodes: got 1, needs 0"),
]


@each_backend
@pytest.mark.parametrize(("numbers", "message"), WRONG)
def test_wrong_groups(numbers: list[int], message: str) -> None:
    config = CONFIGS["small"]
    weights = weights_of(*decoders(config))
    with pytest.raises(ValueError, match=message):
        decode_blocks(torch.randn(3, config.hid), torch.tensor([1]), numbers, weights)


@each_backend
@pytest.mark.parametrize("node", [-1, 3])
def test_nodes_that_are_not_there(node: int) -> None:
    config = CONFIGS["small"]
    weights = weights_of(*decoders(config))
    with pytest.raises(ValueError, match=rf"nodes\[0\]: got {node}, needs 0 to 2"):
        decode_blocks(torch.randn(3, config.hid), torch.tensor([node]), BLOCK, weights)


@each_backend
def test_wrong_tensors() -> None:
    config = CONFIGS["small"]
    weights = weights_of(*decoders(config))
    x, node = torch.randn(3, config.hid), torch.tensor([1])
    with pytest.raises(TypeError, match="x: got"):
        decode_blocks(x.int(), node, BLOCK, weights)
    with pytest.raises(TypeError, match="expand: got"):
        decode_blocks(x.double(), node, BLOCK, weights)
    with pytest.raises(ValueError, match=r"x: got shape \[8\]"):
        decode_blocks(x[0], node, BLOCK, weights)
    with pytest.raises(TypeError, match="nodes: got"):
        decode_blocks(x, node.int(), BLOCK, weights)
    with pytest.raises(ValueError, match="nodes: got"):
        decode_blocks(x, node[None], BLOCK, weights)
    with pytest.raises(ValueError, match="do not fit"):
        decode_blocks(x[:, :4], node, BLOCK, weights)
    with pytest.raises(TypeError, match="hidden: got"):
        wrong = weights._replace(hidden_bias=weights.hidden_bias.double())
        decode_blocks(x, node, BLOCK, wrong)
    with pytest.raises(ValueError, match="hidden: got shape"):
        wrong = weights._replace(hidden_bias=weights.hidden_bias[1:])
        decode_blocks(x, node, BLOCK, wrong)
    for name in DecoderWeights._fields:
        if name.endswith("weight"):
            wrong = weights._replace(**{name: getattr(weights, name)[:, :-1]})
            with pytest.raises(ValueError, match="fit"):
                decode_blocks(x, node, BLOCK, wrong)
