"""Pages of the site that lie elsewhere in the repository, and links to what lies there.

Hooks of mkdocs: files of the repository's root become pages, and a link that leaves ``docs/`` leads
to the page that was made of the file, or is shown as the name of the file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
}
_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#|mailto:)([^)\s#]+)(#[^)\s]*)?\)")
_HTML_LINK = re.compile(r'(src|href)="docs/')
# What docstrings have in front of names of code, for editors.
_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):<code>~?")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside ``docs/``, and pages of the list that are not written yet."""
    for source, page in ELSEWHERE.items():
        text = (ROOT / source).read_text()
        files.append(File.generated(config, page, content=_relinked(text, source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead links that leave ``docs/`` to where their files are on the site."""
    if page.file.src_uri in ELSEWHERE.values():
        return markdown
    return _relinked(markdown, f"docs/{page.file.src_uri}")


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Show names of code in docstrings as code alone."""
    return _ROLE.sub("<code>", html)


def _relinked(text: str, source: str) -> str:
    """A page with its links as the site has them.

    Args:
        text: The page.
        source: Its file, from the root of the repository.
    """
    folder = (ROOT / source).parent

    def link(match: re.Match[str]) -> str:
        words, target, anchor = match[1], match[2], match[3] or ""
        path = (folder / target).resolve()
        if not path.is_relative_to(ROOT) or not path.exists():
            return match[0]
        name = path.relative_to(ROOT).as_posix()
        if name in ELSEWHERE:
            return f"[{words}]({ELSEWHERE[name]}{anchor})"
        if name == "README.md":
            return f"[{words}](index.md)"
        if name.startswith("docs/") and path.is_file():
            return f"[{words}]({name.removeprefix('docs/')}{anchor})"
        return f"{words} (`{name}`)" if words.strip("`") != name else f"`{name}`"

    return _LINK.sub(link, _HTML_LINK.sub(r'\1="', text))
