"""Make revisions into folders with compiled ops, built once per C++ source.

Both are kept under build/benchmarks: a tree per commit, an extension per content of csrc/ and
setup.py with the versions that it was compiled for.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
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


def build(tree: Path) -> None:
    """Put the compiled ops into a tree, from the cache where they were compiled before.

    Raises:
        BuildError: If they do not compile.
    """
    name = f"_C{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    there, kept = tree / "ghn_fast" / name, CACHE / "extensions" / key_of(tree) / name
    if not kept.is_file() and not (tree == ROOT and _is_current(there)):
        print(f"Compiling the ops of {tree}", file=sys.stderr, flush=True)
        _compile(tree)
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        _copy(there, kept)
    elif not there.is_file() or there.read_bytes() != kept.read_bytes():
        _copy(kept, there)


def _is_current(extension: Path) -> bool:
    """Whether the extension of the checkout is newer than all it is made of."""
    if not extension.is_file():
        return False
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    newest = max(path.stat().st_mtime for path in [*sources, ROOT / "setup.py"])
    return extension.stat().st_mtime >= newest


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
    name = f"_C{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    if result.returncode != 0 or not (tree / "ghn_fast" / name).is_file():
        tail = "\n".join([*warnings, *result.stderr.splitlines()[-10:]])
        raise BuildError(f"the ops of {tree} do not compile:\n{tail}")
