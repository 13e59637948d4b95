"""The files that a repository is known by agree with the package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from ghn_fast import __version__

ROOT = Path(__file__).resolve().parent.parent


def test_the_changelog_knows_the_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (\S+)", text, re.M)
    assert versions[0] == "Unreleased"
    assert versions[1] == __version__


def test_the_citation_is_of_this_version() -> None:
    values = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert values["version"] == __version__
    assert {"cff-version", "message", "title", "authors", "license"} <= set(values)
    assert all("title" in reference for reference in values["references"])


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda p: p.stem)
def test_yaml_of_the_repository_is_valid(path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    assert isinstance(values, dict)
    if path.parent.name == "ISSUE_TEMPLATE" and path.stem != "config":
        assert {"name", "description", "body"} <= set(values)
