"""A usage snapshot as plain JSON and back: it crosses from the supervisor to its client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Final

from ...errors import ProtocolError
from .interface import CgroupUsage, IoUsage, Pressure

#: The version of :func:`usage_to_dict`.
USAGE_FORMAT: Final = 1

_NUMBERS: Final = tuple(f.name for f in fields(CgroupUsage) if f.name not in ("io", "pressure"))


def usage_to_dict(usage: CgroupUsage) -> dict[str, Any]:
    """Plain JSON types with a version, see :func:`usage_from_dict`."""
    return {"format": USAGE_FORMAT} | asdict(usage)


def usage_from_dict(data: Mapping[str, Any]) -> CgroupUsage:
    """What :func:`usage_to_dict` described in another process.

    Raises:
        ProtocolError: another version, or a field that is not what it should be; it is named.
    """
    if data.get("format") != USAGE_FORMAT:
        raise ProtocolError(f"format {data.get('format')!r} of a usage is not {USAGE_FORMAT}")
    numbers = {name: _count(name, data.get(name)) for name in _NUMBERS}
    return CgroupUsage(
        **numbers,
        io=_records("io", data.get("io"), _io),
        pressure=_records("pressure", data.get("pressure"), _pressure),
    )


def _records(name: str, value: object, parse: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise ProtocolError(f"{name} = {value!r} is no list of tables")
    return tuple(parse(f"{name}[{i}].", item) for i, item in enumerate(value))


def _io(prefix: str, item: Mapping[str, Any]) -> IoUsage:
    names = ("read_bytes", "write_bytes", "read_operations", "write_operations")
    numbers = {name: _count(prefix + name, item.get(name)) or 0 for name in names}
    return IoUsage(_text(prefix + "device", item.get("device")), **numbers)


def _pressure(prefix: str, item: Mapping[str, Any]) -> Pressure:
    percent = item.get("some_percent")
    if isinstance(percent, bool) or not isinstance(percent, (int, float)):
        raise ProtocolError(f"{prefix}some_percent = {percent!r} is no number")
    return Pressure(
        _text(prefix + "resource", item.get("resource")),
        _count(prefix + "some_usec", item.get("some_usec")) or 0,
        _count(prefix + "full_usec", item.get("full_usec")),
        float(percent),
    )


def _count(name: str, value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ProtocolError(f"{name} = {value!r} is no count")
    return value


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ProtocolError(f"{name} = {value!r} is no text")
    return value
