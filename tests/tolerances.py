"""The one tolerance table of the tests, and the element-wise comparison that uses it.

An element passes if its error is at most ``rtol * max(|expected|, scale)``. ``scale`` is the mean
magnitude of the expected tensor: an element far smaller than its neighbours is what a cancellation
leaves over, and its error has the size of the terms that cancelled, not its own. There is no
absolute tolerance: a tensor of gradients near 1e-6 is compared as strictly as one near 1.

A tolerance is loosened here, with the reason beside it, never in a test.
"""

from __future__ import annotations

from typing import Any

import torch

# One call of one op; its gradients; and everything that passes through a whole hypernetwork.
CONTEXTS = ("op", "gradient", "ghn")

# rtol by dtype and context. float32 is what the package promises for every back end. The narrow
# types stand at about 2, 4 and 8 units of their last place (2^-8 for bfloat16, 2^-11 for float16,
# relative to the rounded value), since each layer rounds once more.
RTOL: dict[torch.dtype, dict[str, float]] = {
    torch.float64: {"op": 1e-11, "gradient": 1e-10, "ghn": 1e-10},
    torch.float32: {"op": 1e-5, "gradient": 1e-4, "ghn": 1e-4},
    torch.float16: {"op": 1e-3, "gradient": 2e-3, "ghn": 4e-3},
    torch.bfloat16: {"op": 8e-3, "gradient": 1.6e-2, "ghn": 3.2e-2},
}


def rtol(dtype: torch.dtype, context: str = "op") -> float:
    """The relative tolerance of a dtype in a context; ValueError if either is not in the table."""
    if context not in CONTEXTS:
        raise ValueError(f"context is {context!r}; it has to be one of {', '.join(CONTEXTS)}")
    if dtype not in RTOL:
        raise ValueError(f"dtype is {dtype}; it has to be one of {', '.join(map(str, RTOL))}")
    return RTOL[dtype][context]


def assert_close(
    actual: Any,
    expected: Any,
    *,
    context: str = "op",
    dtype: torch.dtype | None = None,
    scale: float | None = None,
    name: str = "values",
) -> None:
    """Compare two tensors (or what ``torch.as_tensor`` takes) element by element.

    Args:
        actual: the result under test, any shape.
        expected: the reference, of the same shape; integers and booleans have to be equal.
        context: "op", "gradient" or "ghn", the column of the table.
        dtype: the row of the table; the narrower of the two dtypes if not given. To be named where
            a result was computed in a narrower dtype than it is stored in (autocast).
        scale: the size of the terms that the elements are sums of, for a reference that is zero or
            nearly so in exact arithmetic; the mean magnitude of ``expected`` if not given.
        name: what the message calls the tensor.

    Raises:
        AssertionError: shapes differ, or an element is off; the message names the worst one. NaN
            differs from everything, itself too; infinities have to be equal.
    """
    __tracebackhide__ = True
    got, want = _tensor(actual), _tensor(expected)
    if got.shape != want.shape:
        raise AssertionError(f"{name}: shape {tuple(got.shape)}, expected {tuple(want.shape)}")
    if not (got.is_floating_point() or want.is_floating_point()):
        _raise_if_any(name, got != want, (got != want).double(), got, want, "they have to be equal")
        return
    row = dtype if dtype is not None else _narrower(got.dtype, want.dtype)
    relative = rtol(row, context)

    got, want = got.double(), want.double()
    magnitude = want.abs()
    finite = magnitude[torch.isfinite(magnitude)]
    if scale is None:
        scale = finite.mean().item() if finite.numel() else 0.0
    allowed = relative * magnitude.clamp(min=scale)
    error = (got - want).abs()
    # inf - inf is NaN, and so is the allowance of an infinite reference.
    off = ~((error <= allowed) & torch.isfinite(want) | (got == want))
    # Elements that must be exact come out as infinitely wrong, NaN as worst of all.
    excess = (error / allowed).nan_to_num(nan=torch.inf)
    rule = f"{row}, {context}: {relative:g} of the larger of |expected| and {scale:.3g}"
    _raise_if_any(name, off, excess, got, want, rule)


def _tensor(value: Any) -> torch.Tensor:
    tensor = torch.as_tensor(value).detach().cpu()
    if tensor.is_floating_point() and not hasattr(value, "dtype"):
        # Python's numbers are of double precision, whatever torch's default type is.
        tensor = torch.as_tensor(value, dtype=torch.float64)
    return tensor.resolve_conj().resolve_neg()


def _narrower(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    """Of two dtypes the floating-point one with the larger rounding step."""
    return max((d for d in (a, b) if d.is_floating_point), key=lambda d: torch.finfo(d).eps)


def _raise_if_any(
    name: str,
    off: torch.Tensor,
    excess: torch.Tensor,
    got: torch.Tensor,
    want: torch.Tensor,
    rule: str,
) -> None:
    __tracebackhide__ = True
    if not off.any():
        return
    flat = int(excess.masked_fill(~off, -1).reshape(-1).argmax())
    index = [int(i) for i in torch.unravel_index(torch.tensor(flat), off.shape)]
    worst, reference = got.reshape(-1)[flat].item(), want.reshape(-1)[flat].item()
    raise AssertionError(
        f"{name}: {int(off.sum())} of {off.numel()} elements are off ({rule}); worst at {index}: "
        f"got {worst:.9g}, expected {reference:.9g}, difference {abs(worst - reference):.3g}, "
        f"{excess.reshape(-1)[flat].item():.3g} times what is allowed"
    )
