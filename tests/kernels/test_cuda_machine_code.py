"""What nvcc says of the CUDA kernels' machine code, which needs no GPU."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ["gated_gnn.cu", "expand_params.cu", "graph_attention.cu"]


class Usage(NamedTuple):
    """What a kernel takes: registers a thread; bytes of its stack, spilled, and shared."""

    registers: int
    stack: int
    spilled: int
    shared: int


class Compiled(NamedTuple):
    """The object of a source, and what each kernel of it takes, by its mangled name."""

    path: Path
    kernels: dict[str, Usage]


USAGE = re.compile(
    r"Compiling entry function '(?P<name>\w+)'[^\n]*\n[^\n]*\n"
    r"\s+(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads\n"
    r"[^\n]*Used (?P<registers>\d+) registers[^\n]*?(?:, (?P<shared>\d+) bytes smem)?[,\n]"
)


@pytest.fixture(scope="module")
def compile_source(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that compiles one of the sources for sm_90, once."""
    done: dict[str, Compiled] = {}

    def compiled(source: str) -> Compiled:
        nvcc = shutil.which("nvcc")
        if nvcc is None:
            pytest.skip("nvcc is not on the path")
        if source not in done:
            path = tmp_path_factory.mktemp("objects") / "kernels.o"
            flags = ["-O3", "-std=c++20", "--expt-relaxed-constexpr", "--Werror", "all-warnings"]
            command = [nvcc, *flags, "-gencode", "arch=compute_90,code=sm_90", "-Xptxas", "-v"]
            command += ["-c", str(ROOT / "csrc" / "cuda" / source), "-o", str(path)]
            result = subprocess.run(command, capture_output=True, text=True, timeout=300)
            if "Unsupported gpu architecture" in result.stderr:
                pytest.skip("this nvcc does not know sm_90")
            assert result.returncode == 0, result.stderr
            kernels = {
                found["name"]: Usage(
                    int(found["registers"]),
                    int(found["stack"]),
                    int(found["stores"]) + int(found["loads"]),
                    int(found["shared"] or 0),
                )
                for found in USAGE.finditer(result.stderr)
            }
            assert len(kernels) == result.stderr.count("Compiling entry function") > 0
            done[source] = Compiled(path, kernels)
        return done[source]

    return compiled


@pytest.mark.parametrize("source", SOURCES)
def test_kernels_compile_without_warnings_and_spills(
    source: str, compile_source: Any, record_property: Any
) -> None:
    kernels = compile_source(source).kernels
    record_property("kernels", {name: usage._asdict() for name, usage in kernels.items()})
    assert not any(usage.spilled for usage in kernels.values())


def disassembler() -> str:
    """The toolkit's cuobjdump, or the one that comes with Triton."""
    beside = shutil.which("cuobjdump")
    if beside is not None:
        return beside
    triton = importlib.util.find_spec("triton")
    if triton is None or triton.origin is None:
        pytest.skip("cuobjdump is not on the path, and Triton, which has one, is not installed")
    path = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not path.is_file():
        pytest.skip("cuobjdump is neither on the path nor in Triton")
    return str(path)


def instructions(path: Path) -> dict[str, list[str]]:
    """Names of the instructions of each kernel in an object, in the order of their addresses."""
    command = [disassembler(), "-sass", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    parts = re.split(r"Function : (\w+)", text)
    line = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")
    return dict(zip(parts[1::2], map(line.findall, parts[2::2]), strict=True))


def longest_run(names: list[str], wanted: str, ends_it: tuple[str, ...]) -> int:
    """How often `wanted` comes before one of the others does, at most."""
    most = run = 0
    for name in names:
        if name == wanted:
            run += 1
            most = max(most, run)
        elif name.startswith(ends_it):
            run = 0
    return most


# Kernels of the gated GNN that sum edges ahead, with how many there are (float, half and bfloat16;
# one message and two, rows in shared memory or not), the barriers of the block that each has,
# products of 32 elements with what threads have in registers (three gates from one row in forward
# and from three in backward, for the message and for the state; hidden layers; what is sent), and
# edges of a batch.
AHEAD = {
    "ahead_forward": (9, 2, 8 + 8 + 8 + 8, 8),
    "ahead_backward": (6, 4, 24 + 24 + 8 + 8, 8),
}
FAR = "Lb1E"  # of the name of one with rows in global memory


@pytest.mark.parametrize("kernel", AHEAD)
def test_edges_are_summed_ahead_from_registers_and_shared_memory(
    kernel: str, compile_source: Any, record_property: Any
) -> None:
    compiled = compile_source("gated_gnn.cu")
    count, barriers, quads, batch = AHEAD[kernel]
    found = {name: names for name, names in instructions(compiled.path).items() if kernel in name}
    assert len(found) == count
    for name, names in found.items():
        usage, counts = compiled.kernels[name], Counter(names)
        record_property(name, {**usage._asdict(), **counts})
        # 160 weights a thread, and nothing in memory of its own.
        assert 160 < usage.registers <= 255
        assert (usage.stack, usage.spilled, usage.shared) == (0, 0, 0)
        assert not any(name.startswith(("LDL", "STL")) for name in names)
        assert sum(count for name, count in counts.items() if name.startswith("BAR.")) == barriers
        # Four elements at a time: each product, and the rows of a batch of edges. All edges of one
        # are on their way before one of them is used, and then their rows.
        rows, together = ("LDG.E.128", 6) if FAR in name else ("LDS.128", batch)
        assert counts["LDS.128"] >= (quads if FAR in name else quads + together)
        assert longest_run(names, "LDG.E.64", (rows, "FFMA")) >= together
        assert longest_run(names, rows, ("SHFL", "BAR", "STS")) >= together
