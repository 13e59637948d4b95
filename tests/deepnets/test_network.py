"""Networks: parameters, values, dead operations, and the errors of what describes them."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ghn_fast.deepnets.architectures.genotype import (
    DARTS,
    PDARTS,
    PRIMITIVES,
    VIT,
    VIT_CONFIG,
    Genotype,
    NetworkConfig,
)
from ghn_fast.deepnets.architectures.layers import (
    FactorizedReduce,
    PosEnc,
    SelfAttention,
    SqueezeExcitation,
    make_op,
)
from ghn_fast.deepnets.architectures.network import Network
from ghn_fast.deepnets.architectures.spec import is_connected
from random_configs import random_config
from tolerances import assert_close

CONV = Genotype((("conv_3x3", 0), ("skip_connect", 1)), (2,), (("max_pool_3x3", 0),) * 2, (2,))


def config(genotype: Genotype = CONV, **changes: Any) -> NetworkConfig:
    return NetworkConfig(**{"genotype": genotype, "n_cells": 4, "C": 16, **changes})


# --- what describes a network


@pytest.mark.parametrize("genotype", [DARTS, PDARTS, VIT, CONV])
def test_genotype_survives_json(genotype: Genotype) -> None:
    assert Genotype.from_dict(json.loads(json.dumps(genotype.to_dict()))) == genotype


def test_config_survives_json_and_reads_published_fields(seeded: int) -> None:
    rng = random.Random(seeded)
    for _ in range(30):
        described = random_config(rng)
        data = json.loads(json.dumps(described.to_dict()))
        data |= {"num_nodes": 3, "num_params": {"cifar10": 1, "imagenet": 2}}
        assert NetworkConfig.from_dict(data) == described
        assert hash(NetworkConfig.from_dict(data)) == hash(described)


@pytest.mark.parametrize(
    ("field", "value", "names"),
    [
        ("normal", [("conv_9x9", 0), ("none", 1)], r"normal\[0\].*conv_9x9.*conv_7x1_1x7"),
        ("normal", [("none", 0), ("none", 2)], r"normal\[1\].*got 2.*0 to 1"),
        ("reduce", [("none", 0)], r"reduce: .*two per step"),
        ("reduce", [("none", 0), ("none", True)], r"reduce\[1\].*True"),
        ("reduce", "none", r"reduce: got 'none'"),
        ("normal", [("none", 0), "cs"], r"normal\[1\]"),
        ("normal_concat", [1], r"normal_concat: got \[1\].*2 to 2"),
        ("normal_concat", [], r"normal_concat: got \[\]"),
        ("reduce_concat", [2, 2], r"reduce_concat: got \[2, 2\].*distinct"),
        ("reduce_concat", 2, r"reduce_concat: got 2"),
    ],
)
def test_genotype_refuses(field: str, value: Any, names: str) -> None:
    with pytest.raises(ValueError, match=names):
        Genotype.from_dict({**CONV.to_dict(), field: value})


@pytest.mark.parametrize(
    ("field", "value", "names"),
    [
        ("n_cells", 0, "n_cells: got 0"),
        ("n_cells", 2.0, "n_cells: got 2.0"),
        ("C", True, "C: got True"),
        ("stem_type", 2, r"stem_type: got 2.*0 \(simple\)"),
        ("norm", "batch", "norm: got 'batch'.*'bnorm' or None"),
        ("ks", 4, "ks: got 4.*odd"),
        ("preproc", False, "preproc: got False.*C_mult"),
        ("glob_avg", 1, "glob_avg: got 1"),
        ("fc_layers", 0, "fc_layers: got 0"),
        ("genotype", None, "genotype: got None"),
        ("depth", 3, "unknown field 'depth'.*n_cells"),
    ],
)
def test_config_refuses(field: str, value: Any, names: str) -> None:
    with pytest.raises(ValueError, match=names):
        NetworkConfig.from_dict({**config().to_dict(), field: value})


def test_config_refuses_missing_fields_and_other_things() -> None:
    with pytest.raises(ValueError, match="'n_cells' is missing"):
        NetworkConfig.from_dict({"genotype": CONV.to_dict()})
    with pytest.raises(ValueError, match=r"genotype: got \[\]"):
        Genotype.from_dict([])  # type: ignore[arg-type]
    for described, channels, names in (
        (VIT_CONFIG, 4, r"C: got 4.*8 heads"),
        (config(stem_type=1), 15, r"C: got 15.*even"),
        (config(stem_type=1), 1, r"C: got 1.*at least 2"),
    ):
        with pytest.raises(ValueError, match=names):
            replace(described, C=channels)


# --- parameters


def test_parameter_names_and_shapes_of_every_primitive() -> None:
    """Names of the published networks, written out for each primitive with stride 1 and 2."""
    conv = {"op.1.weight": (16, 16, 1, 1), "op.2.weight": (16,), "op.2.bias": (16,)}
    sep = {
        "op.1.weight": (16, 1, 5, 5),
        "op.2.weight": (16, 16, 1, 1),
        "op.3.weight": (16,),
        "op.3.bias": (16,),
        "op.5.weight": (16, 1, 5, 5),
        "op.6.weight": (16, 16, 1, 1),
        "op.7.weight": (16,),
        "op.7.bias": (16,),
    }
    split = {
        "op.1.weight": (16, 16, 1, 7),
        "op.2.weight": (16, 16, 7, 1),
        "op.3.weight": (16,),
        "op.3.bias": (16,),
    }
    expected: dict[tuple[str, int], dict[str, tuple[int, ...]]] = {
        ("conv_1x1", 1): conv,
        ("conv_7x7", 2): {**conv, "op.1.weight": (16, 16, 7, 7)},
        ("sep_conv_5x5", 2): sep,
        ("dil_conv_3x3", 1): {**dict(list(sep.items())[:4]), "op.1.weight": (16, 1, 3, 3)},
        ("conv_7x1_1x7", 2): split,
        ("skip_connect", 2): {
            "conv_1.weight": (8, 16, 1, 1),
            "conv_2.weight": (8, 16, 1, 1),
            "bn.weight": (16,),
            "bn.bias": (16,),
        },
        ("cse", 1): {
            "fc1.weight": (8, 16),
            "fc1.bias": (8,),
            "fc2.weight": (16, 8),
            "fc2.bias": (16,),
        },
        ("msa", 1): {
            "to_qkv.weight": (48, 16),
            "to_out.0.weight": (16, 16),
            "to_out.0.bias": (16,),
            "ln1.weight": (16,),
            "ln1.bias": (16,),
            "ln2.weight": (16,),
            "ln2.bias": (16,),
            "ff.net.0.weight": (16, 16),
            "ff.net.0.bias": (16,),
            "ff.net.3.weight": (16, 16),
            "ff.net.3.bias": (16,),
        },
    }
    for name in ("none", "max_pool_3x3", "avg_pool_3x3"):
        expected[name, 2] = {}
    expected["skip_connect", 1] = {}
    for (primitive, stride), params in expected.items():
        op = make_op(primitive, 16, stride, True)
        found = [(name, tuple(p.shape)) for name, p in op.named_parameters()]
        assert found == list(params.items()), primitive


@pytest.mark.parametrize("primitive", [p for p in PRIMITIVES if p not in ("none", "msa")])
@pytest.mark.parametrize("size", [8, 7])
def test_stride_halves_the_size_and_rounds_up(primitive: str, size: int) -> None:
    op = make_op(primitive, 4, 2, True)
    assert op(torch.randn(2, 4, size, size)).shape == (2, 4, 4, 4)


@pytest.mark.parametrize(
    ("image_size", "stem", "grid", "flat"),
    [
        # Published: CIFAR-10 and ImageNet, per stem (simple, simple with pooling, ImageNet-style).
        (32, ((48, 3, 3, 3), 1), 11, (8, 4, 4)),
        (224, ((16, 3, 3, 3), 4), 14, (14, 7, 7)),
        (28, ((48, 3, 3, 3), 1), 10, (7, 4, 4)),
        (96, ((16, 3, 3, 3), 4), 6, (6, 3, 3)),
    ],
)
def test_shapes_follow_the_image_size(
    image_size: int, stem: tuple[tuple[int, ...], int], grid: int, flat: tuple[int, int, int]
) -> None:
    image = torch.randn(2, 3, image_size, image_size)
    vit = Network(replace(VIT_CONFIG, n_cells=1, C=16), image_size=image_size)
    assert vit.pos_enc.weight.shape == (1, 16, grid, grid)
    assert vit(image).shape == (2, 10)
    for size, changes in zip(flat, ({}, {"stem_pool": True}, {"stem_type": 1}), strict=True):
        network = Network(config(glob_avg=False, **changes), 7, image_size)
        # 16 channels, doubled twice.
        assert network.classifier[0].weight.shape == (7, 64 * size**2)
        assert network(image).shape == (2, 7)
        if "stem_type" not in changes:
            assert (network.stem[0].weight.shape, network.stem[0].stride[0]) == stem


def test_same_names_in_networks_without_norm() -> None:
    with_norm = {n for n, _ in Network(config()).named_parameters()}
    without = {n for n, _ in Network(config(norm=None)).named_parameters()}
    norms = {n for n, m in Network(config()).named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert norms
    assert with_norm - without == {f"{n}.{p}" for n in norms for p in ("weight", "bias")}
    assert without < with_norm


# --- values


def test_batch_statistics_in_both_modes() -> None:
    network = Network(config(fc_layers=1))
    image = torch.randn(4, 3, 32, 32)
    training = network.train()(image)
    assert_close(network.eval()(image), training)
    # Statistics of the batch: other images change the logits of the first two.
    # compared by hand: what has to differ differs by more than rounding.
    assert not torch.allclose(network(image[:2]), training[:2], rtol=1e-3)
    assert list(network.buffers()) == []


def test_a_cell_computes_what_its_genotype_says() -> None:
    genotype = Genotype(
        (("conv_1x1", 1), ("none", 0), ("avg_pool_3x3", 2), ("cse", 1), ("none", 3), ("none", 0)),
        (3, 2, 4),
        (("max_pool_3x3", 0),) * 6,
        (2, 3, 4),
    )
    network = Network(config(genotype, n_cells=1, stem_type=1, norm=None))
    image = torch.randn(2, 3, 32, 32)
    p = dict(network.named_parameters())
    # The second part of the stem begins with a ReLU in place, so that state 0 is rectified, too.
    s0 = F.conv2d(image, p["stem0.0.weight"], padding=1).relu()
    s0 = F.conv2d(s0, p["stem0.3.weight"], padding=1).relu()
    s1 = F.conv2d(s0, p["stem1.1.weight"], stride=2, padding=1)
    s1 = F.conv2d(s1.relu(), p["cells.0.preprocess1.op.1.weight"])
    state2 = F.conv2d(s1.relu(), p["cells.0._ops.0.op.1.weight"])
    squeezed = F.linear(
        s1.mean((2, 3)), p["cells.0._ops.3.fc1.weight"], p["cells.0._ops.3.fc1.bias"]
    )
    gate = F.linear(squeezed.relu(), p["cells.0._ops.3.fc2.weight"], p["cells.0._ops.3.fc2.bias"])
    state3 = F.avg_pool2d(state2, 3, 1, 1, count_include_pad=False)
    state3 = state3 + s1 * (gate * (gate + 3).clamp(0, 6) / 6)[:, :, None, None]
    # State 4 is reached by no path: zeros.
    features = torch.cat((state3, state2, torch.zeros_like(state2)), 1).mean((2, 3))
    expected = F.linear(features, p["classifier.0.weight"], p["classifier.0.bias"])
    assert_close(network(image), expected)


def test_the_first_cell_reads_the_rectified_stem() -> None:
    genotype = Genotype((("skip_connect", 0), ("none", 1)), (2,), (("none", 0),) * 2, (2,))
    network = Network(config(genotype, n_cells=1, stem_type=1, norm=None, preproc=False, C_mult=1))
    image = torch.randn(2, 3, 32, 32)
    p = dict(network.named_parameters())
    x = F.conv2d(image, p["stem0.0.weight"], padding=1).relu()
    x = F.conv2d(x, p["stem0.3.weight"], padding=1).relu()[:, :, ::2, ::2]
    expected = F.linear(x.mean((2, 3)), p["classifier.0.weight"], p["classifier.0.bias"])
    assert_close(network(image), expected)


@pytest.mark.parametrize("channels", [8, 24, 36])
def test_self_attention_equals_a_fused_one(channels: int) -> None:
    block = SelfAttention(channels).double()
    x = torch.randn(3, channels, 5, 5, dtype=torch.float64)
    tokens = x.flatten(2).transpose(1, 2)
    qkv = F.linear(block.ln1(tokens), block.to_qkv.weight)
    q, k, v = (part.unflatten(2, (8, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=2))
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    hidden = block.to_out(attended) + tokens
    up, down = block.ff.net[0], block.ff.net[3]
    expected = hidden + down(F.gelu(up(block.ln2(hidden))))
    assert_close(block(x), expected.transpose(1, 2).unflatten(2, (5, 5)))


def test_squeeze_excitation_strides_after_the_gate() -> None:
    block = SqueezeExcitation(6, 1)
    strided = SqueezeExcitation(6, 2)
    strided.load_state_dict(block.state_dict())
    x = torch.randn(2, 6, 7, 7)
    assert_close(strided(x), block(x)[:, :, ::2, ::2])


def test_factorized_reduce_takes_both_halves_of_the_pixels() -> None:
    block = FactorizedReduce(3, 4, norm=False)
    for size in (6, 5):
        x = torch.randn(2, 3, size, size)
        rectified = F.pad(x.relu(), (0, 1, 0, 1))
        even = F.conv2d(rectified[:, :, :size:2, :size:2], block.conv_1.weight)
        odd = F.conv2d(rectified[:, :, 1::2, 1::2], block.conv_2.weight)
        assert_close(block(x), torch.cat((even, odd), 1))


def test_positional_encoding_is_added() -> None:
    layer = PosEnc(4, 3)
    x = torch.randn(2, 4, 3, 3)
    assert_close(layer(x) - x, layer.weight.expand(2, -1, -1, -1), scale=1.0)
    assert float(layer.weight.detach().std()) > 0.3


# --- operations that do not matter for the output


def dead_names(network: Network, image_size: int) -> set[str]:
    """Parameters that the output does not depend on, by autograd."""
    logits = network(torch.randn(2, 3, image_size, image_size))
    names, params = zip(*network.named_parameters(), strict=True)
    grads = torch.autograd.grad(logits.sum(), params, allow_unused=True)
    return {name for name, grad in zip(names, grads, strict=True) if grad is None}


def note(names: set[str], name: str, *_: Any) -> None:
    names.add(name)


def test_dead_operations_are_not_executed(seeded: int) -> None:
    rng = random.Random(seeded)
    with_dead = 0
    for _ in range(25):
        described = random_config(rng, max_cells=5)
        if not is_connected(described):
            continue
        network = Network(described, image_size=32)
        dead = dead_names(network, 32)
        executed: set[str] = set()
        for name, module in network.named_modules():
            if next(module.parameters(recurse=False), None) is not None:
                module.register_forward_hook(partial(note, executed, name))
        with torch.no_grad():
            for name, param in network.named_parameters():
                if name in dead:
                    param.fill_(torch.nan)
            assert network(torch.randn(2, 3, 32, 32)).isfinite().all()
        owners = {name.rpartition(".")[0] for name in dead}
        assert owners.isdisjoint(executed)
        with_dead += bool(dead)
    assert with_dead >= 5


def test_runs_with_live_parameters_only_and_the_rest_on_meta() -> None:
    genotype = Genotype(
        (("conv_1x1", 0), ("none", 1), ("conv_3x3", 0), ("cse", 1)),
        (3,),
        (("skip_connect", 0), ("sep_conv_3x3", 1), ("skip_connect", 1), ("none", 2)),
        (3,),
    )
    described = config(genotype, n_cells=5)
    real = Network(described)
    with torch.device("meta"):
        network = Network(described)
    assert all(p.is_meta for p in network.parameters())
    dead = dead_names(real, 32)
    assert "cells.0._ops.0.op.1.weight" in dead
    live = {name: p for name, p in real.named_parameters() if name not in dead}
    image = torch.randn(2, 3, 32, 32)
    assert_close(torch.func.functional_call(network, live, (image,)), real(image))


@pytest.mark.parametrize("build", [Network, lambda c: Network(copy.deepcopy(c), 5, 64)])
def test_refuses_a_network_without_a_path(build: Any) -> None:
    # Reduction cells pass on what the normal cells do not yield.
    genotype = Genotype((("none", 0), ("none", 1)), (2,), (("conv_1x1", 0),) * 2, (2,))
    described = config(genotype)
    assert not is_connected(described)
    with pytest.raises(ValueError, match="config: no path leads from the input to the output"):
        build(described)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"num_classes": 0}, "num_classes: got 0"),
        ({"image_size": 32.0}, "image_size: got 32.0"),
        ({"image_size": True}, "image_size: got True"),
    ],
)
def test_refuses_sizes(arguments: dict[str, Any], names: str) -> None:
    with pytest.raises(ValueError, match=names):
        Network(config(), **arguments)


def test_refuses_a_single_patch() -> None:
    with pytest.raises(ValueError, match=r"image_size: got 3.*at least 4"):
        Network(VIT_CONFIG, image_size=3)


def test_copies_and_state_dicts_are_exchangeable(tmp_path: Path) -> None:
    network = Network(replace(VIT_CONFIG, n_cells=2, C=16))
    torch.save(network.state_dict(), tmp_path / "state.pt")
    other = Network(network.config)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(other(image), network(image))
    assert torch.equal(copy.deepcopy(network)(image), network(image))
