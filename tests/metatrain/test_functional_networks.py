"""Functional networks of DeepNets-1M: values and gradients of the module, over all its variants."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ghn_fast
from ghn_fast.deepnets import ArchItem, Genotype, NetworkConfig, SampledNets
from ghn_fast.deepnets.architectures.genotype import PRIMITIVES, VIT_CONFIG
from ghn_fast.deepnets.architectures.network import Network
from ghn_fast.deepnets.architectures.spec import is_connected
from ghn_fast.metatrain.candidates import FunctionalNetwork, ModuleNetwork, candidate_key
from ghn_fast.metatrain.functional_networks import NetworkProgram, primitive
from ghn_fast.ops import network_program
from ghn_fast.ops.network_program import attention, dropout
from ghn_fast.vision.precision import autocast
from networks import Tied
from random_configs import random_config
from tolerances import assert_close

CPU = torch.device("cpu")


class Seeded(nn.Module):
    """Dropout from a generator, in the place of ``nn.Dropout``."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, 0.5, self.generator)


def module_of(config: NetworkConfig, image_size: int, generator: torch.Generator) -> Network:
    network = Network(config, 10, image_size).train()
    layers = network.classifier
    for position, layer in enumerate(layers):
        if isinstance(layer, nn.Dropout):
            layers[position] = Seeded(generator)
    return network


def results(
    network: Any, values: dict[str, Tensor], images: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Logits, and gradients of a loss with respect to the parameters."""
    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
    logits = network(leaves, images)
    loss = F.cross_entropy(logits.float(), torch.arange(len(images)))
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return logits.detach(), found


def assert_same_network(
    config: NetworkConfig,
    image_size: int,
    *,
    dtype: torch.dtype = torch.float64,
    channels_last: bool = True,
) -> None:
    """Compare with the module, whose attention is spelled out and whose dropout is exchanged.

    In double precision: the sign of a value near zero decides about the gradient behind a ReLU, and
    in single precision it depends on rounding.
    """
    ours = FunctionalNetwork(config, 10, image_size, CPU)
    generator = torch.Generator()
    module = module_of(config, image_size, generator).to(dtype)
    values = {name: p.detach() for name, p in module.named_parameters()}
    images = torch.randn(4, 3, image_size, image_size, dtype=dtype)
    if channels_last:
        images = images.to(memory_format=torch.channels_last)

    def reference(leaves: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(module, leaves, (x,))

    assert ours.generator is not None
    ours.generator.manual_seed(3)
    have = results(ours, values, images)
    generator.manual_seed(3)
    want = results(reference, values, images)
    assert_close(have[0], want[0], context="ghn", name=str(config))
    largest = max(float(g.abs().max()) for g in want[1] if g is not None)
    for name, one, other in zip(values, have[1], want[1], strict=True):
        assert (one is None) == (other is None), name
        if one is not None and other is not None:
            # Gradients of single elements can be sums that cancel, and the loss is computed in
            # single precision.
            scale = max(float(other.abs().max()), 1e-3 * largest)
            message = f"gradient of {name} in {config}"
            assert_close(one.float(), other.float(), context="gradient", scale=scale, name=message)


def test_random_configurations(seeded: int) -> None:
    rng, count, used = random.Random(seeded), 0, set()
    while count < 25:
        config = random_config(rng, max_cells=4)
        if not is_connected(config):
            continue
        count += 1
        used |= set(config.genotype.primitives())
        large = not config.is_vit and config.glob_avg and rng.random() < 0.15
        size = 64 if large else rng.choice((8, 9, 12))
        assert_same_network(config, size, channels_last=rng.random() < 0.5)
    assert used == set(PRIMITIVES)


@pytest.mark.parametrize("split", ["train", "val", "test", "wide", "deep", "dense", "bnfree"])
def test_every_split(split: str) -> None:
    item = SampledNets(split, 2, seed=5)[1]
    config = replace(item.config_for(8), C=16, fc_dim=16)
    assert_same_network(config, 8)


@pytest.mark.parametrize("image_size", [12, 32])
def test_vision_transformer(image_size: int) -> None:
    assert_same_network(replace(VIT_CONFIG, C=24), image_size)


@pytest.mark.parametrize("norm", ["bnorm", None])
def test_autocast_is_near(norm: str | None) -> None:
    genes = tuple((name, k % 2) for k, name in enumerate(("conv_3x3", "sep_conv_3x3", "cse")))
    genotype = Genotype((*genes, ("msa", 0)), (2, 3), (*genes, ("skip_connect", 1)), (2, 3))
    config = NetworkConfig(genotype=genotype, n_cells=3, C=16, norm=norm, fc_layers=1)
    ours = FunctionalNetwork(config, 10, 16, CPU)
    module = module_of(config, 16, torch.Generator())
    values = {name: p.detach() for name, p in module.named_parameters()}
    images = torch.randn(8, 3, 16, 16).to(memory_format=torch.channels_last)
    with autocast("bf16", CPU):
        have = ours(values, images)
        want = torch.func.functional_call(module, values, (images,))
    assert have.dtype == want.dtype
    assert_close(have, want, context="ghn", dtype=torch.bfloat16)


@pytest.mark.parametrize("norm", ["bnorm", None])
def test_weights_in_bfloat16_are_near(norm: str | None) -> None:
    genes = tuple((name, k % 2) for k, name in enumerate(("conv_3x3", "dil_conv_3x3", "cse")))
    genotype = Genotype((*genes, ("msa", 0)), (2, 3), (*genes, ("sep_conv_3x3", 1)), (2, 3))
    # One cell: every layer rounds once more, and batch normalisation enlarges that.
    config = NetworkConfig(genotype=genotype, n_cells=1, C=16, norm=norm, fc_layers=1)
    module = module_of(config, 16, torch.Generator())
    wide = {name: p.detach() for name, p in module.named_parameters()}
    narrow = {name: p if p.ndim == 1 else p.bfloat16() for name, p in wide.items()}
    images = torch.randn(8, 3, 16, 16).to(memory_format=torch.channels_last)
    network = FunctionalNetwork(config, 10, 16, CPU)
    assert network.casts
    have, found = results(network, narrow, images.bfloat16())
    want, _ = results(network, {name: p.to(wide[name]) for name, p in narrow.items()}, images)
    assert have.dtype == torch.bfloat16
    assert_close(have, want, context="ghn", dtype=torch.bfloat16)
    for value, gradient in zip(narrow.values(), found, strict=True):
        assert gradient is None or gradient.dtype == value.dtype


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_kernels_larger_than_the_image_in_bfloat16(size: int, stride: int) -> None:
    narrow = (torch.randn(128, 128, 7, 7) / 10).bfloat16().requires_grad_()
    x = torch.randn(64, 128, size, size).to(memory_format=torch.channels_last).bfloat16()
    x.requires_grad_()
    program = NetworkProgram(norm=True)
    program.conv(0, "a", stride)
    have = program.run({"a.weight": narrow}, x)
    wide = [t.detach().float().requires_grad_() for t in (x, narrow)]
    want = F.conv2d(*wide, None, stride, 3)
    assert_close(have, want, dtype=torch.bfloat16)
    direction = torch.randn(want.shape).bfloat16()
    found = torch.autograd.grad(have, (x, narrow), direction)
    expected = torch.autograd.grad(want, wide, direction.float())
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, context="gradient", dtype=torch.bfloat16)


# Computed in float32, the result is rounded once. Product by product, scores, weights and results
# are rounded one after the other, and what a score loses becomes a relative error of its weight: up
# to 2^-6 for scores from 4 to 8.
@pytest.mark.parametrize(
    ("most_pixels", "value", "gradient"), [(0, "op", "gradient"), (256, "ghn", "ghn")]
)
def test_attention_in_bfloat16(
    most_pixels: int, value: str, gradient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_program, "MOST_PIXELS", most_pixels)
    narrow = [torch.randn(2, 4, 16, 8).bfloat16().requires_grad_() for _ in range(3)]
    wide = [part.detach().float().requires_grad_() for part in narrow]
    have = attention(*narrow)
    want = F.scaled_dot_product_attention(*wide)
    assert have.dtype == torch.bfloat16
    assert_close(have, want, context=value, dtype=torch.bfloat16)
    direction = torch.randn(want.shape).bfloat16()
    pairs = zip(
        torch.autograd.grad(have, narrow, direction),
        torch.autograd.grad(want, wide, direction.float()),
        strict=True,
    )
    for one, other in pairs:
        assert_close(one, other, context=gradient, dtype=torch.bfloat16)


# Without the last ReLU of a network no sign can decide about a gradient in single precision alone.
@pytest.mark.parametrize("name", ["sep_conv_5x5", "dil_conv_5x5", "conv_5x5"])
@pytest.mark.parametrize("stride", [1, 2])
def test_ops_in_single_precision(name: str, stride: int, seeded: int) -> None:
    shapes = {"op.1": (16, 1, 5, 5), "op.2": (16, 16, 1, 1), "op.5": (16, 1, 5, 5)}
    shapes |= {"op.6": (16, 16, 1, 1)}
    norms = {"sep_conv_5x5": ("op.3", "op.7"), "dil_conv_5x5": ("op.3",), "conv_5x5": ("op.2",)}
    if name == "conv_5x5":
        shapes = {"op.1": (16, 16, 5, 5)}
    values = {f"a.{at}.weight": torch.randn(shape) / 5 for at, shape in shapes.items()}
    for at in norms[name]:
        values |= {f"a.{at}.weight": torch.rand(16) + 0.5, f"a.{at}.bias": torch.rand(16) + 1.0}
    images = torch.randn(4, 16, 9, 9).to(memory_format=torch.channels_last)
    found = {}
    for dtype in (torch.float32, torch.float64):
        leaves = {key: value.to(dtype).requires_grad_() for key, value in values.items()}
        x = images.to(dtype)
        program = NetworkProgram(norm=True)
        primitive(name, 0, program, "a", stride)
        out = program.run(leaves, x)
        loss = (out * torch.linspace(-1, 1, out.numel(), dtype=dtype).view(out.shape)).sum()
        used = {key: leaf for key, leaf in leaves.items() if key in values}
        grads = torch.autograd.grad(loss, list(used.values()), allow_unused=True)
        found[dtype] = (out.detach(), dict(zip(used, grads, strict=True)))
    have, want = found[torch.float32], found[torch.float64]
    assert_close(have[0], want[0].float(), context="ghn", name=name)
    for key, gradient in have[1].items():
        other = want[1][key]
        assert (gradient is None) == (other is None), key
        if gradient is not None:
            assert_close(gradient, other.float(), context="gradient", name=f"gradient of {key}")


def test_only_parameters_of_the_graph_are_read() -> None:
    """Layers that no path uses have parameters, but nobody predicts them."""

    class Recording(dict[str, Tensor]):
        read: set[str]

        def __getitem__(self, name: str) -> Tensor:
            self.read.add(name)
            return super().__getitem__(name)

    ghn = ghn_fast.GHN(ghn_fast.GHNConfig(hid=8, max_shape=(16, 16, 5, 5)))
    for item in SampledNets("train", 6, seed=2):
        (tensors,) = ghn.predict_tensors([item.graph_for(10, 16)])
        tensors = Recording(tensors)
        tensors.read = set()
        FunctionalNetwork(item.config_for(16), 10, 16, CPU)(tensors, torch.randn(2, 3, 16, 16))
        assert tensors.read == set(tensors)


def test_missing_parameter_is_named() -> None:
    config = SampledNets("train", 1, seed=2)[0].config
    assert config is not None
    with pytest.raises(KeyError, match=r"stem0?\."):
        FunctionalNetwork(config, 10, 16, CPU)({}, torch.randn(2, 3, 16, 16))


def test_dropout_keeps_the_mean() -> None:
    x = torch.ones(20_000)
    y = dropout(x, 0.25, torch.Generator().manual_seed(3))
    assert_close(y.unique(), [0.0, 4 / 3])
    # compared by hand: a share of random draws, within six standard deviations.
    assert float((y == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert torch.equal(dropout(x, 0.25, torch.Generator().manual_seed(3)), y)
    torch.manual_seed(1)
    z = dropout(x, 0.25, None)
    torch.manual_seed(1)
    assert torch.equal(dropout(x, 0.25, None), z)


def test_structures_have_keys() -> None:
    items = SampledNets("train", 2, seed=2)
    one, again, other = (
        candidate_key(item, num_classes=10, image_size=16)
        for item in (items[0], ArchItem(7, "same", items[0].config), items[1])
    )
    assert one == again != other
    assert candidate_key(items[0], num_classes=10, image_size=32) != one


def test_shared_parameters_are_named_once() -> None:
    with torch.device("meta"):
        network = ModuleNetwork(Tied())
    values = {name: torch.randn(p.shape) for name, p in Tied().named_parameters()}
    reference = Tied()
    reference.load_state_dict({**values, "second.weight": values["first.weight"]})
    images = torch.randn(2, 3, 8, 8)
    assert_close(network(values, images), reference(images))
    with pytest.raises(ValueError, match="names: got 'third', which Tied"):
        network({**values, "third": torch.zeros(1)}, images)
