"""What several commands check before they work."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from ghn_fast.commands.common import check_out_file

ROOT = Path(__file__).resolve().parents[2]


def test_names_of_files(tmp_path: Path) -> None:
    for path in (tmp_path / "net.safetensors", tmp_path / "net", Path("/dev/null")):
        check_out_file(path, ".safetensors")
    for name in ("net.pt", "net.pth", "net.bin", "net.safetensors.tmp"):
        with pytest.raises(ValueError, match=r"needs a name that ends in \.safetensors"):
            check_out_file(tmp_path / name, ".safetensors")
    with pytest.raises(ValueError, match="which is a folder"):
        check_out_file(tmp_path, ".safetensors")


def default_folders(module: Path) -> set[str]:
    """Folders that stand in ``Path("...")`` in a module."""
    return {
        node.args[0].value
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Path"
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }


def test_git_ignores_what_commands_write_where_nobody_says() -> None:
    named = [default_folders(module) for module in (ROOT / "ghn_fast/commands").glob("*.py")]
    folders = set().union(*named)
    assert {"evaluation", "sgd"} <= folders
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    assert folders <= ignored, sorted(folders - ignored)
