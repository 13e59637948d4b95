"""What the package has is on the page where people look for it."""

from __future__ import annotations

import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from ghn_fast.deepnets import SPLITS
from ghn_fast.graph.node_types import LANGUAGE_NODE_TYPES
from ghn_fast.hypernet.checkpoint import bundled
from ghn_fast.vision import DATASETS

ROOT = Path(__file__).resolve().parents[2]


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def in_tables(text: str) -> set[str]:
    """What stands as code in the first column of tables."""
    cells = re.findall(r"^\| (`[^|]*) \|", text, re.M)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


# Rooms that people import from; "" is the package itself.
ROOMS = ("", ".capturing", ".deepnets", ".drawing", ".graph", ".hypernet", ".metatrain", ".models")


@pytest.mark.parametrize("room", [*ROOMS, ".studies", ".vision"])
def test_public_names_are_in_the_reference(room: str) -> None:
    names = {*import_module(f"ghn_fast{room}").__all__} - {"__version__", "deepnets"}
    told = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)$", page("api.md"), re.M)}
    assert names <= told, sorted(names - told)


def test_extras_are_on_the_page_of_the_install() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["optional-dependencies"]) <= in_tables(page("installation.md"))


def test_data_sets_and_hypernetworks_are_on_the_page_of_the_commands() -> None:
    assert {*DATASETS, *bundled()} <= in_tables(page("commands.md"))


def test_splits_and_node_types_are_on_their_pages() -> None:
    assert set(SPLITS) <= in_tables(page("deepnets.md"))
    assert set(LANGUAGE_NODE_TYPES) <= in_tables(page("graphs.md"))
