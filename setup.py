"""The package layout and the native extension of ghn_fast. Metadata is in pyproject.toml.

The extension `ghn_fast._C` holds the C++ ops, and the CUDA ops where nvcc is found. An install has
to work without any of it, so whatever is in the way of the extension costs one line of warning, and
the ops run on their plain-PyTorch references:

- torch has to be importable, and be the torch that the extension will run with. pip builds in an
  environment of its own, without torch, unless it is told `--no-build-isolation`.
- a C++ compiler; nvcc for CUDA, for TORCH_CUDA_ARCH_LIST or what is listed below.

GHN_FAST_NATIVE=0 leaves the extension out.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from setuptools import Command, Extension, find_packages, setup

ROOT = Path(__file__).resolve().parent
CPU_SOURCES = ["csrc/*.cpp", "csrc/cpu/*.cpp"]
CUDA_SOURCES = ["csrc/cuda/*.cpp", "csrc/cuda/*.cu"]
# Warnings about the calling convention of vector types: all such calls are inlined.
CXX_FLAGS = ["-O3", "-std=c++20", "-ffp-contract=fast", "-fvisibility=hidden", "-Wno-psabi"]
NVCC_FLAGS = ["-O3", "-std=c++20", "--expt-relaxed-constexpr"]
CUDA_ARCHITECTURES = "8.0;9.0+PTX"


def without_extension(reason: object) -> None:
    """Say in one line that the ops will run on their references, and why."""
    text = " ".join(str(reason).split()) or type(reason).__name__
    print(f"warning: ghn_fast is installed without its compiled ops: {text[:500]}", file=sys.stderr)


def sources(patterns: list[str]) -> list[str]:
    """Files below the root, by name."""
    found = [path for pattern in patterns for path in ROOT.glob(pattern)]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def find_nvcc() -> str | None:
    """The compiler for CUDA: of CUDA_HOME, on the path, or where toolkits are installed."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    places = [Path(home) / "bin" / "nvcc"] if home else []
    on_path = shutil.which("nvcc")
    places += [Path(on_path)] if on_path else []
    places.append(Path("/usr/local/cuda/bin/nvcc"))
    return next((str(place) for place in places if place.is_file()), None)


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
        return [native_extension(torch, cpp_extension, cpu)], {
            "build_ext": build_command(cpp_extension)
        }
    except Exception as error:
        without_extension(error)
        return [], {}


def native_extension(torch: Any, cpp_extension: Any, cpu: list[str]) -> Extension:
    """ghn_fast._C with the CPU sources."""
    return cpp_extension.CppExtension(
        "ghn_fast._C",
        cpu,
        extra_compile_args={"cxx": CXX_FLAGS},
        extra_link_args=["-s"],
        optional=True,
    )


def build_command(cpp_extension: Any) -> type[Command]:
    """torch's build command; a failed compilation leaves the extension out."""

    class BuildNative(cpp_extension.BuildExtension):  # type: ignore[misc, name-defined]
        def run(self) -> None:
            try:
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
