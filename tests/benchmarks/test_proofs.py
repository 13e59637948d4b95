"""Planted slow-downs are found, an unchanged tree passes, a planted commit is named (slow).

Each test is one run; a rate takes several: `make bench-prove`.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from suite import culprit, noise, plants, trees
from suite.decide import Verdict
from suite.proof import CASES, case_of, cpu_cases
from suite.rounds import compare

pytestmark = [pytest.mark.slow, pytest.mark.extension]
ROOT = Path(__file__).resolve().parent.parent.parent


def thresholds() -> dict[str, float]:
    return {name: tier.threshold for name, tier in noise.read_tiers().items()}


@pytest.fixture
def base() -> Path:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    return trees.tree_of("HEAD")


@pytest.mark.parametrize("percent", [8, 15])
@pytest.mark.parametrize("path", CASES)
def test_a_planted_slow_down_is_found(base: Path, tmp_path: Path, path: str, percent: int) -> None:
    head = tmp_path / "head"
    shutil.copytree(base, head, symlinks=True)
    plants.plant_slowdown(head, percent, path)
    (outcome,) = compare(base, head, [case_of(path)], thresholds=thresholds(), counts=False)
    assert outcome.verdict is Verdict.SLOWER, outcome.ratios


def test_an_unchanged_tree_passes(base: Path, tmp_path: Path) -> None:
    head = tmp_path / "head"
    shutil.copytree(base, head, symlinks=True)
    outcomes = compare(base, head, cpu_cases(), thresholds=thresholds())
    assert [outcome.case.name for outcome in outcomes if outcome.failed] == []


@pytest.mark.parametrize("path", ["gated_gnn", "predict"])
def test_a_planted_commit_is_found_among_sixteen(base: Path, tmp_path: Path, path: str) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=x", "-c", "user.email=x@y", *arguments]
        return subprocess.run(
            command, cwd=base_copy, capture_output=True, text=True, check=True
        ).stdout.strip()

    base_copy, made = tmp_path / "repository", tmp_path / "trees"
    skip = shutil.ignore_patterns("build", "__pycache__")
    shutil.copytree(base, base_copy, symlinks=True, ignore=skip)
    (base_copy / ".gitignore").write_text("*.so\n__pycache__/\n")
    git("init", "-q")
    commits = []
    for number in range(17):
        file = base_copy / "ghn_fast" / "version_note.py"
        file.write_text(f"NUMBER = {number}\n")
        if number == 11:
            plants.plant_slowdown(base_copy, 15, path)
        git("add", "-A")
        git("commit", "-q", "-m", f"commit {number}")
        commits.append(git("rev-parse", "HEAD"))

    def tree_of(commit: str) -> Path:
        tree = made / commit
        if not tree.is_dir():
            git("worktree", "add", "-q", "--detach", str(tree), commit)
            for extension in trees.compiled(base / "ghn_fast"):
                shutil.copy2(extension, tree / "ghn_fast" / extension.name)
        return tree

    found = culprit.search(commits[0], commits[1:], case_of(path), tree_of, print)
    named, chance = found.answer()
    assert named == [commits[11]]
    assert chance > 0.9
