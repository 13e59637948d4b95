"""The package layout and the compiled parts of ghn_fast. Metadata is in pyproject.toml.

There are two of them, and an install has to work without either: whatever is in the way costs one
line of warning, and plain PyTorch takes over.

- The library `ghn_fast/_ops.abi3.so`: the C++ ops, and the CUDA ops where nvcc is found, on
  LibTorch's stable ABI and without Python: one file for every torch from 2.11 on and every Python.
- The extension `ghn_fast._aten`: what needs ATen, autograd or Python's objects, for the very torch
  and Python that it is compiled with.

To be compiled they need torch, which has to be importable (pip builds in an environment of its own,
without torch, unless it is told `--no-build-isolation`); a C++ compiler; and for CUDA nvcc, for
TORCH_CUDA_ARCH_LIST or what is listed below.

GHN_FAST_NATIVE=library compiles the library alone, or fails: that is what a wheel for every Python
(cp311-abi3) is made with. GHN_FAST_NATIVE=0 compiles nothing, GHN_FAST_CUDA=0 nothing for CUDA.
GHN_FAST_WERROR=1 takes warnings in our sources for errors.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import Command, Extension, find_packages, setup

ROOT = Path(__file__).resolve().parent
LIBRARY_SOURCES = [
    *("csrc/*.cpp", "csrc/common/*.cpp", "csrc/cpu/*.cpp", "csrc/plan/*.cpp"),
    "csrc/deepnets/*.cpp",
]
CUDA_SOURCES = ["csrc/cuda/*.cpp", "csrc/cuda/*.cu"]
# Both look up which set of instructions the machine has.
EXTENSION_SOURCES = ["csrc/aten/*.cpp", "csrc/cpu/isa.cpp"]
# Warnings about the calling convention of vector types: all such calls are inlined.
CXX_FLAGS = ["-O3", "-std=c++20", "-ffp-contract=fast", "-fvisibility=hidden", "-Wno-psabi"]
NVCC_FLAGS = ["-O3", "-std=c++20", "--expt-relaxed-constexpr"]
CUDA_ARCHITECTURES = "8.0;9.0+PTX"
# What the library may use of the stable ABI: that of torch 2.11, the oldest that is promised.
TARGET_TORCH = ("TORCH_TARGET_VERSION", "0x020b000000000000")
# The oldest Python that is promised, in the tag of a wheel that holds the library alone.
LIMITED_API = "cp311"


def warning_flags(cpp_extension: Any) -> dict[str, list[str]]:
    """Warnings as errors, but for headers that are not ours, if the environment asks for that."""
    if os.environ.get("GHN_FAST_WERROR") != "1":
        return {"cxx": [], "nvcc": []}
    # A folder that is named as one of the system's is not searched as one of ours.
    kind = "cpu" if cpp_extension.CUDA_HOME is None else "cuda"
    folders = [*cpp_extension.include_paths(kind), sysconfig.get_path("include")]
    others = [flag for folder in folders for flag in ("-isystem", folder)]
    return {
        "cxx": ["-Wall", "-Wextra", "-Werror", *others],
        "nvcc": ["--Werror", "all-warnings", *others],
    }


def wanted() -> str:
    """What to compile: `all`, `library`, or `0` for nothing."""
    asked = os.environ.get("GHN_FAST_NATIVE") or "all"
    if asked == "1":
        asked = "all"
    if asked not in ("all", "library", "0"):
        raise SystemExit(f"GHN_FAST_NATIVE: got {asked!r}, needs all, library or 0")
    return asked


def without(part: str, reason: object) -> None:
    """Say in one line that plain PyTorch will do what a part is for, and why."""
    text = " ".join(str(reason).split()) or type(reason).__name__
    if wanted() == "library":
        raise SystemExit(f"error: the library of ghn_fast was asked for: {text[:2000]}")
    print(f"warning: ghn_fast is installed without {part}: {text[:500]}", file=sys.stderr)


def sources(patterns: list[str]) -> list[str]:
    """Files below the root, by name."""
    found = [path for pattern in patterns for path in ROOT.glob(pattern)]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def find_toolkit() -> Path | None:
    """Folder of the CUDA toolkit: CUDA_HOME, that of the nvcc on the path, or the usual place."""
    places = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    on_path = shutil.which("nvcc")
    places += [Path(on_path).resolve().parent.parent] if on_path else []
    places.append(Path("/usr/local/cuda"))
    # An nvcc on the path may be a script that calls the real one.
    needed = ("bin/nvcc", "include/cuda_runtime.h")
    return next((p for p in places if all((p / file).is_file() for file in needed)), None)


def extensions() -> tuple[list[Extension], dict[str, type[Command]]]:
    """What to compile and the command that compiles it; both empty where nothing can be.

    An install without a compiler has to work, so nothing is raised unless the library was asked
    for: a missing source, compiler or torch means an empty list, and the references take over.
    """
    every = "its compiled ops"
    if wanted() == "0" or not sources(LIBRARY_SOURCES):
        return [], {}
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None and shutil.which("g++") is None:
        without(every, f"no C++ compiler ({compiler}) is on the path")
        return [], {}
    try:
        import torch
        from torch.utils import cpp_extension
    except Exception as error:
        without(every, f"{error}; install torch first, then this with --no-build-isolation")
        return [], {}
    try:
        parts = [library(cpp_extension, prepare_cuda(torch, cpp_extension))]
        if wanted() == "all":
            parts.append(aten_extension(cpp_extension))
        return parts, {"build_ext": build_command(cpp_extension)}
    except Exception as error:
        without(every, error)
        return [], {}


def prepare_cuda(torch: Any, cpp_extension: Any) -> list[str]:
    """The CUDA sources, with torch's builder pointed at nvcc; empty where they cannot be built."""
    found = sources(CUDA_SOURCES)
    toolkit = None if os.environ.get("GHN_FAST_CUDA") == "0" else find_toolkit()
    if not found or toolkit is None or torch.version.cuda is None:
        return []
    answer = subprocess.check_output([toolkit / "bin" / "nvcc", "--version"], text=True)
    version = re.search(r"release (\d+)\.", answer)
    if version is None or version[1] != torch.version.cuda.split(".")[0]:
        has = "an unknown release" if version is None else version[1]
        print(
            f"warning: ghn_fast is compiled without CUDA: nvcc is CUDA {has}, and torch was built "
            f"for CUDA {torch.version.cuda}",
            file=sys.stderr,
        )
        return []
    cpp_extension.CUDA_HOME = os.fspath(toolkit)
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES)
    return found


def openmp_flags() -> list[str]:
    """What makes at::parallel_for use threads in the extension: without OpenMP it is a loop on one.

    The runtime is the one that torch loads, so nothing is linked. That is GCC's, for which clang
    compiles only with a runtime of its own.
    """
    command = [*os.environ.get("CXX", "c++").split(), "--version"]
    try:
        version = subprocess.run(command, capture_output=True, text=True).stdout
    except OSError:
        return ["-fopenmp"]  # g++ it is, then
    return [] if "clang" in version else ["-fopenmp"]


def library(cpp_extension: Any, cuda: list[str]) -> Extension:
    """ghn_fast/_ops with the CPU ops, and those for CUDA if there are sources of them.

    torch's own threads serve it, so that it needs no OpenMP.
    """
    more = warning_flags(cpp_extension)
    kind = "cuda" if cuda else "cpu"
    return Extension(
        "ghn_fast._ops",
        [*sources(LIBRARY_SOURCES), *cuda],
        define_macros=[TARGET_TORCH, *([("USE_CUDA", "1")] if cuda else [])],
        include_dirs=cpp_extension.include_paths(kind),
        library_dirs=cpp_extension.library_paths(kind),
        libraries=["torch_cpu", *(["torch_cuda", "cudart"] if cuda else [])],
        extra_compile_args={
            "cxx": [*CXX_FLAGS, *more["cxx"]],
            "nvcc": [*NVCC_FLAGS, *more["nvcc"]],
        },
        extra_link_args=["-s"],
        language="c++",
        py_limited_api=True,
        optional=True,
    )


def aten_extension(cpp_extension: Any) -> Extension:
    """ghn_fast._aten, for the torch and the Python at hand."""
    return cpp_extension.CppExtension(
        "ghn_fast._aten",
        sources(EXTENSION_SOURCES),
        extra_compile_args={
            "cxx": [*CXX_FLAGS, *openmp_flags(), *warning_flags(cpp_extension)["cxx"]]
        },
        extra_link_args=["-s"],
        optional=True,
    )


def build_command(cpp_extension: Any) -> type[Command]:
    """torch's build command, part by part; what fails to compile is left out, CUDA first."""

    class BuildNative(cpp_extension.BuildExtension):  # type: ignore[misc, name-defined]
        def run(self) -> None:
            parts = self.extensions
            before = {name: getattr(self, name) for name in ("compiler", "inplace")}
            for part in parts:
                self.extensions = [part]
                try:
                    self._run_with_or_without_cuda(before)
                except (Exception, SystemExit) as error:
                    without(f"{part.name}, a compiled part", f"compiling failed: {error}")
                # A run puts a compiler in the place of its name, among others.
                vars(self).update(before)
            self.extensions = parts

        def _run_with_or_without_cuda(self, before: dict[str, Any]) -> None:
            (part,) = self.extensions
            try:
                super().run()
            except (Exception, SystemExit) as error:
                if not any(source.endswith(".cu") for source in part.sources):
                    raise
                text = " ".join(str(error).split())[:300]
                print(f"warning: ghn_fast is compiled without CUDA: {text}", file=sys.stderr)
                vars(part).update(vars(library(cpp_extension, [])))
                vars(self).update(before)
                super().run()

    return BuildNative


def packages() -> list[str]:
    """Every package under ghn_fast/, and those of kernels/ under their installed name."""
    kernels = ["ghn_fast.kernels", *(f"ghn_fast.kernels.{p}" for p in find_packages("kernels"))]
    return find_packages(include=["ghn_fast", "ghn_fast.*"]) + kernels


# kernels/ is mapped to ghn_fast.kernels. An editable install cannot express that with a path entry
# alone, so setuptools installs an import finder for it: ghn_fast is found in the working tree as
# usual, and ghn_fast.kernels, which is not below it, through the finder. Both need ghn_fast to be
# named in package_dir too; without it the finder would know the subpackage only.
ext_modules, commands = extensions()
setup(
    packages=packages(),
    package_dir={"ghn_fast": "ghn_fast", "ghn_fast.kernels": "kernels"},
    ext_modules=ext_modules,
    cmdclass=commands,
    options={"bdist_wheel": {"py_limited_api": LIMITED_API}} if wanted() == "library" else {},
)
