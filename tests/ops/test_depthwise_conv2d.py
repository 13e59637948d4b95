"""Depthwise convolution: values, gradients, layouts, threads, errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ghn_fast
from ghn_fast.ops.backend import extension, extension_problem
from ghn_fast.ops.depthwise_conv2d import depthwise_conv2d, reference
from randomised import given, settings, st
from tolerances import assert_close

Pair = tuple[int, int]
PROBLEM = extension_problem()
needs_extension = pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))
BACKENDS = ["reference", pytest.param("cpu", marks=needs_extension)]


@pytest.fixture(params=BACKENDS)
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    with ghn_fast.backend(request.param):
        yield request.param


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)


def naive(x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> np.ndarray:
    """The definition, element by element of a kernel, in float64."""
    pad = [(0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2]
    wide, kernels = np.pad(x.double().numpy(), pad), weight.double().numpy()
    height, width = (
        (wide.shape[2 + i] - dilation[i] * (kernels.shape[2 + i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    )
    out = np.zeros((*x.shape[:2], height, width))
    for h in range(kernels.shape[2]):
        for w in range(kernels.shape[3]):
            top, left = h * dilation[0], w * dilation[1]
            rows = slice(top, top + (height - 1) * stride[0] + 1, stride[0])
            columns = slice(left, left + (width - 1) * stride[1] + 1, stride[1])
            out += wide[:, :, rows, columns] * kernels[None, :, 0, h, w, None, None]
    return out


def gradients(x: Tensor, weight: Tensor, grad: Tensor, *geometry: Any) -> tuple[Tensor, ...]:
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    out = depthwise_conv2d(x, weight, *geometry)
    return (out, *torch.autograd.grad(out, (x, weight), grad))


def compare(x: Tensor, weight: Tensor, *geometry: Any) -> None:
    """Values and gradients of the compiled op against the reference in float64."""
    with ghn_fast.backend("reference"):
        shape = depthwise_conv2d(x, weight, *geometry).shape
        grad = torch.randn(shape).to(x.dtype)
        want = gradients(x.double(), weight.double(), grad.double(), *geometry)
    with ghn_fast.backend("cpu"):
        got = gradients(x, weight, grad, *geometry)
    for what, a, b in zip(("out", "grad of x", "grad of weight"), got, want, strict=True):
        assert a.dtype == x.dtype
        context = "op" if what == "out" else "gradient"
        assert_close(a, b, dtype=x.dtype, context=context, name=what)
    assert got[0].is_contiguous(memory_format=torch.channels_last)
    assert got[1].is_contiguous(memory_format=torch.channels_last)


GEOMETRIES = [
    ((1, 1), (1, 1), (0, 0), (1, 1)),
    ((3, 3), (1, 1), (1, 1), (1, 1)),
    ((5, 5), (1, 1), (2, 2), (1, 1)),
    ((5, 5), (2, 2), (2, 2), (1, 1)),
    ((5, 5), (1, 1), (4, 4), (2, 2)),
    ((1, 7), (1, 1), (0, 3), (1, 1)),
    ((7, 1), (2, 1), (3, 0), (1, 1)),
    ((11, 11), (1, 1), (5, 5), (1, 1)),
    ((2, 3), (3, 2), (1, 4), (2, 1)),
    ((1, 1), (2, 3), (2, 2), (1, 1)),
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_equals_the_definition(name: str, geometry: tuple[Pair, ...]) -> None:
    kernel, stride, padding, dilation = geometry
    x, weight = images(2, 5, 13, 11), torch.randn(5, 1, *kernel)
    got = depthwise_conv2d(x, weight, stride, padding, dilation)
    assert_close(got, naive(x, weight, stride, padding, dilation), dtype=torch.float32)


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("shape", [(3, 64, 16, 16), (2, 17, 12, 19), (70, 8, 11, 11)], ids=str)
def test_equals_the_reference(
    shape: tuple[int, ...], geometry: tuple[Pair, ...], dtype: torch.dtype, nan_empty: None
) -> None:
    kernel, *rest = geometry
    compare(images(*shape, dtype=dtype), torch.randn(shape[1], 1, *kernel).to(dtype), *rest)


@needs_extension
@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, most) for most in (5, 40, 20, 20)]),
    kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dtype=st.sampled_from((torch.float32, torch.bfloat16)),
)
def test_random_shapes(
    shape: tuple[int, ...], kernel: Pair, stride: Pair, padding: Pair, dilation: Pair,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    # Padding where the kernel would not fit, and none of it anywhere else.
    padding = tuple(  # type: ignore[assignment]
        max(p, -(-(d * (k - 1) + 1 - size) // 2))
        for size, k, p, d in zip(shape[2:], kernel, padding, dilation, strict=True)
    )
    weight = torch.randn(shape[1], 1, *kernel).to(dtype)
    compare(images(*shape, dtype=dtype), weight, stride, padding, dilation)


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stride", [1, 2])
def test_images_that_pass_in_bands(dtype: torch.dtype, stride: int) -> None:
    """A block of lanes of such an image is larger than what is spread out at a time."""
    compare(images(1, 3, 130, 250, dtype=dtype), torch.randn(3, 1, 5, 5).to(dtype), stride, 2)


@needs_extension
def test_layouts(name: str) -> None:
    x, weight = images(2, 9, 8, 7), torch.randn(9, 1, 3, 3)
    want = depthwise_conv2d(x, weight, 1, 1)
    variants = [
        x.contiguous(),
        torch.stack([x, x], -1)[..., 0],
        x.transpose(2, 3).contiguous().transpose(2, 3),
    ]
    for variant in variants:
        got = depthwise_conv2d(variant, weight, 1, 1)
        assert got.is_contiguous(memory_format=torch.channels_last)
        assert_close(got, want)
    strided = torch.stack([weight, weight], -1)[..., 0]
    assert_close(depthwise_conv2d(x, strided, 1, 1), want)
    flat = gradients(x, weight, torch.ones(()).expand(want.shape), 1, 1)
    for a, b in zip(flat, gradients(x, weight, torch.ones(want.shape), 1, 1), strict=True):
        assert_close(a, b, context="gradient")


@needs_extension
@pytest.mark.skipif(
    PROBLEM is None and not extension.module.has_threads,
    reason="the extension was compiled without OpenMP",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_the_same_bits_for_any_number_of_threads(dtype: torch.dtype, kernel: int) -> None:
    x, weight = images(67, 24, 9, 9, dtype=dtype), torch.randn(24, 1, kernel, kernel).to(dtype)
    grad = torch.randn(67, 24, 9, 9).to(dtype)
    found = []
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            found.append(gradients(x, weight, grad, 1, kernel // 2))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("geometry", [(1, 1, 1), (2, 2, 1), ((1, 2), (3, 2), (2, 1))], ids=str)
def test_gradcheck_in_double_precision(name: str, geometry: tuple[Any, ...]) -> None:
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: depthwise_conv2d(x, w, *geometry), (x, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0, 4, 5, 5), (2, 0, 5, 5), (0, 0, 5, 5)], ids=str)
def test_nothing_to_convolve(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = images(*shape, dtype=dtype), torch.randn(shape[1], 1, 3, 3).to(dtype)
    out = torch.empty(*shape[:2], 3, 3, dtype=dtype)
    got, grad_x, grad_weight = gradients(x, weight, out)
    assert got.shape == out.shape and grad_x.shape == shape
    assert torch.equal(grad_weight, torch.zeros_like(weight))


def test_only_the_wanted_gradients(name: str) -> None:
    x, weight = images(2, 4, 5, 5), torch.randn(4, 1, 3, 3)
    both = gradients(x, weight, torch.ones(2, 4, 3, 3))
    x.requires_grad_()
    depthwise_conv2d(x, weight).sum().backward()
    assert x.grad is not None
    assert_close(x.grad, both[1], context="gradient")
    weight.requires_grad_()
    depthwise_conv2d(x.detach(), weight).sum().backward()
    assert weight.grad is not None
    assert_close(weight.grad, both[2], context="gradient")


def test_nan_and_infinity_stay_in_their_channel(name: str) -> None:
    x = torch.zeros(1, 20, 5, 5)
    x[0, 3, 2, 2], x[0, 18, 0, 0] = float("nan"), float("inf")
    for dtype in (torch.float32, torch.bfloat16):
        out = depthwise_conv2d(x.to(dtype), torch.ones(20, 1, 3, 3, dtype=dtype), 1, 1)
        assert out[0, 3, 1:4, 1:4].isnan().all() and out[0, 18, :2, :2].isinf().all()
        assert int(out.isfinite().logical_not().sum()) == 13


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype) -> None:
    x, weight = images(2, 6, 8, 8, dtype=dtype), torch.randn(6, 1, 3, 3).to(dtype)
    ops = torch.ops.ghn_fast
    geometry = ([2, 1], [1, 2], [1, 2])
    inputs = (x.requires_grad_(), weight.requires_grad_(), *geometry)
    torch.library.opcheck(ops.depthwise_conv2d.default, inputs)
    x, weight = x.detach(), weight.detach()
    grad = torch.randn_like(ops.depthwise_conv2d(x, weight, *geometry))
    torch.library.opcheck(ops.depthwise_conv2d_grad_input.default, (grad, weight, 8, 8, *geometry))
    torch.library.opcheck(ops.depthwise_conv2d_grad_weight.default, (grad, x, 3, 3, *geometry))


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_into_one_graph(dtype: torch.dtype) -> None:
    x, weight = images(2, 6, 8, 8, dtype=dtype), torch.randn(6, 1, 3, 3).to(dtype)

    def run(function: Any) -> tuple[Tensor, ...]:
        a, b = x.detach().requires_grad_(), weight.detach().requires_grad_()
        out = function(a, b)
        return (out, *torch.autograd.grad(out.float().square().sum(), (a, b)))

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return 2 * depthwise_conv2d(x, weight, 2, 1)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for a, b in zip(run(function), run(compiled), strict=True):
        assert torch.equal(a, b)


def test_other_types_than_the_compiled_ones() -> None:
    x, weight = images(1, 3, 5, 5, dtype=torch.float64), torch.randn(3, 1, 3, 3).double()
    want = reference(x, weight, (1, 1), (0, 0), (1, 1))
    assert torch.equal(depthwise_conv2d(x, weight), want)


X, WEIGHT = torch.zeros(1, 4, 5, 5), torch.zeros(4, 1, 3, 3)
WRONG: list[tuple[tuple[Any, ...], type[Exception], str]] = [
    ((X.int(), WEIGHT), TypeError, "x: got torch.int32"),
    ((X, [1.0]), TypeError, "weight: got list"),
    ((X[0], WEIGHT), ValueError, r"x: got shape \(4, 5, 5\), needs \(N, C, H, W\)"),
    ((X, WEIGHT[:3]), ValueError, r"weight: got shape \(3, 1, 3, 3\), needs \(4, 1"),
    ((X, WEIGHT.expand(4, 4, 3, 3)), ValueError, r"weight: got shape \(4, 4, 3, 3\)"),
    ((X, WEIGHT.bfloat16()), TypeError, "weight: got torch.bfloat16, needs torch.float32"),
    ((X, WEIGHT.to("meta")), ValueError, "weight: got a tensor on meta, needs it on cpu"),
    ((X, WEIGHT, 0), ValueError, "stride: got 0, needs one or two numbers, 1 or more"),
    ((X, WEIGHT, (1, 1, 1)), ValueError, r"stride: got \(1, 1, 1\)"),
    ((X, WEIGHT, 1, -1), ValueError, "padding: got -1"),
    ((X, WEIGHT, 1, 0, 0), ValueError, "dilation: got 0"),
    ((X, WEIGHT, 1, 0, 3), ValueError, "weight: got a kernel of 3 with dilation 3, needs one of 1"),
    ((X, WEIGHT[..., :0]), ValueError, "weight: got a kernel of 0"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "error", "message"), WRONG)
def test_wrong_arguments(
    name: str, arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        depthwise_conv2d(*arguments)


ONE = ([1, 1], [0, 0], [1, 1])


@needs_extension
def test_wrong_arguments_of_the_ops_themselves() -> None:
    ops = torch.ops.ghn_fast
    with pytest.raises(TypeError, match="x: got Double, needs float32 or bfloat16"):
        ops.depthwise_conv2d(X.double(), WEIGHT.double(), *ONE)
    with pytest.raises(ValueError, match=r"x: got 5 rows, with padding 5, needs at least 7"):
        ops.depthwise_conv2d(X, WEIGHT, [1, 1], [0, 0], [3, 1])
    with pytest.raises(ValueError, match="stride: got 0"):
        ops.depthwise_conv2d(X, WEIGHT, [1, 0], [0, 0], [1, 1])
    with pytest.raises(ValueError, match="dilation: got 9223372036854775807"):
        ops.depthwise_conv2d(X, WEIGHT, [1, 1], [0, 0], [1, 2**63 - 1])
    grad = torch.zeros(1, 4, 3, 3)
    with pytest.raises(ValueError, match=r"grad: got shape \[1, 4, 3, 3\], needs \[1, 4, 4, 3\]"):
        ops.depthwise_conv2d_grad_input(grad, WEIGHT, 6, 5, *ONE)
    with pytest.raises(ValueError, match="grad: got shape"):
        ops.depthwise_conv2d_grad_weight(grad, X, 2, 3, *ONE)
    with pytest.raises(TypeError, match="grad: got"):
        ops.depthwise_conv2d_grad_weight(grad.bfloat16(), X, 3, 3, *ONE)
