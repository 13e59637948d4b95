"""Fields of a dataclass that are made when they are first read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast, overload

T = TypeVar("T")


class Deferred(Generic[T]):
    """A field that may be given as a function without arguments, which makes its value.

    The function is called when the field is first read, and the value takes its place; so the value
    itself must not be callable. Copies and pickles have whichever of the two there is.

    Args:
        default: The function that is used where the field is not given; none makes it required.
    """

    def __init__(self, default: Callable[[], T] | None = None) -> None:
        self._default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Callable[[], T]: ...

    @overload
    def __get__(self, instance: object, owner: type) -> T: ...

    def __get__(self, instance: object, owner: type) -> T | Callable[[], T]:
        if instance is None:
            # Dataclasses take what the class has for the default.
            if self._default is None:
                raise AttributeError(f"{owner.__name__} itself has no {self._name}")
            return self._default
        value: Any = instance.__dict__[self._name]
        if callable(value):
            value = instance.__dict__[self._name] = value()
        return cast(T, value)

    def __set__(self, instance: object, value: T | Callable[[], T]) -> None:
        instance.__dict__[self._name] = value
