"""The package layout and the native extension of ghn_fast. Metadata is in pyproject.toml.

The extension `ghn_fast._C` holds the C++ ops, and the CUDA ops where nvcc is found. An install has
to work without any of it, so whatever is in the way of the extension costs one line of warning, and
the ops run on their plain-PyTorch references:

- torch has to be importable, and be the torch that the extension will run with. pip builds in an
  environment of its own, without torch, unless it is told `--no-build-isolation`.
- a C++ compiler; nvcc for CUDA, for TORCH_CUDA_ARCH_LIST or what is listed below.

GHN_FAST_NATIVE=0 leaves the extension out. GHN_FAST_WERROR=1 takes warnings in our sources for
errors.
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
CPU_SOURCES = [
    *("csrc/*.cpp", "csrc/cpu/*.cpp", "csrc/plan/*.cpp", "csrc/deepnets/*.cpp"),
    "csrc/python/*.cpp",
]
CUDA_SOURCES = ["csrc/cuda/*.cpp", "csrc/cuda/*.cu"]
# Warnings about the calling convention of vector types: all such calls are inlined.
CXX_FLAGS = ["-O3", "-std=c++20", "-ffp-contract=fast", "-fvisibility=hidden", "-Wno-psabi"]
NVCC_FLAGS = ["-O3", "-std=c++20", "--expt-relaxed-constexpr"]
CUDA_ARCHITECTURES = "8.0;9.0+PTX"


def warning_flags(cpp_extension: Any) -> dict[str, list[str]]:
    """Warnings as errors, but for headers that are not ours, if the environment asks for that."""
    if os.environ.get("GHN_FAST_WERROR") != "1":
        return {"cxx": [], "nvcc": []}
    # A folder that is named as one of the system's is not searched as one of ours.
    folders = [*cpp_extension.include_paths("cuda"), sysconfig.get_path("include")]
    others = [flag for folder in folders for flag in ("-isystem", folder)]
    return {
        "cxx": ["-Wall", "-Wextra", "-Werror", *others],
        "nvcc": ["--Werror", "all-warnings", *others],
    }


def without_extension(reason: object) -> None:
    """Say in one line that the ops will run on their references, and why."""
    text = " ".join(str(reason).split()) or type(reason).__name__
    print(f"warning: ghn_fast is installed without its compiled ops: {text[:500]}", file=sys.stderr)


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
    """The extension to compile and the command that compiles it; both empty where neither can be.

    An install without a compiler has to work, so this function never raises: a missing source,
    compiler or torch means an empty list, and the reference back end of each op takes over.
    """
    if os.environ.get("GHN_FAST_NATIVE") == "0":
        return [], {}
    cpu = sources(CPU_SOURCES)
    if not cpu:
        return [], {}
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None and shutil.which("g++") is None:
        without_extension(f"no C++ compiler ({compiler}) is on the path")
        return [], {}
    try:
        import torch
        from torch.utils import cpp_extension
    except Exception as error:
        without_extension(f"{error}; install torch first, then this with --no-build-isolation")
        return [], {}
    try:
        cuda = prepare_cuda(torch, cpp_extension)
        extension = native_extension(cpp_extension, cpu, cuda)
        return [extension], {"build_ext": build_command(cpp_extension, cpu)}
    except Exception as error:
        without_extension(error)
        return [], {}


def prepare_cuda(torch: Any, cpp_extension: Any) -> list[str]:
    """The CUDA sources, with torch's builder pointed at nvcc; empty where they cannot be built."""
    found = sources(CUDA_SOURCES)
    toolkit = find_toolkit()
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
    """What makes at::parallel_for use threads: without OpenMP it is a loop on one.

    The runtime is the one that torch loads, so nothing is linked. That is GCC's, for which clang
    compiles only with a runtime of its own.
    """
    command = [*os.environ.get("CXX", "c++").split(), "--version"]
    try:
        version = subprocess.run(command, capture_output=True, text=True).stdout
    except OSError:
        return ["-fopenmp"]  # g++ it is, then
    return [] if "clang" in version else ["-fopenmp"]


def native_extension(cpp_extension: Any, cpu: list[str], cuda: list[str]) -> Extension:
    """ghn_fast._C with the CPU sources, and those for CUDA if there are any."""
    kind = cpp_extension.CUDAExtension if cuda else cpp_extension.CppExtension
    more = warning_flags(cpp_extension)
    return kind(
        "ghn_fast._C",
        [*cpu, *cuda],
        define_macros=[("GHN_FAST_CUDA", "1")] if cuda else [],
        extra_compile_args={
            "cxx": [*CXX_FLAGS, *openmp_flags(), *more["cxx"]],
            "nvcc": [*NVCC_FLAGS, *more["nvcc"]],
        },
        extra_link_args=["-s"],
        optional=True,
    )


def build_command(cpp_extension: Any, cpu: list[str]) -> type[Command]:
    """torch's build command; what fails to compile is left out, CUDA first."""

    class BuildNative(cpp_extension.BuildExtension):  # type: ignore[misc, name-defined]
        def run(self) -> None:
            before = {name: getattr(self, name) for name in ("compiler", "inplace")}
            try:
                try:
                    super().run()
                except (Exception, SystemExit) as error:
                    if not any(source.endswith(".cu") for source in self.extensions[0].sources):
                        raise
                    text = " ".join(str(error).split())[:300]
                    print(f"warning: ghn_fast is compiled without CUDA: {text}", file=sys.stderr)
                    without_cuda = vars(native_extension(cpp_extension, cpu, []))
                    vars(self.extensions[0]).update(without_cuda)
                    # The first run has put a compiler in the place of its name, among others.
                    vars(self).update(before)
                    super().run()
            except (Exception, SystemExit) as error:
                without_extension(f"compiling failed: {error}")

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
)
