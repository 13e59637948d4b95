"""Batch normalisation with an optional ReLU: values, gradients, accuracy, threads, errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ghn_fast
from ghn_fast.ops.backend import extension, extension_problem
from ghn_fast.ops.batch_norm_act import batch_norm_act, reference
from randomised import given, settings, st
from tolerances import assert_close

PROBLEM = extension_problem()
needs_extension = pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))
BACKENDS = ["reference", pytest.param("cpu", marks=needs_extension)]
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=BACKENDS)
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    with ghn_fast.backend(request.param):
        yield request.param


def images(*shape: int, dtype: torch.dtype = torch.float32, mean: float = 0.0) -> Tensor:
    x = (torch.randn(shape) + mean) * (1 + torch.arange(shape[1])[:, None, None] % 3)
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def vectors(channels: int) -> tuple[Tensor, Tensor]:
    return torch.randn(channels), torch.randn(channels)


def gradients(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, grad: Tensor, relu: bool
) -> list[Tensor]:
    inputs = [None if t is None else t.detach().requires_grad_() for t in (x, weight, bias)]
    out = batch_norm_act(*inputs, 1e-5, relu)  # type: ignore[arg-type]
    return [out, *torch.autograd.grad(out, [t for t in inputs if t is not None], grad)]


def compare(x: Tensor, weight: Tensor | None, bias: Tensor | None, relu: bool) -> None:
    """Values and gradients of the compiled op against the reference in float64."""
    wide = [None if t is None else t.double() for t in (x, weight, bias)]
    grad = torch.randn(x.shape)
    with ghn_fast.backend("reference"):
        plain = batch_norm_act(*wide, 1e-5, False)  # type: ignore[arg-type]
        # compared by hand: where rounding decides about the ReLU, neither gradient is wrong.
        grad = grad.masked_fill(plain.abs() < 1e-4, 0.0).to(x.dtype)
        want = gradients(*wide, grad.double(), relu)  # type: ignore[arg-type]
    with ghn_fast.backend("cpu"):
        got = gradients(x, weight, bias, grad, relu)
    assert got[0].dtype == got[1].dtype == x.dtype
    for tensor in got[:2]:
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    for index, (a, b) in enumerate(zip(got, want, strict=True)):
        context = "op" if index == 0 else "gradient"
        # Gradients of x sum up to zero in each channel: few pixels leave almost nothing of it.
        scale = float(grad.abs().mean()) if index == 1 and grad.numel() else None
        assert_close(a, b, dtype=x.dtype, context=context, scale=scale, name=f"result {index}")


@pytest.mark.parametrize("relu", [False, True])
def test_equals_the_definition(name: str, relu: bool) -> None:
    x, (weight, bias) = images(3, 5, 4, 7, mean=2.0), vectors(5)
    values = x.double().numpy()
    mean = values.mean((0, 2, 3), keepdims=True)
    variance = ((values - mean) ** 2).mean((0, 2, 3), keepdims=True)
    scale, shift = (t.double().numpy()[:, None, None] for t in (weight, bias))
    want = (values - mean) / np.sqrt(variance + 1e-3) * scale + shift
    want = np.maximum(want, 0) if relu else want
    assert_close(batch_norm_act(x, weight, bias, 1e-3, relu), want, dtype=torch.float32)


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 8, 16, 17, 24, 31, 33, 48, 64, 100, 255])
def test_equals_the_reference(
    channels: int, relu: bool, dtype: torch.dtype, nan_empty: None
) -> None:
    compare(images(7, channels, 9, 5, dtype=dtype, mean=1.0), *vectors(channels), relu)


@needs_extension
@settings(max_examples=100, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, most) for most in (40, 70, 12, 12)]),
    relu=st.booleans(),
    affine=st.tuples(st.booleans(), st.booleans()),
    dtype=st.sampled_from(DTYPES),
)
def test_random_shapes(
    shape: tuple[int, ...], relu: bool, affine: tuple[bool, bool], dtype: torch.dtype
) -> None:
    # Two pixels of almost the same value are divided by almost nothing.
    if shape[0] * shape[2] * shape[3] < 4:
        shape = (4, *shape[1:])
    weight, bias = (
        v if there else None for v, there in zip(vectors(shape[1]), affine, strict=True)
    )
    compare(images(*shape, dtype=dtype), weight, bias, relu)


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_in_the_type_of_the_images(dtype: torch.dtype) -> None:
    weight, bias = (t.to(dtype) for t in vectors(6))
    x = images(4, 6, 5, 5, dtype=dtype)
    found = gradients(x, weight, bias, torch.randn(4, 6, 5, 5).to(dtype), True)
    assert [t.dtype for t in found] == [dtype] * 4
    want = batch_norm_act(x, weight.float(), bias.float(), 1e-5, True)
    assert torch.equal(found[0], want)


@needs_extension
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_statistics_are_exact(mean: float) -> None:
    """To the last places of float32, however far the mean is from zero, over many pixels."""
    x = (torch.randn(64, 16, 32, 32) + mean).contiguous(memory_format=torch.channels_last)
    # The first pixels of every image are far from all others.
    x[:, :, :2] += 20
    _, found, invstd = torch.ops.ghn_fast.batch_norm_act(x, None, None, 0.0, False)
    wide = x.double()
    want = wide.mean((0, 2, 3))
    variance = wide.var((0, 2, 3), unbiased=False)
    # compared by hand: exact statistics are nearer to double precision than the table asks.
    assert torch.allclose(found.double(), want, rtol=1e-7, atol=1e-7)
    # compared by hand: as above.
    assert torch.allclose(invstd.double(), variance.rsqrt(), rtol=3e-7, atol=0)


@pytest.mark.parametrize("relu", [False, True])
def test_gradcheck_in_double_precision(name: str, relu: bool) -> None:
    x = torch.randn(3, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    weight, bias = (t.double().requires_grad_() for t in vectors(4))
    assert torch.autograd.gradcheck(
        lambda x, w, b: batch_norm_act(x, w, b, 1e-3, relu), (x, weight, bias)
    )


def test_layouts(name: str) -> None:
    x, (weight, bias) = images(2, 9, 8, 7), vectors(9)
    want = batch_norm_act(x, weight, bias)
    for variant in (
        x.contiguous(),
        torch.stack([x, x], -1)[..., 0],
        x.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        got = batch_norm_act(variant, weight, bias)
        assert got.is_contiguous(memory_format=torch.channels_last)
        assert_close(got, want)
    strided = torch.stack([weight, weight], -1)[..., 0]
    assert_close(batch_norm_act(x, strided, bias), want)
    flat = gradients(x, weight, bias, torch.ones(()).expand(x.shape), True)
    for a, b in zip(flat, gradients(x, weight, bias, torch.ones(x.shape), True), strict=True):
        assert_close(a, b, context="gradient", scale=1.0)


@needs_extension
@pytest.mark.skipif(
    PROBLEM is None and not extension.module.has_threads,
    reason="the extension was compiled without OpenMP",
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [7, 64])
def test_the_same_bits_for_any_number_of_threads(channels: int, dtype: torch.dtype) -> None:
    x, (weight, bias) = images(67, channels, 13, 9, dtype=dtype), vectors(channels)
    grad = torch.randn(x.shape).to(dtype)
    found = []
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            found.append(gradients(x, weight, bias, grad, True))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 4, 5, 5), (2, 0, 5, 5), (2, 4, 0, 5)], ids=str)
def test_nothing_to_normalise(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.empty(shape, dtype=dtype)
    out, *grads = gradients(x, *vectors(shape[1]), torch.empty(shape, dtype=dtype), True)
    assert out.shape == grads[0].shape == shape
    assert all(torch.equal(g, torch.zeros(shape[1])) for g in grads[1:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_value_in_a_channel(name: str, dtype: torch.dtype) -> None:
    x, (weight, bias) = images(1, 5, 1, 1, dtype=dtype), vectors(5)
    out, grad_x, grad_weight, grad_bias = gradients(
        x, weight, bias, torch.ones(1, 5, 1, 1, dtype=dtype), False
    )
    assert_close(out.flatten(), bias, dtype=dtype)
    assert not grad_x.any() and not grad_weight.any()
    assert torch.equal(grad_bias, torch.ones(5))


def test_nan_stays_in_its_channel(name: str) -> None:
    x, (weight, bias) = images(2, 20, 5, 5), vectors(20)
    x[1, 18, 0, 0] = float("nan")
    for dtype in DTYPES:
        out = batch_norm_act(x.to(dtype), weight, bias, 1e-5, True)
        assert out[:, 18].isnan().all() and int(out.isnan().sum()) == 50


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("relu", [False, True])
def test_opcheck(dtype: torch.dtype, relu: bool) -> None:
    x, (weight, bias) = images(2, 6, 4, 3, dtype=dtype), vectors(6)
    ops = torch.ops.ghn_fast
    inputs = (x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), 1e-5, relu)
    torch.library.opcheck(ops.batch_norm_act.default, inputs)
    x, weight, bias = (t.detach() for t in inputs[:3])
    torch.library.opcheck(ops.batch_norm_act.default, (x, None, None, 1e-5, relu))
    out, mean, invstd = ops.batch_norm_act(x, weight, bias, 1e-5, relu)
    torch.library.opcheck(
        ops.batch_norm_act_backward.default, (out, x, weight, bias, mean, invstd, relu)
    )


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES)
def test_compiles_into_one_graph(dtype: torch.dtype) -> None:
    x, (weight, bias) = images(2, 6, 8, 8, dtype=dtype), vectors(6)

    def run(function: Any) -> tuple[Tensor, ...]:
        inputs = [t.detach().requires_grad_() for t in (x, weight, bias)]
        out = function(*inputs)
        return (out, *torch.autograd.grad(out.float().square().sum(), inputs))

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return 2 * batch_norm_act(x, weight, bias, 1e-5, True)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for a, b in zip(run(function), run(compiled), strict=True):
        assert torch.equal(a, b)


def test_other_types_than_the_compiled_ones() -> None:
    x, (weight, bias) = images(2, 3, 5, 5, dtype=torch.float64), vectors(3)
    want = reference(x, weight, bias, 1e-5, True)
    assert torch.equal(batch_norm_act(x, weight, bias, 1e-5, True), want)


X, V = torch.zeros(1, 4, 5, 5), torch.zeros(4)
WRONG: list[tuple[tuple[Any, ...], type[Exception], str]] = [
    ((X.int(), V, V), TypeError, "x: got torch.int32"),
    ((X, [1.0], V), TypeError, "weight: got list"),
    ((X, V.double(), V), TypeError, "weight: got torch.float64, needs float32"),
    ((X[0], V, V), ValueError, r"x: got shape \(4, 5, 5\), needs \(N, C, H, W\)"),
    ((X, V[:3], V), ValueError, r"weight: got shape \(3,\), needs \(4,\)"),
    ((X, V, V[:3]), ValueError, r"bias: got shape \(3,\)"),
    ((X, V, V.to("meta")), ValueError, "bias: got a tensor on meta, needs it on cpu"),
    ((X, V, V, -1.0), ValueError, "eps: got -1.0, needs 0 or more"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), WRONG)
def test_wrong_arguments(
    name: str, arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        batch_norm_act(*arguments)


@needs_extension
def test_wrong_arguments_of_the_ops_themselves() -> None:
    ops = torch.ops.ghn_fast
    with pytest.raises(TypeError, match="x: got Double, needs float32 or bfloat16"):
        ops.batch_norm_act(X.double(), V, V, 1e-5, False)
    with pytest.raises(ValueError, match=r"bias: got shape \[3\], needs \[4\]"):
        ops.batch_norm_act(X, V, V[:3], 1e-5, False)
    with pytest.raises(ValueError, match=r"grad: got shape \[1, 4, 5\], needs|grad: got shape"):
        ops.batch_norm_act_backward(X[..., 0], X, V, V, V, V, False)
    with pytest.raises(ValueError, match=r"mean: got shape \[3\]"):
        ops.batch_norm_act_backward(X, X, V, V, V[:3], V, False)
