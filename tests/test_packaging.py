"""What is installed, what importing it costs, and that the command is there."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import resolve_name
from itertools import chain
from pathlib import Path

import pytest

import ghn_fast
from ghn_fast import _version
from ghn_fast.ops import backend

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HEAVY = {
    *("matplotlib", "sklearn", "h5py", "rich", "typer", "torchvision", "tensorboard"),
    *("torch_geometric", "timm", "networkx", "scipy", "pandas", "PIL", "yaml", "huggingface_hub"),
    # The compiler of torch takes about half as long to import as torch itself.
    *("torch._dynamo", "torch._inductor", "sympy", "triton"),
}
SOURCES = [*ROOT.glob("ghn_fast/**/*.py"), *ROOT.glob("kernels/**/*.py")]


def imports(path: Path) -> set[str]:
    """The modules that a file imports, anywhere in it, by their full dotted names."""
    package = ".".join(path.relative_to(ROOT).parent.parts)
    if package.startswith("kernels"):
        package = f"ghn_fast.{package}"
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def python(*args: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter in the repository's root."""
    return subprocess.run(
        [sys.executable, *args], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it would be installed, built from a copy of the sources."""
    pytest.importorskip("setuptools", "77", reason="building the package needs setuptools 77")
    copy = tmp_path_factory.mktemp("copy")
    for name in ("ghn_fast", "kernels"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    # The directories need not hold weights and kernels yet for their files to be installed.
    (copy / "ghn_fast" / "pretrained").mkdir(exist_ok=True)
    (copy / "ghn_fast" / "pretrained" / "probe.safetensors").touch()
    (copy / "ghn_fast" / "pretrained" / "probe.json").touch()
    (copy / "kernels" / "probe.py").touch()
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", "built"]
    # No compiler: an install has to work without one.
    env = os.environ | {"CC": "false", "CXX": "false"}
    result = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return copy / "built"


def test_the_version_is_written_once() -> None:
    assert ghn_fast.__version__ == _version.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc|\.dev)\d+)?", _version.__version__)
    assert "version" in PYPROJECT["project"]["dynamic"]
    assert "version" not in PYPROJECT["project"]
    files = [*SOURCES, ROOT / "setup.py"]
    defining = [p.name for p in files if re.search(r"^__version__ *=", p.read_text(), re.M)]
    assert defining == ["_version.py"]


def test_every_directory_with_code_is_a_package() -> None:
    missing = {str(f.parent) for f in SOURCES if not (f.parent / "__init__.py").is_file()}
    assert not missing


def test_everything_in_the_package_is_installed(built: Path) -> None:
    def below(folder: Path) -> set[str]:
        paths = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
        # A compiled extension lies in the working tree, and is installed by another command.
        wanted = (p for p in paths if "__pycache__" not in p.parts and p.suffix != ".so")
        return {p.as_posix() for p in wanted}

    installed = below(built / "ghn_fast")
    assert {"py.typed", "pretrained/probe.safetensors", "pretrained/probe.json"} <= installed
    assert {"kernels/__init__.py", "kernels/probe.py"} <= installed
    assert below(ROOT / "ghn_fast") - installed == set()
    assert {f"kernels/{name}" for name in below(ROOT / "kernels")} - installed == set()
    assert [p.name for p in built.iterdir()] == ["ghn_fast"]


def test_the_kernels_are_found_where_the_package_is_installed() -> None:
    try:
        importlib.metadata.distribution("ghn-fast")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("ghn-fast is not installed, only on the path")
    assert importlib.import_module("ghn_fast.kernels").__name__ == "ghn_fast.kernels"


@pytest.fixture(scope="module")
def modules_of_torch() -> set[str]:
    """What `import torch` loads by itself."""
    result = python("-c", "import sys, torch; print(*sys.modules)")
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import ghn_fast",
        "from ghn_fast import capture",
        "from ghn_fast import GHN, GHNConfig",
        "from ghn_fast import from_pretrained, save_pretrained",
        "import ghn_fast.drawing.draw, ghn_fast.graph.properties",
    ],
)
def test_import_loads_nothing_heavy(statement: str, modules_of_torch: set[str]) -> None:
    result = python("-c", f"import sys; {statement}; print(*sys.modules)")
    assert result.returncode == 0, result.stderr
    loaded = set(result.stdout.split())
    assert "ghn_fast" in loaded
    assert HEAVY & (loaded - modules_of_torch) == set()


def test_every_library_that_is_imported_is_declared() -> None:
    modules = {"scikit-learn": "sklearn", "pyyaml": "yaml", "pillow": "PIL"}
    extras = PYPROJECT["project"]["optional-dependencies"]
    requirements = [*PYPROJECT["project"]["dependencies"], *chain(*extras.values())]
    names = [re.split(r"[<>=!~; ]", requirement)[0] for requirement in requirements]
    # torch brings Triton.
    declared = {"ghn_fast", "triton", *(modules.get(name, name) for name in names)}
    for path in SOURCES:
        foreign = {name.partition(".")[0] for name in imports(path)} - sys.stdlib_module_names
        assert foreign <= declared, path


# Each room may import those before it, and itself; rooms of one line do not import each other.
ROOMS = (
    ("utils",),
    ("ops", "kernels"),
    ("graph",),
    ("capturing", "drawing"),
    ("deepnets",),
    ("models",),
    ("hypernet",),
    ("vision",),
    ("metatrain",),
    ("studies",),
    ("commands",),
)


def test_lower_rooms_import_no_higher_ones() -> None:
    below = {"_version"}
    for rooms in ROOMS:
        for room in rooms:
            # The ops' Triton kernels are a room of their own only by their place in the tree.
            allowed = below | ({"ops", "kernels"} if "ops" in rooms else {room})
            for path in (ROOT / "ghn_fast" / room).rglob("*.py"):
                inside = [name.split(".") for name in imports(path) if name.startswith("ghn_fast.")]
                assert {parts[1] for parts in inside} <= allowed, path
        below |= set(rooms)


def test_every_room_has_its_place_in_the_order() -> None:
    known = {room for rooms in ROOMS for room in rooms}
    there = {p.parent.name for p in (ROOT / "ghn_fast").glob("*/__init__.py")}
    assert there - {"kernels"} <= known


def test_the_command_and_the_module_are_one() -> None:
    module, function = PYPROJECT["project"]["scripts"]["ghn-fast"].split(":")
    assert callable(getattr(importlib.import_module(module), function))
    result = python("-m", "ghn_fast", "--help")
    assert result.returncode == 0, result.stderr
    assert "Usage" in result.stdout


def test_make_lists_its_targets() -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    result = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    for target in ("venv", "demo", "test", "lint", "format", "clean"):
        assert re.search(rf"make {target}\b", result.stdout)


def test_ci_runs_from_anywhere() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script], timeout=60).returncode == 0


def test_the_library_is_on_the_stable_abi_alone() -> None:
    """Nothing of ATen in its sources, and the oldest torch and Python as its targets."""
    folders = [ROOT / "csrc", *(ROOT / "csrc" / name for name in ("common", "cpu", "cuda", "plan"))]
    folders.append(ROOT / "csrc" / "deepnets")
    files = [f for d in folders for f in d.iterdir() if f.suffix in (".h", ".cpp", ".cu")]
    assert len(files) > 60
    stable = ("torch/csrc/stable/", "torch/headeronly/", "torch/csrc/inductor/aoti_torch/c/shim.h")
    for file in files:
        for header in re.findall(r"#include <([^>]+)>", file.read_text()):
            of_torch = header.startswith(("ATen/", "c10/", "torch/", "pybind11/", "Python.h"))
            assert not of_torch or header.startswith(stable), f"{file}: {header}"
    (torch,) = (d for d in PYPROJECT["project"]["dependencies"] if re.match(r"torch\b", d))
    major, minor = (int(n) for n in torch.removeprefix("torch>=").split(".")[:2])
    target = f"0x{major:02x}{minor:02x}000000000000"
    setup = (ROOT / "setup.py").read_text()
    assert f'TARGET_TORCH = ("TORCH_TARGET_VERSION", "{target}")' in setup
    assert f"TORCH_TARGET_VERSION={target}" in (ROOT / "CMakeLists.txt").read_text()
    python_bound = PYPROJECT["project"]["requires-python"].removeprefix(">=").replace(".", "")
    assert f'LIMITED_API = "cp{python_bound}"' in setup


@pytest.mark.library
@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm of binutils")
def test_the_library_asks_torch_for_its_c_interface_alone() -> None:
    file = backend.library_file()
    assert file is not None and file.name.startswith("_ops.abi3.")
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", file], capture_output=True, text=True, check=True
    )
    names = [line.split()[-1].partition("@")[0] for line in listed.stdout.splitlines()]
    assert any(name.startswith("aoti_torch_") for name in names)
    others = r"_Z\w*(2at|3c10|5torch|6caffe2)\w*|_?Py\w+"
    assert [name for name in names if re.fullmatch(others, name)] == []


def test_every_source_is_compiled_in_one_part() -> None:
    text = (ROOT / "setup.py").read_text()
    lists = {
        name: re.findall(r'"(csrc/[^"]+)"', re.findall(rf"^{name} = \[.*?\]", text, re.M | re.S)[0])
        for name in ("LIBRARY_SOURCES", "EXTENSION_SOURCES", "CUDA_SOURCES")
    }
    found = [path for patterns in lists.values() for p in patterns for path in ROOT.glob(p)]
    there = [f for f in (ROOT / "csrc").rglob("*") if f.suffix in (".cpp", ".cu")]
    wanted = [f for f in there if f.parent.name != "tests"]
    # Both parts look up which instructions the machine has.
    assert sorted(found) == sorted([*wanted, ROOT / "csrc/cpu/isa.cpp"])
