"""The package layout and the native extensions of ghn_fast. Metadata is in pyproject.toml."""

from __future__ import annotations

from setuptools import Extension, find_packages, setup


def extensions() -> list[Extension]:
    """C++ and CUDA extensions to compile; an empty list where none can be built.

    An install without a compiler has to work, so this function never raises: a missing source,
    compiler or torch means an empty list, and the reference back end of each op takes over.
    """
    return []


def packages() -> list[str]:
    """Every package under ghn_fast/, and those of kernels/ under their installed name."""
    kernels = ["ghn_fast.kernels", *(f"ghn_fast.kernels.{p}" for p in find_packages("kernels"))]
    return find_packages(include=["ghn_fast", "ghn_fast.*"]) + kernels


# kernels/ is mapped to ghn_fast.kernels. An editable install cannot express that with a path entry
# alone, so setuptools installs an import finder for it: ghn_fast is found in the working tree as
# usual, and ghn_fast.kernels, which is not below it, through the finder. Both need ghn_fast to be
# named in package_dir too; without it the finder would know the subpackage only.
setup(
    packages=packages(),
    package_dir={"ghn_fast": "ghn_fast", "ghn_fast.kernels": "kernels"},
    ext_modules=extensions(),
)
