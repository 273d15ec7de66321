"""Which disk a path of the host lies on: limits on block devices are written to ``major:minor``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ...errors import CgroupError, describe_errno
from ...spec import Caps, IoLimit
from .interface import Files, unescape

_WHOLE = "name a path on a disk, or the device itself"


def resolve(caps: Caps, proc: Path, files: Files) -> Caps:
    """The same caps with every :class:`IoLimit` naming its whole disk by ``major:minor``.

    Raises:
        CgroupError: a path or device is not there, or no block device is behind it.
    """
    found = tuple(_resolved(limit, proc, files) for limit in caps.io)
    devices = [limit.device for limit in found]
    for limit, asked in zip(found, caps.io, strict=True):
        if devices.count(limit.device) > 1:
            raise CgroupError(
                f"the cap io names the block device {limit.device} more than once",
                cause=f"{asked.path or asked.device} is on it, and another one too",
                remedy="write one table for one disk",
            )
    return replace(caps, io=found)


def _resolved(limit: IoLimit, proc: Path, files: Files) -> IoLimit:
    if limit.device is not None and not limit.device.startswith("/"):
        major, minor = map(int, limit.device.split(":"))
        if not (files.sys / f"dev/block/{major}:{minor}").exists():
            raise CgroupError(
                f"there is no block device {major}:{minor}",
                cause="it is not in /sys/dev/block",
                remedy=_WHOLE,
            )
    else:
        path = Path(limit.device or limit.path or "/")
        major, minor = _device(path, limit.device is not None, proc, files)
    return replace(limit, path=None, device=_whole_disk(major, minor, files))


def _device(path: Path, must_be_node: bool, proc: Path, files: Files) -> tuple[int, int]:
    try:
        major, minor, is_node = files.device_of(path)
        if must_be_node and not is_node:
            raise CgroupError(f"{path} is no block device", remedy=_WHOLE, path=str(path))
        if major == 0:  # an anonymous number: several disks, or none, or one below others
            source = _source(path.resolve(), proc, files)
            is_node = False
            if source is not None and source.is_absolute():
                major, minor, is_node = files.device_of(source)
            if not is_node:
                raise CgroupError(
                    f"no block device is behind {path}",
                    cause=f"it lies on {source or 'a file system of unknown source'}",
                    remedy=_WHOLE,
                    path=str(path),
                )
    except OSError as error:
        cause = describe_errno(error.errno or 0)
        raise CgroupError(
            f"the block device of {path} cannot be found", cause=cause, path=str(path)
        ) from error
    return major, minor


def _source(path: Path, proc: Path, files: Files) -> Path | None:
    """What is mounted where the path lies, as btrfs says ``/dev/sda2`` and tmpfs says ``tmpfs``."""
    best, source = "", None
    for line in (files.read(proc / "self/mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        point = unescape(before.split(" ")[4])
        if len(point) >= len(best) and (path == Path(point) or Path(point) in path.parents):
            best, source = point, after.split(" ")[1]
    return Path(source) if source is not None else None


def _whole_disk(major: int, minor: int, files: Files) -> str:
    """Linux limits whole disks: of a partition it says that there is no such device."""
    entry = files.sys / f"dev/block/{major}:{minor}"
    if (entry / "partition").exists():
        number = files.read(entry.resolve().parent / "dev")
        if number is not None:
            return number.strip()
    return f"{major}:{minor}"


def scheduler(device: str, files: Files) -> str | None:
    """The I/O scheduler of a disk, such as ``bfq``; ``None`` if it tells none."""
    text = files.read(files.sys / f"dev/block/{device}/queue/scheduler") or ""
    return next((word[1:-1] for word in text.split() if word.startswith("[")), None)


def name(device: str, files: Files) -> str:
    """``vda`` for ``254:0``."""
    return (files.sys / f"dev/block/{device}").resolve().name
