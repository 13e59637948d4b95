"""Every code block of the README and of the site works, or says above it why it is not run.

Blocks of Python run page by page, in one namespace. Lines of shell that call ``ghn-fast`` are
checked against the command line: command, options and their values. Those of a block with
``<!-- run -->`` above it run, too.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from ghn_fast import cli
from ghn_fast.hypernet import propagate

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = "<!-- not run: "
RUN = "<!-- run -->"


@dataclass(frozen=True)
class Block:
    """A code block of a page."""

    page: str
    line: int
    language: str
    text: str
    above: str


def blocks_of(path: Path) -> list[Block]:
    found, lines = [], path.read_text().splitlines()
    begin: int | None = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if begin is None:
            begin = number
            continue
        above = next((text for text in reversed(lines[:begin]) if text.strip()), "")
        text = "\n".join(lines[begin + 1 : number])
        language = lines[begin].strip("`").strip()
        found.append(Block(path.name, begin + 1, language, text, above))
        begin = None
    assert begin is None, f"{path.name}: a block has no end"
    return found


BLOCKS = [block for path in PAGES for block in blocks_of(path)]
COMMANDS = [
    (block, line)
    for block in BLOCKS
    if block.language in ("", "sh")
    for line in block.text.replace("\\\n", " ").splitlines()
    if re.search(r"\bghn[-_]fast (?!need)", line) and not line.startswith(("#", "pip", " "))
]
PYTHON = sorted({block.page for block in BLOCKS if block.language == "python"})


def words_of(line: str) -> list[str]:
    """The words after ``ghn-fast`` or ``-m ghn_fast``."""
    words = shlex.split(line, comments=True)
    at = next(i for i, word in enumerate(words) if word in ("ghn-fast", "ghn_fast"))
    return words[at + 1 :]


def command_line(words: list[str], callback: Callable[..., Any] | None) -> None:
    """Parse words as the command line does; ``callback`` takes the place of every command."""
    group = typer.main.get_command(cli.app)

    def replace(command: Any) -> None:
        for inner in getattr(command, "commands", {}).values():
            replace(inner)
        if not hasattr(command, "commands"):
            command.callback = callback

    if callback is not None:
        replace(group)
    group.main(words, prog_name="ghn-fast", standalone_mode=False)


def test_blocks_have_a_language_that_is_checked() -> None:
    assert {block.language for block in BLOCKS} <= {"", "sh", "python", "yaml", "json"}
    assert len(COMMANDS) > 30
    assert len(PYTHON) >= 6


@pytest.mark.parametrize(
    ("block", "line"), COMMANDS, ids=lambda v: v[:60] if type(v) is str else ""
)
def test_commands_are_those_of_the_command_line(block: Block, line: str) -> None:
    called: list[bool] = []
    try:
        command_line(words_of(line), lambda *a, **k: called.append(True))
    except Exception as error:
        pytest.fail(f"{block.page}, line {block.line}: {line}: {error}")
    assert called or words_of(line) == ["--version"]


@pytest.mark.parametrize("page", sorted({b.page for b, _ in COMMANDS if b.above == RUN}))
def test_commands_that_are_quick_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchvision")
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    for block, line in COMMANDS:
        if block.page == page and block.above == RUN:
            monkeypatch.setattr(sys, "argv", ["ghn-fast", *words_of(line)])
            try:
                cli.main()
            except SystemExit as end:
                assert not end.code, f"{page}, line {block.line}: {line}"


def before_deepnets() -> dict[str, Any]:
    """The files that the page says how to generate."""
    from ghn_fast.deepnets import generate

    for split, count in (("train", 16), ("val", 2)):
        generate(split, count, Path("data"))
    return {}


def before_graphs() -> dict[str, Any]:
    return {"nn": torch.nn, "torch": torch}


def before_commands() -> dict[str, Any]:
    """What the commands above the block have written."""
    monkey = ["predict", "resnet18", "--input-size", "32", "--out", "resnet18.safetensors"]
    command_line(monkey, None)
    return {}


def before_start() -> dict[str, Any]:
    command_line(["predict", "resnet18", "--out", "resnet18.safetensors"], None)
    return {}


BEFORE: dict[str, Callable[[], dict[str, Any]]] = {
    "deepnets.md": before_deepnets,
    "graphs.md": before_graphs,
    "commands.md": before_commands,
    "index.md": before_start,
}


@pytest.mark.parametrize("page", PYTHON)
def test_blocks_of_python_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    # What a page registers is gone with it.
    monkeypatch.setattr(propagate, "_registry", dict(propagate._registry))
    todo = [block for block in BLOCKS if block.page == page and block.language == "python"]
    todo = [block for block in todo if not block.above.startswith(NOT_RUN)]
    names: dict[str, Any] = {"__name__": "__page__"}
    if todo:
        names |= BEFORE.get(page, dict)()
    for block in todo:
        code = compile("\n" * block.line + block.text, page, "exec")
        try:
            exec(code, names)
        except Exception as error:
            pytest.fail(f"{page}, block of line {block.line}: {type(error).__name__}: {error}")


def test_every_command_has_a_place_on_its_page() -> None:
    text = (ROOT / "docs" / "commands.md").read_text()
    titles = " ".join(re.findall(r"^## (.+)$", text, re.M)).replace(",", " ").split()
    group: Any = typer.main.get_command(cli.app)
    assert set(group.commands) <= set(titles)


def test_what_is_not_run_says_why() -> None:
    for path in PAGES:
        for line in path.read_text().splitlines():
            if line.startswith(NOT_RUN):
                assert re.fullmatch(r"<!-- not run: .{10,} -->", line), f"{path.name}: {line}"
