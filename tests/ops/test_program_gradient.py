"""Networks as programs: the compiled forward, loss and backward against autograd in PyTorch."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ghn_fast.deepnets import SampledNets
from ghn_fast.deepnets.architectures.genotype import PRIMITIVES
from ghn_fast.deepnets.architectures.network import Network
from ghn_fast.deepnets.architectures.spec import is_connected, network_spec
from ghn_fast.metatrain.functional_networks import NetworkProgram, primitive, program_of
from ghn_fast.ops.backend import extension_problem
from ghn_fast.ops.network_program import SAME, Code, Program
from ghn_fast.ops.program_gradient import program_gradient
from random_configs import random_config
from tolerances import assert_close

PROBLEM = extension_problem()
pytestmark = pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))

Places = dict[str, tuple[int, tuple[int, ...]]]
CLASSES = 10


def lay_out(values: dict[str, Tensor]) -> tuple[Tensor, Places]:
    """A flat buffer with gaps, and where each parameter is in it."""
    places: Places = {}
    end = 3
    for name, value in values.items():
        places[name] = end, tuple(value.shape)
        end += value.numel() + 5
    flat = torch.full((end,), 7.0)
    for name, (offset, shape) in places.items():
        flat[offset : offset + shape_numel(shape)] = values[name].flatten()
    return flat, places


def shape_numel(shape: Sequence[int]) -> int:
    return int(torch.Size(shape).numel())


def by_autograd(
    program: Program,
    values: dict[str, Tensor],
    images: Tensor,
    targets: Tensor,
    *,
    dtype: torch.dtype,
    factor: float = 1.0,
    smoothing: float = 0.0,
    seed: int = 0,
) -> tuple[float, dict[str, Tensor], int]:
    """Loss, gradients and correct images in PyTorch, with weights and images of a type."""
    leaves = {
        name: (value if value.ndim == 1 and dtype == torch.bfloat16 else value.to(dtype))
        .clone()
        .requires_grad_()
        for name, value in values.items()
    }
    logits = program.run(leaves, images.to(dtype), torch.Generator().manual_seed(seed))
    wide = logits if dtype == torch.float64 else logits.float()
    loss = F.cross_entropy(wide, targets, label_smoothing=smoothing)
    names = list(leaves)
    found = torch.autograd.grad(loss * factor, [leaves[n] for n in names], allow_unused=True)
    gradients = {
        name: torch.zeros_like(values[name]) if one is None else one
        for name, one in zip(names, found, strict=True)
    }
    return float(loss.detach()), gradients, int((logits.argmax(1) == targets).sum())


def compiled(
    program: Program,
    values: dict[str, Tensor],
    images: Tensor,
    targets: Tensor,
    *,
    narrow: bool = False,
    seed: int = 0,
    **more: Any,
) -> tuple[tuple[int, float, int], dict[str, Tensor], Tensor]:
    flat, places = lay_out(values)
    gradient = torch.zeros_like(flat)
    result = program_gradient(
        program,
        places,
        flat,
        flat.bfloat16() if narrow else None,
        images,
        targets,
        gradient,
        generator=torch.Generator().manual_seed(seed),
        **more,
    )
    parts = {
        name: gradient[offset : offset + shape_numel(shape)].view(shape)
        for name, (offset, shape) in places.items()
    }
    return result, parts, gradient


def values_of(program: Program, config: Any, size: int) -> dict[str, Tensor]:
    network = Network(config, CLASSES, size)
    return {n: p.detach() for n, p in network.named_parameters() if n in program.names}


def assert_same(
    program: Program,
    values: dict[str, Tensor],
    images: Tensor,
    dtype: torch.dtype = torch.float32,
    **more: Any,
) -> None:
    """Both compute in the same type, so that signs of values near zero are the same, too."""
    targets = torch.arange(len(images)) % CLASSES
    narrow = dtype == torch.bfloat16
    smoothing = more.get("label_smoothing", 0.0)
    (status, loss, correct), have, _ = compiled(
        program, values, images, targets, narrow=narrow, factor=0.5, **more
    )
    want_loss, want, want_correct = by_autograd(
        program, values, images, targets, dtype=dtype, factor=0.5, smoothing=smoothing
    )
    assert (status, correct) == (0, want_correct)
    assert_close(torch.tensor(loss), torch.tensor(want_loss), name="loss")
    largest = max(float(g.abs().max()) for g in want.values())
    for name, one in have.items():
        scale = max(float(want[name].abs().max()), 1e-3 * largest)
        # Sums of bfloat16 are rounded once here, and after every term there; every layer below
        # passes that on.
        context = "ghn" if narrow else "gradient"
        other = want[name].float()
        assert_close(one, other, context=context, scale=scale, dtype=dtype, name=name)


def images_of(size: int, batch: int = 4, channels: int = 3) -> Tensor:
    x = torch.randn(batch, channels, size, size)
    return x.to(memory_format=torch.channels_last)


def test_random_configurations(seeded: int) -> None:
    rng, count, used = random.Random(seeded), 0, set()
    while count < 40 or used != set(PRIMITIVES):
        config = random_config(rng, max_cells=4)
        if not is_connected(config):
            continue
        count += 1
        used |= set(config.genotype.primitives())
        large = not config.is_vit and config.glob_avg and rng.random() < 0.1
        size = 64 if large else rng.choice((8, 9, 12))
        program = program_of(network_spec(config, CLASSES, size))
        images = images_of(size)
        if rng.random() < 0.3:
            images = images.contiguous()
        smoothing = rng.choice((0.0, 0.1))
        assert_same(program, values_of(program, config, size), images, label_smoothing=smoothing)


@pytest.mark.parametrize("split", ["train", "wide", "deep", "dense", "bnfree"])
def test_every_split(split: str) -> None:
    item = SampledNets(split, 2, seed=5)[1]
    program = program_of(network_spec(item.config_for(16), CLASSES, 16))
    assert_same(program, values_of(program, item.config_for(16), 16), images_of(16, 8))


# One primitive each: every layer rounds once more, and batch normalisation enlarges that.
@pytest.mark.parametrize("name", [p for p in PRIMITIVES if p != "none"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_primitive(name: str, stride: int, norm: bool, dtype: torch.dtype) -> None:
    if name == "msa" and stride == 2:
        pytest.skip("attention keeps the size")
    program, channels, size = NetworkProgram(norm), 16, 9
    x = program.conv(0, "stem")
    program.linear(
        program.add(
            Code.FLATTEN,
            program.add(Code.GLOBAL_POOL, primitive(name, x, program, "a", stride)),
        ),
        "head",
    )
    shapes = {"stem.weight": (channels, 3, 3, 3), "head.weight": (CLASSES, channels)}
    shapes |= {"head.bias": (CLASSES,)} | shapes_of(name, channels)
    values = {n: torch.randn(shapes[n]) / max(shape_numel(shapes[n][1:]), 4) ** 0.5
              for n in program.names}  # fmt: skip
    assert_same(program, values, images_of(size, 8), dtype)


def shapes_of(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a primitive's parameters."""
    from ghn_fast.deepnets.architectures.layers import make_op

    found: dict[str, tuple[int, ...]] = {}
    for stride in (1, 2):
        for norm in (True, False):
            op = make_op(name, channels, stride, norm)
            found |= {f"a.{n}": tuple(p.shape) for n, p in op.named_parameters()}
    return found


def summing(terms: int) -> Program:
    """A value that many read: directly, through a ReLU, and as parts of a concatenation."""
    program = NetworkProgram(norm=True)
    x = program.norm(program.conv(0, "stem"), "norm")
    parts = [program.conv(x if i % 2 else program.relu(x), f"conv{i}") for i in range(terms)]
    out = program.add(Code.CAT, x, *parts, program.relu(x), program.add(Code.ZEROS, x))
    pooled = program.add(Code.FLATTEN, program.add(Code.GLOBAL_POOL, out))
    program.linear(pooled, "head")
    return program


@pytest.mark.parametrize("channels", [1, 5, 16, 33])
@pytest.mark.parametrize("terms", [1, 3, 19])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_many_readers(terms: int, channels: int, dtype: torch.dtype) -> None:
    program = summing(terms)
    shapes: dict[str, tuple[int, ...]] = {"stem.weight": (channels, 3, 3, 3)}
    shapes |= {"norm.weight": (channels,), "norm.bias": (channels,)}
    shapes |= {f"conv{i}.weight": (channels, channels, 1, 1) for i in range(terms)}
    shapes |= {"head.weight": (CLASSES, channels * (terms + 3)), "head.bias": (CLASSES,)}
    values = {name: torch.randn(shapes[name]) / 3 for name in program.names}
    assert_same(program, values, images_of(7, 6), dtype)


def test_a_parameter_that_two_instructions_read() -> None:
    program = NetworkProgram(norm=False)
    x = program.conv(0, "stem")
    x = program.conv(program.relu(program.conv(x, "same")), "same")
    program.linear(program.add(Code.FLATTEN, program.add(Code.GLOBAL_POOL, x)), "head")
    values = {"stem.weight": torch.randn(6, 3, 3, 3), "same.weight": torch.randn(6, 6, 3, 3) / 5}
    values |= {"head.weight": torch.randn(CLASSES, 6), "head.bias": torch.randn(CLASSES)}
    assert_same(program, values, images_of(8))


def test_dropout_draws_from_the_generator() -> None:
    item = next(
        item for item in SampledNets("train", 50, seed=1)
        if len(network_spec(item.config_for(8), CLASSES, 8).classifier) > 2
    )  # fmt: skip
    program = program_of(network_spec(item.config_for(8), CLASSES, 8))
    assert any(step.code is Code.DROPOUT for step in program.instructions)
    values, images = values_of(program, item.config_for(8), 8), images_of(8)
    targets = torch.arange(4)
    first, second, other = (
        compiled(program, values, images, targets, seed=seed)[0][1] for seed in (1, 1, 2)
    )
    assert first == second != other
    want = by_autograd(program, values, images, targets, dtype=torch.float32, seed=1)[0]
    assert_close(torch.tensor(first), torch.tensor(want))


def test_only_the_places_of_parameters_are_written() -> None:
    program = summing(2)
    shapes = {"stem.weight": (4, 3, 3, 3), "norm.weight": (4,), "norm.bias": (4,)}
    shapes |= {"conv0.weight": (4, 4, 1, 1), "conv1.weight": (4, 4, 1, 1)}
    shapes |= {"head.weight": (CLASSES, 20), "head.bias": (CLASSES,)}
    values = {name: torch.randn(shape) for name, shape in shapes.items()}
    _, places = lay_out(values)
    _, _, gradient = compiled(program, values, images_of(5), torch.arange(4))
    inside = torch.zeros(len(gradient), dtype=torch.bool)
    for offset, shape in places.values():
        inside[offset : offset + shape_numel(shape)] = True
    assert gradient[~inside].abs().max() == 0.0
    assert gradient[inside].abs().max() > 0.0


@pytest.mark.parametrize(("bad", "status"), [("stem.weight", 1), ("head.weight", 2)])
def test_what_is_not_finite_is_told_and_leaves_zeros(bad: str, status: int) -> None:
    program = NetworkProgram(norm=False)
    pooled = program.add(Code.GLOBAL_POOL, program.relu(program.conv(0, "stem")))
    program.linear(program.add(Code.FLATTEN, pooled), "head", bias=False)
    values = {"stem.weight": torch.rand(4, 3, 1, 1), "head.weight": torch.rand(CLASSES, 4)}
    images = images_of(4).abs()
    if status == 1:
        values[bad][0, 0] = torch.nan
    else:
        # Logits are 0, but their gradient times 1e20 times features of 1e35 is beyond float32.
        values["stem.weight"] *= 0.0
        values["stem.weight"] += 1e18
        values["head.weight"] = torch.zeros(CLASSES, 4)
        images *= 1e17
    (found, loss, _), _, gradient = compiled(
        program, values, images, torch.zeros(4, dtype=torch.int64), factor=1e20
    )
    assert found == status
    assert (loss == loss) == (status == 2)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_the_same_bits_for_any_number_of_threads_and_beside_others() -> None:
    config = SampledNets("train", 2, seed=5)[0].config_for(16)
    program = program_of(network_spec(config, CLASSES, 16))
    values, images, targets = values_of(program, config, 16), images_of(16, 8), torch.arange(8)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(compiled(program, values, images, targets)[2])
    finally:
        torch.set_num_threads(before)

    def run() -> None:
        torch.set_num_threads(1)
        found.append(compiled(program, values, images, targets)[2])

    others = [threading.Thread(target=run) for _ in range(3)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    torch.set_num_threads(before)
    assert len(found) == 5
    for one in found[2:]:
        assert torch.equal(one, found[0])
    assert_close(found[1], found[0], context="gradient")


def a_program() -> tuple[Program, dict[str, Tensor]]:
    program = NetworkProgram(norm=False)
    pooled = program.add(Code.GLOBAL_POOL, program.conv(0, "stem"))
    program.linear(program.add(Code.FLATTEN, pooled), "head", bias=False)
    return program, {"stem.weight": torch.rand(4, 3, 3, 3), "head.weight": torch.rand(CLASSES, 4)}


WRONG_PROGRAMS = {
    "ends within": [0, 1],
    "unknown instruction": [99, 1, 0, 0, 0],
    "negative": [-1, 1, 0, 0, 0],
    "values": [2, 1, 5, 0, 0],
    "of itself": [2, 1, 1, 0, 0],
    "parameters": [0, 1, 0, 1, 7, 4, 1, 1, 1, SAME],
    "too few numbers": [0, 1, 0, 1, 0, 2, 1, 1],
    "huge length": [2, 2**60, 0, 0, 0],
    "no source": [6, 0, 0, 0],
    "nothing": [],
}


@pytest.mark.parametrize("packed", WRONG_PROGRAMS.values(), ids=WRONG_PROGRAMS)
def test_wrong_programs_are_refused(packed: list[int]) -> None:
    program, values = a_program()
    program.packed = packed
    with pytest.raises(ValueError, match="program: "):
        compiled(program, values, images_of(4), torch.arange(4))


@pytest.mark.parametrize(
    "numbers",
    [(0, 1, 1, SAME), (-1, 1, 1, SAME), (1, 1, 0, SAME), (1, 1, 1, -7), (1, 1, 2**40, SAME)],
)
def test_wrong_convolutions_raise(numbers: tuple[int, ...]) -> None:
    program, values = a_program()
    program.instructions[0] = program.instructions[0]._replace(numbers=numbers)
    with pytest.raises((ValueError, RuntimeError)):
        compiled(program, values, images_of(4), torch.arange(4))


@pytest.mark.parametrize(("code", "numbers"), [
    (Code.STRIDE, (0,)), (Code.STRIDE, (-2,)), (Code.MAX_POOL, (0, 1)), (Code.AVG_POOL, (3, 0)),
    (Code.ATTEND, (0,)), (Code.ATTEND, (4,)), (Code.GATE, ()), (Code.IMAGES, ()),
    (Code.LAYER_NORM, ()),
])  # fmt: skip
def test_wrong_instructions_raise(code: Code, numbers: tuple[int, ...]) -> None:
    program, values = a_program()
    sources = (1, 1) if code in (Code.GATE, Code.IMAGES) else (1,)
    names = ("head.weight", "head.weight") if code is Code.LAYER_NORM else ()
    program.instructions[1] = program.instructions[1]._replace(
        code=code, numbers=numbers, sources=sources, names=names
    )
    with pytest.raises((ValueError, RuntimeError, IndexError)):
        compiled(program, values, images_of(4), torch.arange(4))


def call(**changed: Any) -> None:
    program, values = a_program()
    flat, places = lay_out(values)
    arguments: dict[str, Any] = {
        "places": places,
        "flat": flat,
        "narrow": None,
        "images": images_of(4),
        "targets": torch.arange(4),
        "gradient": torch.zeros_like(flat),
    }
    program_gradient(program, **(arguments | changed))


@pytest.mark.parametrize(("changed", "error", "match"), [
    ({"flat": torch.zeros(10)}, ValueError, "gradient: got shape"),
    ({"flat": torch.zeros(9, 9)}, ValueError, "flat: got shape"),
    ({"gradient": torch.zeros(200, dtype=torch.float64)}, (TypeError, ValueError), "gradient: got"),
    ({"narrow": torch.zeros(5)}, ValueError, "narrow: got shape"),
    ({"images": torch.zeros(4, 3)}, ValueError, "images: got shape"),
    ({"places": {"stem.weight": (0, (4, 3, 3, 3))}}, KeyError, "head.weight"),
    ({"places": {"stem.weight": (10**6, (4, 3, 3, 3)), "head.weight": (0, (10, 4))}}, ValueError,
     "places: got a parameter of 108 elements at 1000000"),
    ({"places": {"stem.weight": (-1, (4, 3, 3, 3)), "head.weight": (0, (10, 4))}}, ValueError,
     "places: "),
    ({"places": {"stem.weight": (0, (2**40, 2**40, 3, 3)), "head.weight": (0, (10, 4))}},
     ValueError, "places: got a parameter larger"),
    ({"targets": torch.arange(5)}, (ValueError, RuntimeError, IndexError), None),
    ({"targets": torch.full((4,), 10)}, (ValueError, RuntimeError, IndexError), None),
])  # fmt: skip
def test_wrong_arguments_raise(changed: dict[str, Any], error: Any, match: str | None) -> None:
    call()
    with pytest.raises(error, match=match):
        call(**changed)
