"""Parsers of single values, one a kind: each takes the key and what was given for it.

Pure. What cannot be is a :class:`~sandbox_kernel.errors.SpecError` that names the key, the value
and what is allowed. Sizes are in bytes, or text with a binary suffix: ``"512M"``, ``"2G"``.
"""

from __future__ import annotations

import enum
import math
import os.path
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from .errors import SpecError

KIB: Final = 1024
MIB: Final = 1024**2
GIB: Final = 1024**3
_LARGEST: Final = 2**63 - 1

_E = TypeVar("_E", bound=enum.Enum)


_SIZE = re.compile(r"(?P<number>[0-9]{1,19}(?:\.[0-9]{1,9})?)(?:(?P<unit>[KMGT])(?:iB)?)?")
_UNITS = {None: 1, "K": KIB, "M": MIB, "G": GIB, "T": 1024**4}
_SIZE_ALLOWED = "a size in bytes or with a suffix K, M, G or T, such as '512M' or '2G'"


def parse_size(key: str, value: object, *, minimum: int = 1) -> int:
    """Bytes from an integer or from ``"512M"``; ``minimum`` and the result are bytes."""
    allowed = f"{_SIZE_ALLOWED}, at least {minimum}"
    size: int
    if isinstance(value, bool):
        raise SpecError(key, value, allowed)
    if isinstance(value, int):
        size = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value)):
        number, unit = match["number"], _UNITS[match["unit"]]
        if "." in number:
            whole, digits = number.split(".")
            if match["unit"] is None:
                raise SpecError(key, value, allowed)
            size = int(whole) * unit + int(digits) * unit // 10 ** len(digits)
        else:
            size = int(number) * unit
    else:
        raise SpecError(key, value, allowed)
    if not minimum <= size <= _LARGEST:
        raise SpecError(key, value, allowed)
    return size


def size_of(minimum: int) -> Callable[[str, object], int]:
    """A parser of sizes from ``minimum`` bytes on, see :func:`parse_size`."""
    return lambda key, value: parse_size(key, value, minimum=minimum)


def integer(minimum: int, maximum: int) -> Callable[[str, object], int]:
    """A parser of whole numbers."""

    def parse(key: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise SpecError(key, value, f"a whole number from {minimum} to {maximum}")
        return value

    return parse


def boolean(key: str, value: object) -> bool:
    """True or false, and nothing that only counts as such: ``"no"`` is neither."""
    if not isinstance(value, bool):
        raise SpecError(key, value, "true or false")
    return value


def number(minimum: float, maximum: float) -> Callable[[str, object], float]:
    """A parser of numbers, whole or not; never NaN."""

    def parse(key: str, value: object) -> float:
        allowed = f"a number from {minimum:.15g} to {maximum:.15g}"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise SpecError(key, value, allowed)
        if not (minimum <= value <= maximum) or not math.isfinite(value):
            raise SpecError(key, value, allowed)
        return float(value)

    return parse


def choice(kind: type[_E]) -> Callable[[str, object], _E]:
    """A parser of the values of an enum."""

    def parse(key: str, value: object) -> _E:
        for member in kind:
            if isinstance(value, str) and member.value == value:
                return member
        raise SpecError(key, value, "one of " + ", ".join(repr(m.value) for m in kind))

    return parse


def pattern(whole: re.Pattern[str], allowed: str) -> Callable[[str, object], str]:
    """A parser of text that matches as a whole; ``allowed`` says so in words."""

    def parse(key: str, value: object) -> str:
        if not isinstance(value, str) or not whole.fullmatch(value):
            raise SpecError(key, value, allowed)
        return value

    return parse


def absolute_path(key: str, value: object) -> str:
    """An absolute path without ``..``; ``~`` is the user's home, and one slash never two."""
    allowed = "an absolute path without '..' or control characters"
    if not isinstance(value, str) or (not value.startswith(("/", "~/")) and value != "~"):
        raise SpecError(key, value, allowed)
    if any(ord(c) < 32 or ord(c) == 127 for c in value) or len(value) > 4000:
        raise SpecError(key, value, allowed)
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        raise SpecError(key, value, allowed) from None
    if ".." in value.split("/"):
        raise SpecError(key, value, allowed)
    path = os.path.normpath(os.path.expanduser(value))
    if not path.startswith("/"):
        raise SpecError(key, value, allowed)
    return "/" + path.lstrip("/")


def list_of(parse_item: Callable[[str, object], Any], allowed: str) -> Callable[[str, object], Any]:
    """A parser of lists; an item's key is ``key[index]``."""

    def parse(key: str, value: object) -> tuple[Any, ...]:
        if isinstance(value, (str, bytes)) or not isinstance(value, (list, tuple)):
            raise SpecError(key, value, allowed)
        return tuple(parse_item(f"{key}[{i}]", item) for i, item in enumerate(value))

    return parse


class Table(tuple[tuple[str, int], ...]):
    """A small table of numbers by name that can be hashed: pairs, sorted by name."""

    __slots__ = ()


NO_TABLE: Final = Table()


def table_of(
    name: re.Pattern[str], parse_value: Callable[[str, object], int], allowed: str
) -> Callable[[str, object], Table]:
    """A parser of tables of numbers; a value's key is ``key.name``."""

    def parse(key: str, value: object) -> Table:
        if not isinstance(value, Mapping):
            raise SpecError(key, value, allowed)
        for item in value:
            if not isinstance(item, str) or not name.fullmatch(item):
                raise SpecError(key, item, allowed)
        return Table((k, parse_value(f"{key}.{k}", value[k])) for k in sorted(value))

    return parse
