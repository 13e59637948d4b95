"""An environment for asv: this interpreter, with the package of each commit, built once.

asv's own environments install torch anew, and compile every commit. Here a commit is a folder on
PYTHONPATH, whose compiled ops come from a cache by the content of their sources (suite/trees.py).
Named in asv.conf.json; with `-E virtualenv` or `-E existing` asv takes its own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from asv import util
from asv.environment import Environment, EnvironmentUnavailable

sys.path.insert(0, str(Path(__file__).resolve().parent))

from suite.processes import environment
from suite.trees import BuildError, tree_of


class Trees(Environment):  # type: ignore[misc]
    """The trees of commits, with the interpreter that runs asv."""

    tool_name = "trees"
    matches_python_fallback = False

    def __init__(self, conf: Any, python: str, requirements: Any, tagged_env_vars: Any) -> None:
        if not self.matches(python):
            raise EnvironmentUnavailable(f"python {python} is not {_version()}, which runs asv")
        self.tree: Path | None = None
        # The class above asks for its name before it sets them.
        self._requirements: dict[str, str] = {}
        super().__init__(conf, _version(), {}, tagged_env_vars)

    @classmethod
    def matches(cls, python: str) -> bool:
        """Whether a version of Python is the one that runs asv."""
        return python in ("same", _version())

    @property
    def installed_commit_hash(self) -> None:
        """Nothing is installed: a tree is made, or found, for every commit."""
        return None

    def check_presence(self) -> bool:
        """The interpreter is there."""
        return True

    def create(self) -> None:
        """There is nothing to create."""

    def install_project(self, conf: Any, repo: Any, commit_hash: str) -> None:
        """Make the tree of a commit.

        Raises:
            asv.util.ProcessError: If it does not build, which asv reports and passes over.
        """
        try:
            self.tree = tree_of(commit_hash)
        except BuildError as error:
            raise util.ProcessError(["build", commit_hash], 1, "", str(error)) from None
        self._set_commit_hash(commit_hash)

    def run(self, args: list[str], **options: Any) -> Any:
        """Run the interpreter with the package of the tree."""
        env = {**os.environ, **options.pop("env", {}), **self._global_env_vars}
        if self.tree is not None:
            env |= environment(self.tree)
        paths = [str(self.tree)] if self.tree is not None else []
        more = os.environ.get("PYTHONPATH")
        env["ASV_PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [more])])
        env["PYTHONPATH"] = env["ASV_PYTHONPATH"]
        return util.check_output([sys.executable, *args], env=env, **options)


def _version() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"
