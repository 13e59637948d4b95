"""Make revisions into folders with compiled ops, built once per C++ source.

Both are kept under build/benchmarks: a tree per commit, an extension per content of csrc/ and
setup.py with the versions that it was compiled for.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from suite.machine import CACHE, ROOT


class BuildError(Exception):
    """A revision cannot be extracted or built; the message says why."""


def commit_of_revision(revision: str) -> str:
    """Find the full name of a commit.

    Raises:
        BuildError: If git knows no such revision.
    """
    result = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        raise BuildError(f"git knows no revision {revision!r}")
    return result.stdout.strip()


def tree_of(revision: str) -> Path:
    """Make the folder with the files of a revision and its compiled ops.

    Raises:
        BuildError: If there is no such revision or it does not compile.
    """
    commit = commit_of_revision(revision)
    tree = CACHE / "trees" / commit
    if not tree.is_dir():
        part = tree.with_name(f".{commit}.{os.getpid()}")
        part.mkdir(parents=True)
        archive = subprocess.Popen(
            ["git", "archive", "--format=tar", commit], cwd=ROOT, stdout=subprocess.PIPE
        )
        extracted = subprocess.run(["tar", "-x", "-C", str(part)], stdin=archive.stdout)
        if archive.wait() != 0 or extracted.returncode != 0:
            shutil.rmtree(part)
            raise BuildError(f"{revision} cannot be extracted")
        link_kernels(part)
        try:
            os.replace(part, tree)
        except OSError:
            # Another process was as fast.
            shutil.rmtree(part)
            if not tree.is_dir():
                raise
    build(tree)
    return tree


def copy_of(tree: Path, to: Path) -> Path:
    """Copy a tree without what git ignores, but with compiled ops, to change the copy."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=tree,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    for name in filter(None, names):
        if (tree / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tree / name, to / name)
    link_kernels(to)
    build(to)
    return to


def link_kernels(tree: Path) -> None:
    """Let a tree that is not installed find its own Triton kernels."""
    if (tree / "kernels").is_dir() and not (tree / "ghn_fast" / "kernels").exists():
        (tree / "ghn_fast" / "kernels").symlink_to(Path("..") / "kernels")


def key_of(tree: Path) -> str:
    """Name what decides about the compiled extension: its sources, the versions, the toolkit."""
    import torch

    digest = hashlib.sha256()
    about = (torch.__version__, platform.python_version(), sys.platform, torch.cuda.is_available())
    digest.update(repr(about).encode())
    files = sorted(path for path in (tree / "csrc").rglob("*") if path.is_file())
    for path in [*files, tree / "setup.py"]:
        digest.update(f"\0{path.relative_to(tree).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def compiled(folder: Path) -> list[Path]:
    """The compiled parts of the package in a folder: one file or two, as the revision has it."""
    return sorted(p for p in folder.glob("_*") if p.suffix in (".so", ".pyd"))


def build(tree: Path) -> None:
    """Put the compiled ops into a tree, from the cache where they were compiled before.

    Raises:
        BuildError: If they do not compile.
    """
    package, cache = tree / "ghn_fast", CACHE / "extensions" / key_of(tree)
    kept = compiled(cache)
    if not kept and not (tree == ROOT and _is_current(package)):
        print(f"Compiling the ops of {tree}", file=sys.stderr, flush=True)
        for stale in compiled(package):
            stale.unlink()
        _compile(tree)
    if not kept:
        # Whole or not at all, like the files themselves.
        part = cache.with_name(f"{cache.name}.{os.getpid()}")
        part.mkdir(parents=True, exist_ok=True)
        for file in compiled(package):
            _copy(file, part / file.name)
        try:
            os.replace(part, cache)
        except OSError:
            shutil.rmtree(part)  # another process was as fast
        return
    for file in compiled(package):
        if not (cache / file.name).is_file():
            file.unlink()
    for file in kept:
        there = package / file.name
        if not there.is_file() or there.read_bytes() != file.read_bytes():
            _copy(file, there)


def _is_current(package: Path) -> bool:
    """Whether what is compiled in the checkout is newer than all it is made of."""
    there = compiled(package)
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    newest = max(path.stat().st_mtime for path in [*sources, ROOT / "setup.py"])
    return bool(there) and all(file.stat().st_mtime >= newest for file in there)


def _copy(source: Path, to: Path) -> None:
    """Copy whole or not at all; a process that has the former file loaded keeps it."""
    part = to.with_name(f".{to.name}.{os.getpid()}")
    shutil.copy2(source, part)
    os.replace(part, to)


def _compile(tree: Path) -> None:
    import torch

    env = {**os.environ, "PYTHONPATH": str(tree)}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    if not torch.cuda.is_available():
        # What cannot run here is not compiled: nvcc takes minutes.
        command = [
            sys.executable,
            "-c",
            "import sys, torch; torch.version.cuda = None; sys.argv = ['setup.py', '-q', "
            "'build_ext', '--inplace']; exec(compile(open('setup.py').read(), 'setup.py', 'exec'), "
            "{'__name__': '__main__', '__file__': 'setup.py'})",
        ]
    result = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)
    warnings = [line for line in result.stderr.splitlines() if line.startswith("warning: ghn_fast")]
    # A revision has one part or two, and says so where one does not compile.
    missing = any("installed without" in line for line in warnings)
    if result.returncode != 0 or missing or not compiled(tree / "ghn_fast"):
        tail = "\n".join([*warnings, *result.stderr.splitlines()[-10:]])
        raise BuildError(f"the ops of {tree} do not compile:\n{tail}")
