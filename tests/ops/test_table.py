"""The table of ops and what each of them has: one name everywhere, and a hole is a missing file."""

from __future__ import annotations

import importlib
import re
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from ghn_fast.commands import doctor
from ghn_fast.ops import backend, load_all

ROOT = Path(__file__).resolve().parents[2]

# Schemas that are a part of an op: their names are that of the op and one of these.
PARTS = (
    *("forward", "backward", "grad_input", "grad_weight", "into", "pack", "plan", "plan_to"),
    *("plan_edges", "join"),
)
# Parts that make a plan, which no traced function does: they have no fake kernels.
MAKE_PLANS = {"pack", "plan", "plan_to", "plan_edges", "join"}

# Benchmark cases that have another name than the op which they are for.
CASES = {"decode_blocks": "decode", "deepnets_graph": "loader", "program_gradient": "meta_step"}

ON_HOST = "it runs on the host"
CUDNN = "GPUs run what PyTorch has"
# Back ends that an op does not have, and why; nothing else may be missing.
MISSING = {
    ("batch_norm_act", "csrc/cuda"): CUDNN,
    ("batch_norm_act", "kernels"): CUDNN,
    ("collate_edges", "csrc/cuda"): ON_HOST,
    ("collate_edges", "kernels"): ON_HOST,
    ("decode_blocks", "csrc/cuda"): "GPUs run the decoder's modules, in few large products",
    ("decode_blocks", "kernels"): "GPUs run the decoder's modules, in few large products",
    ("depthwise_conv2d", "csrc/cuda"): CUDNN,
    ("depthwise_conv2d", "kernels"): CUDNN,
    ("deepnets_graph", "reference"): "deepnets/graphs/build.py, for it is built in a room above",
    ("deepnets_graph", "csrc/cuda"): ON_HOST,
    ("deepnets_graph", "kernels"): ON_HOST,
    ("program_gradient", "reference"): "metatrain/candidate_run.py, in a room above",
    ("program_gradient", "fake kernel"): "no traced function calls it",
    ("program_gradient", "csrc/cuda"): CUDNN,
    ("program_gradient", "kernels"): CUDNN,
    ("shortest_distances", "csrc/cuda"): ON_HOST,
    ("shortest_distances", "kernels"): ON_HOST,
}
# Ops that are a part of another one, although their names do not say so.
PART_OF = {"deepnets_sizes": "deepnets_graph"}

BACKENDS = {"csrc/cpu": "cpu", "csrc/cuda": "cuda", "kernels": "triton"}


def schemas() -> list[str]:
    """Names of all schemas of the native ops."""
    files = ("csrc/ops.cpp", "csrc/aten/ops.cpp")
    text = "".join((ROOT / file).read_text() for file in files)
    return re.findall(r'm\.def\(\s*"(\w+)\(', text)


def op_of(schema: str) -> str:
    """The op that a schema is, or is a part of."""
    endings = [f"_{part}" for part in PARTS if schema.endswith(f"_{part}")]
    name = schema.removesuffix(max(endings, key=len, default=""))
    return PART_OF.get(name, name)


def has_reference(op: str) -> bool:
    if not (ROOT / f"ghn_fast/ops/{op}.py").is_file():
        return False
    return callable(getattr(importlib.import_module(f"ghn_fast.ops.{op}"), "reference", None))


def has_fakes(op: str) -> bool:
    """Whether every schema of an op that can be traced has a kernel for meta tensors."""
    load_all()
    traced = [
        schema
        for schema in schemas()
        if op_of(schema) == op and schema.removeprefix(f"{op}_") not in MAKE_PLANS
    ]
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return bool(traced) and all(has(f"ghn_fast::{schema}", "Meta") for schema in traced)


@cache
def benchmark_cases() -> set[str]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        cases = importlib.import_module("suite.cases")
    finally:
        sys.path.pop(0)
    return {grid.path for grid in cases.GRIDS}


def table() -> dict[tuple[str, str], bool]:
    """Whether each op has what each column names."""
    columns = {
        "reference": has_reference,
        "fake kernel": has_fakes,
        "csrc/cpu": lambda op: any((ROOT / "csrc").glob(f"[!t]*/{op}.cpp")),
        "csrc/cuda": lambda op: (ROOT / f"csrc/cuda/{op}.cu").is_file(),
        "kernels": lambda op: (ROOT / f"kernels/{op}.py").is_file(),
        "tests/ops": lambda op: (ROOT / f"tests/ops/test_{op}.py").is_file(),
        "csrc/tests": lambda op: (ROOT / f"csrc/tests/test_{op}.cpp").is_file(),
        "benchmark": lambda op: CASES.get(op, op) in benchmark_cases(),
    }
    ops = sorted({op_of(schema) for schema in schemas()})
    return {(op, column): has(op) for op in ops for column, has in columns.items()}


def draw(found: dict[tuple[str, str], bool]) -> str:
    """The table in Markdown; a hole has its reason instead of a mark."""
    columns = list(dict.fromkeys(column for _, column in found))
    lines = [f"| op | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for op in dict.fromkeys(op for op, _ in found):
        cells = ["x" if found[op, c] else MISSING.get((op, c), "MISSING") for c in columns]
        lines.append(f"| {op} | {' | '.join(cells)} |")
    return "\n".join(lines)


@pytest.mark.library
@pytest.mark.extension
def test_only_the_back_ends_are_missing_that_no_op_registers() -> None:
    found = table()
    holes = {cell for cell, there in found.items() if not there}
    assert holes == set(MISSING), f"\n{draw(found)}"
    for (op, column), there in found.items():
        if column in BACKENDS:
            name = BACKENDS[column]
            problem = backend.problem_of(op, name, "cuda" if name != "cpu" else "cpu")
            registered = problem != "there is no such implementation of it"
            assert registered == there, f"{op}, {column}: {problem}"


def test_the_doctor_lists_the_op_of_every_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(backend.VARIABLE, raising=False)
    listed = set(re.findall(r"^(\w+) on cpu: ", doctor.report(), re.M))
    assert {op_of(op) for op in listed} == {op_of(schema) for schema in schemas()}


def test_parts_are_told_from_ops() -> None:
    assert len(schemas()) == len(set(schemas()))
    assert op_of("gated_gnn_plan_edges") == "gated_gnn"
    assert op_of("expand_params_backward") == "expand_params"
    assert op_of("collate_edges") == "collate_edges"
    assert "MISSING" in draw({("unknown", "kernels"): False})
