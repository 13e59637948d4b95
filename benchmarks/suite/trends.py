"""A page with the trend of every case and the commits that moved it; it needs no network.

Steps are found by asv (`asv.step_detect`), as on the pages of `asv publish`; here a commit that
made a case faster is shown like one that made it slower.
"""

from __future__ import annotations

import html
import itertools
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from suite.machine import ROOT
from suite.noise import TIERS
from suite.outputs import duration
from suite.results import Series

WIDTH, HEIGHT, MARGIN = 640, 150, 12
# Least ratio of two steps that is shown as a move: the closest that any case is guarded.
LEAST = TIERS[0]


@dataclass(frozen=True)
class Move:
    """A commit that moved a series.

    Attributes:
        place: Index of the first point after it.
        ratio: Level after it over the level before.
    """

    place: int
    ratio: float


def moves_of(one: Series) -> list[Move]:
    """Find the places at which a series goes from one level to another.

    Times have noise, in which asv finds the steps; all else is exact, and every change counts.
    """
    values = [value for _, value in one.points]
    if one.unit != "seconds":
        pairs = enumerate(itertools.pairwise(values), 1)
        return [
            Move(n, after / before) for n, (before, after) in pairs if before and before != after
        ]
    from asv.step_detect import detect_steps

    found = []
    for before, after in itertools.pairwise(detect_steps(values)):
        ratio = after[2] / before[2]
        if max(ratio, 1 / ratio) >= LEAST:
            found.append(Move(int(after[0]), ratio))
    return found


def subjects(commits: Sequence[str]) -> dict[str, str]:
    """The first line of each commit's message, as far as git knows it."""
    found = {}
    for commit in commits:
        done = subprocess.run(
            ["git", "log", "-1", "--format=%s", commit], cwd=ROOT, capture_output=True, text=True
        )
        if done.returncode == 0:
            found[commit] = done.stdout.strip()
    return found


def _shown(value: float, unit: str) -> str:
    return duration(value) if unit == "seconds" else f"{value:.6g}"


def chart(one: Series, moves: Sequence[Move], named: Mapping[str, str]) -> str:
    """Draw a series as SVG: a point per commit, a line at each move."""
    values = [value for _, value in one.points]
    top = max(values) or 1.0
    across = (WIDTH - 2 * MARGIN) / max(len(values) - 1, 1)

    def x(place: float) -> float:
        return MARGIN + across * place

    def y(value: float) -> float:
        return HEIGHT - MARGIN - (HEIGHT - 3 * MARGIN) * value / top

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(one.name)}">'
    ]
    for move in moves:
        colour = "#b3261e" if move.ratio > 1 else "#1b7f3b"
        at = x(move.place - 0.5)
        parts.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{HEIGHT}" stroke="{colour}" '
            'stroke-dasharray="4 3"/>'
        )
    path = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(values))
    parts.append(f'<polyline points="{path}" fill="none" stroke="#3b5b92"/>')
    for place, (commit, value) in enumerate(one.points):
        text = f"{commit[:10]} {_shown(value, one.unit)} {named.get(commit, '')}".strip()
        parts.append(
            f'<circle cx="{x(place):.1f}" cy="{y(value):.1f}" r="3" fill="#3b5b92">'
            f"<title>{html.escape(text)}</title></circle>"
        )
    return "".join([*parts, "</svg>"])


def page(found: Sequence[Series]) -> str:
    """Write the page, what was moved most by a commit first."""
    commits = list(dict.fromkeys(commit for one in found for commit, _ in one.points))
    named = subjects(commits)
    moves = {id(one): moves_of(one) for one in found}

    def size(one: Series) -> tuple[bool, float, str]:
        ratios = [max(m.ratio, 1 / m.ratio) for m in moves[id(one)] if m.ratio]
        return one.unit != "seconds", -max(ratios, default=1.0), one.name

    sections = []
    for one in sorted(found, key=size):
        said = []
        for move in moves[id(one)]:
            commit = one.points[move.place][0]
            change = "slower" if move.ratio > 1 else "faster"
            if one.unit != "seconds":
                change = "more" if move.ratio > 1 else "less"
            said.append(
                f'<li class="{change}"><code>{commit[:10]}</code> {100 * (move.ratio - 1):+.1f} % '
                f"({change}) {html.escape(named.get(commit, ''))}</li>"
            )
        last = _shown(one.points[-1][1], one.unit)
        sections.append(
            f"<section><h2>{html.escape(one.name)}</h2><p>{html.escape(one.machine)}: now {last}"
            f"{'' if said else '; nothing moved it'}</p>"
            f"{chart(one, moves[id(one)], named)}<ul>{''.join(said)}</ul></section>"
        )
    moved = sum(bool(m) for m in moves.values())
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        "<title>ghn_fast: trends of the benchmarks</title>\n<style>"
        "body{font:14px sans-serif;margin:2em;max-width:1400px}h2{font:600 13px monospace}"
        "main{display:grid;grid-template-columns:repeat(auto-fill,minmax(420px,1fr));gap:1.5em}"
        "section{border:1px solid #ccc;padding:.6em}svg{width:100%}ul{padding-left:1.2em}"
        ".slower,.more{color:#b3261e}.faster,.less{color:#1b7f3b}</style>\n"
        "<h1>ghn_fast: trends of the benchmarks</h1>\n"
        f"<p>{len(found)} series over {len(commits)} commits; a commit moved {moved} of them. "
        "A dashed line is where; what moved most comes first. Times are per call.</p>\n<main>\n"
        + "\n".join(sections)
        + "\n</main>\n</html>\n"
    )


def write_page(found: Sequence[Series], folder: Path) -> Path:
    """Write index.html into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    path.write_text(page(found))
    return path
