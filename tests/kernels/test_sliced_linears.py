"""The Triton kernels of the decoder's products against plain linear layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import ghn_fast
from ghn_fast.hypernet import linear
from ghn_fast.ops import sliced_linears_triton
from tolerances import assert_close
from triton_runs import DEVICE, RUNS_KERNELS, kernels, machine_code, only_once, run_in_interpreter

pytest.importorskip("triton", reason="Triton is not installed")

runs_kernels = [pytest.mark.usefixtures("triton_kernels_here"), *RUNS_KERNELS]


@pytest.fixture
def triton_kernels_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sliced_linears_triton, "_kernels", lambda: kernels("sliced_linears"))
    monkeypatch.setattr(sliced_linears_triton, "can_run", lambda weight, inputs: True)


def by_layer(
    inputs: list[Tensor],
    weight: Tensor,
    bias: Tensor,
    sizes: list[tuple[int, ...]],
    firsts: list[tuple[int, ...]],
    relu: bool,
) -> list[Tensor]:
    result = []
    for x, size, first in zip(inputs, sizes, firsts, strict=True):
        window = tuple(slice(f, f + s) for f, s in zip(first, size, strict=True))
        y = F.linear(x, weight[window].flatten(0, -2), bias[window].flatten())
        result.append(F.relu(y) if relu else y)
    return result


CASES = {
    # Windows within each other, one input without rows, more than a tile of rows and outputs.
    "channels": ((9, 10), [(9, 10), (4, 10), (9, 3), (1, 1)], None, [37, 5, 0, 3], 40),
    "positions": ((6, 5, 5), [(6, 5, 5), (6, 1, 1), (6, 3, 3), (6, 1, 5)], None, [3, 4, 33, 1], 8),
    "middle": ((6, 5, 5), [(6, 3, 3), (6, 1, 3)], [(0, 1, 1), (0, 2, 1)], [3, 4], 8),
    "one": ((70,), [(70,)], None, [3], 33),
}


class TestValues:
    pytestmark = runs_kernels

    @pytest.mark.parametrize("relu", [True, False])
    @pytest.mark.parametrize("name", sorted(CASES))
    def test_values_and_gradients_are_those_of_plain_layers(
        self, name: str, relu: bool, nan_empty: None
    ) -> None:
        rows, sizes, firsts, counts, width = CASES[name]
        firsts = firsts or [(0,) * len(rows) for _ in sizes]
        shapes = [(*rows, width), rows, *((count, width) for count in counts)]
        leaves = [torch.randn(shape).to(DEVICE).requires_grad_() for shape in shapes]
        wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
        weight, bias, *inputs = leaves
        got = linear.sliced_linears(inputs, weight, bias, sizes, firsts=firsts, relu=relu)
        want = by_layer(wide[2:], wide[0], wide[1], sizes, firsts, relu)
        probes = [torch.randn(y.shape).to(DEVICE) for y in want]
        for index, (have, need) in enumerate(zip(got, want, strict=True)):
            assert have.shape == need.shape
            assert_close(have, need.float(), name=f"output {index}")
        found = torch.autograd.grad(got, leaves, probes)
        expected = torch.autograd.grad(want, wide, [probe.double() for probe in probes])
        for index, (have, need) in enumerate(zip(found, expected, strict=True)):
            assert_close(have, need.float(), context="gradient", name=f"gradient {index}")

    def test_the_decoder_runs_on_them(self) -> None:
        torch.manual_seed(0)
        config = ghn_fast.GHNConfig(hid=8, max_shape=(16, 16, 5, 5))
        ghn = ghn_fast.GHN(config).to(DEVICE)
        shapes = [(16, 16, 3, 3), (4, 16, 1, 1), (16, 4, 1, 1), (8, 8, 5, 5)]
        groups = [torch.randn(n, 8).to(DEVICE) for n in (3, 2, 1, 2)]
        found = ghn.blocks.decode_groups(groups, shapes)
        wide = ghn.double()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sliced_linears_triton, "can_run", lambda weight, inputs: False)
            expected = wide.blocks.decode_groups([g.double() for g in groups], shapes)
        for have, want in zip(found, expected, strict=True):
            assert_close(have, want.float())


@only_once
def test_the_kernels_run_in_the_interpreter() -> None:
    """All tests above that a machine without a GPU can run."""
    run_in_interpreter(__file__, 9)


@only_once
@pytest.mark.parametrize("name", ["_forward_kernel", "_grad_inputs_kernel", "_grad_weight_kernel"])
def test_the_kernels_compile_for_a_gpu_without_spills(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, record_property: Any
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    module = kernels("sliced_linears")
    kernel = getattr(module, name)
    signature = {n: "*fp32" if n.endswith("_ptr") else "i32" for n in kernel.arg_names}
    signature |= dict.fromkeys(("groups_ptr", "tiles_ptr"), "*i64")
    constants = {"RELU": True} | {n: getattr(module, n) for n in ("ROWS", "TILE", "DEPTH")}
    code = machine_code(kernel, signature, constants, module.WARPS)
    for attribute in ("registers", "spilled", "shared"):
        record_property(attribute, getattr(code, attribute))
    assert code.spilled == 0


@only_once
def test_they_are_not_used_on_the_cpu() -> None:
    weight = torch.randn(4, 4, 8)
    assert not sliced_linears_triton.can_run(weight, [torch.randn(2, 8)])
