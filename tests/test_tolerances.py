"""The comparison of the tests must let nothing wrong through, and must say what is wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tolerances import CONTEXTS, RTOL, assert_close, rtol

CASES = [(dtype, context) for dtype in RTOL for context in CONTEXTS]


def fails(*args: object, **kwargs: object) -> str:
    """The message of the AssertionError that the comparison has to raise."""
    with pytest.raises(AssertionError) as caught:
        assert_close(*args, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize(("dtype", "context"), CASES)
def test_the_limit_is_where_the_table_says(dtype: torch.dtype, context: str) -> None:
    expected = torch.randn(40, dtype=torch.float64).sign()
    step = rtol(dtype, context)
    for position in (0, 17, 39):
        off = torch.zeros_like(expected)
        off[position] = step
        assert_close(expected + 0.99 * off, expected, context=context, dtype=dtype)
        assert f"[{position}]" in fails(
            expected + 1.01 * off, expected, context=context, dtype=dtype
        )


@pytest.mark.parametrize("dtype", RTOL)
def test_rounding_to_the_dtype_passes(dtype: torch.dtype) -> None:
    expected = torch.randn(1000, dtype=torch.float64)
    assert_close(expected.to(dtype), expected)


def test_the_table_is_ordered_and_keeps_the_promised_float32() -> None:
    assert RTOL[torch.float32] == {"op": 1e-5, "gradient": 1e-4, "ghn": 1e-4}
    for row in RTOL.values():
        assert row["op"] <= row["gradient"] <= row["ghn"] < 0.05


def test_one_bad_element_among_many_shows_and_is_named() -> None:
    expected = torch.randn(300, 70)
    actual = expected.clone()
    actual[123, 45] += 1e-3
    actual[7, 8] += 1e-4
    message = fails(actual, expected, name="messages")
    assert message.startswith("messages: 2 of 21000 elements are off")
    assert "worst at [123, 45]" in message


def test_small_tensors_are_compared_on_their_own_scale() -> None:
    expected = 1e-9 * torch.randn(50)
    assert_close(expected * (1 + 5e-6), expected)
    fails(expected * (1 + 5e-4), expected)
    fails(torch.zeros(50), expected)


def test_cancelled_elements_are_compared_on_the_scale_of_the_tensor() -> None:
    expected = torch.tensor([1.0, -1.0, 1e-8])
    assert_close(torch.tensor([1.0, -1.0, 3e-6]), expected)
    fails(torch.tensor([1.0, -1.0, 3e-5]), expected)


def test_zero_has_to_be_met_exactly_unless_a_scale_is_given() -> None:
    zeros = torch.zeros(3)
    assert_close(zeros, zeros)
    fails(zeros + 1e-12, zeros)
    assert_close(zeros + 1e-6, zeros, scale=1.0)
    fails(zeros + 1e-4, zeros, scale=1.0)


def test_nan_never_passes_and_is_the_worst() -> None:
    expected = torch.ones(4)
    actual = torch.tensor([1.0, 9.0, float("nan"), 1.0])
    assert "worst at [2]: got nan" in fails(actual, expected)
    fails(actual, actual)
    fails(expected, actual)


def test_infinities_have_to_be_equal() -> None:
    inf = float("inf")
    assert_close(torch.tensor([inf, -inf, 1.0]), torch.tensor([inf, -inf, 1.0]))
    fails(torch.tensor([inf, 1.0]), torch.tensor([-inf, 1.0]))
    fails(torch.tensor([1.0, 1.0]), torch.tensor([inf, 1.0]))
    fails(torch.tensor([inf, 1.0]), torch.tensor([1.0, 1.0]))


def test_shapes_have_to_be_equal() -> None:
    message = fails(torch.zeros(3, 1), torch.zeros(3), name="scale")
    assert message == "scale: shape (3, 1), expected (3,)"


def test_integers_and_booleans_have_to_be_equal() -> None:
    assert_close(torch.arange(5), torch.arange(5, dtype=torch.int32))
    assert "worst at [0]: got 1, expected 0" in fails(torch.tensor([1, 2]), torch.tensor([0, 2]))
    fails(torch.tensor([True]), torch.tensor([False]))


def test_the_narrower_dtype_sets_the_tolerance() -> None:
    expected = torch.ones(8, dtype=torch.float64)
    off = expected + 1e-7
    fails(off, expected)
    assert_close(off.float(), expected)
    assert_close(off, expected.float())


def test_empty_scalar_and_foreign_values() -> None:
    assert_close(torch.zeros(0, 3), torch.zeros(0, 3))
    assert_close(1.0, 1.0)
    assert_close(np.ones(2), [1.0, 1.0])
    assert_close(torch.ones(2, requires_grad=True), torch.ones(2))
    assert_close([0.1, 0.2], torch.tensor([0.1, 0.2]))
    fails(0.1 + 1e-11, 0.1)
    fails([0.1 + 1e-11], [0.1])
    assert "worst at []" in fails(1.0, 2.0)


@pytest.mark.parametrize("kwargs", [{"context": "loose"}, {"dtype": torch.int64}])
def test_unknown_rows_and_columns_are_refused(kwargs: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="has to be one of"):
        assert_close(torch.ones(1), torch.ones(1), **kwargs)
