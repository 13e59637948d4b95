"""Checking values against the types and limits that a configuration declares."""

from __future__ import annotations

import math
import reprlib
import types
from collections.abc import Mapping
from dataclasses import field, fields
from typing import Any, Union, get_args, get_origin, get_type_hints

_SHORT = reprlib.Repr()
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 4
_SHORT.maxlevel = 2
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 80


def setting(
    default: Any,
    *,
    least: float | None = None,
    positive: bool = False,
    choices: tuple[str, ...] = (),
    may_change: bool = False,
) -> Any:
    """A field with limits, which do not hold for ``None`` where that is the default.

    Args:
        default: Its default.
        least: Smallest value.
        positive: Whether it must be above zero, and finite.
        choices: All values that it may have.
        may_change: Whether it may change when a run is continued, because no step that was done
            depends on it.
    """
    limits = {"least": least, "positive": positive, "choices": choices}
    return field(default=default, metadata={**limits, "may_change": may_change})


class Section:
    """Checks the limits of its settings."""

    def __post_init__(self) -> None:
        for item in fields(self):  # type: ignore[arg-type]
            name, value, limits = item.name, getattr(self, item.name), item.metadata
            if value is None and item.default is None:
                continue
            least, choices = limits.get("least"), limits.get("choices")
            if least is not None and not value >= least:
                raise ValueError(f"{name}: got {value}, needs at least {least}")
            if limits.get("positive") and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name}: got {value}, needs a positive number")
            if choices and value not in choices:
                raise ValueError(f"{name}: got {value!r}, needs one of {', '.join(choices)}")


def checked(kind: type, values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Values for the fields of a dataclass, from JSON or YAML.

    A list becomes a tuple, an integer a float where one is declared, and a text such as ``1e-3``
    (which YAML does not take for a number) the number that it says.

    Args:
        kind: The dataclass.
        values: Name of each field to its value.
        what: What the message calls a field.

    Raises:
        ValueError: If a name is unknown or a value has another type than declared; the message
            names it, says what it got and what it needs.
    """
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind)]
    unknown = sorted(set(values) - set(known), key=str)
    if unknown:
        raise ValueError(f"config: unknown {what} {shown(unknown[0])}, known are {sorted(known)}")
    result = {}
    for name, value in values.items():
        ok, converted = _convert(value, hints[name])
        if not ok:
            raise ValueError(f"{name}: got {shown(value)}, needs {_describe(hints[name])}")
        result[name] = converted
    return result


def shown(value: Any) -> str:
    """A value for a message, shortened.

    A few hundred bytes of YAML can stand for billions of nested elements, which are never visited.
    """
    return _SHORT.repr(value)


def _convert(value: Any, hint: Any) -> tuple[bool, Any]:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        for option in get_args(hint):
            ok, converted = _convert(value, option)
            if ok:
                return True, converted
        return False, value
    if origin is tuple:
        return _convert_tuple(value, get_args(hint))
    if hint is float and isinstance(value, str):
        try:
            return True, float(value)
        except ValueError:
            return False, value
    if hint is float and type(value) is int:
        return True, float(value)
    return (value is None if hint is type(None) else type(value) is hint), value


def _convert_tuple(value: Any, hints: tuple[Any, ...]) -> tuple[bool, Any]:
    if not isinstance(value, (list, tuple)):
        return False, value
    if len(hints) == 2 and hints[1] is Ellipsis:
        hints = (hints[0],) * len(value)
    if len(hints) != len(value):
        return False, value
    pairs = [_convert(item, hint) for item, hint in zip(value, hints, strict=True)]
    return all(ok for ok, _ in pairs), tuple(converted for _, converted in pairs)


def _describe(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_describe(option) for option in get_args(hint))
    if get_origin(hint) is tuple:
        hints = get_args(hint)
        if hints[1:] == (Ellipsis,):
            return f"a list, each {_describe(hints[0])}"
        return f"a list of {len(hints)}, each {_describe(hints[0])}"
    names = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}
    return names.get(hint, "nothing")
