"""The names that are nearest to one that does not exist."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

# Below this likeness (0 to 1) a name is no suggestion but noise.
_ALIKE = 0.6
_MOST = 5


def nearest(name: str, known: Iterable[str], most: int = _MOST) -> list[str]:
    """The known names that are most like ``name``, best first.

    Case, and whether words are joined by ``-``, ``_`` or a dot, do not count; a name that begins
    like the other one counts as more alike.
    """
    wanted = _plain(name)
    found = []
    for candidate in known:
        plain = _plain(candidate)
        matcher = SequenceMatcher(None, plain, wanted)
        if matcher.real_quick_ratio() < _ALIKE and not _begins_alike(plain, wanted):
            continue
        likeness = matcher.ratio()
        if _begins_alike(plain, wanted):
            likeness = (1 + likeness) / 2
        if likeness >= _ALIKE:
            together = _letters_in_common(plain, wanted)
            found.append((-likeness, -together, len(candidate), candidate))
    return [candidate for *_, candidate in sorted(found)[:most]]


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace(".", "_")


def _letters_in_common(one: str, other: str) -> int:
    """How many letters two names have in common at their beginnings."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _begins_alike(one: str, other: str) -> bool:
    """Whether one name begins with the whole of the other one."""
    shorter = min(len(one), len(other))
    return shorter >= 3 and _letters_in_common(one, other) == shorter
