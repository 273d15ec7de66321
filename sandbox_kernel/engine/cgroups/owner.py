"""The name of a leaf says whose it is: ``kernel-<id>.<pid>.<start>.<pidns>-<timens>``.

``pid`` and ``start`` (clock ticks after boot) are those of the supervisor, and are only
comparable inside the same pid and time namespace. Who is in another one never takes a directory
for left over: two containers may share one cgroup file system.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ...errors import CgroupError

_NAME = re.compile(r"kernel-[A-Za-z0-9_-]{1,100}")
_INODE = re.compile(r"\[([0-9]+)\]")
_LEAF = re.compile(r"kernel-[A-Za-z0-9_-]{1,100}\.([0-9]+)\.([0-9]+)\.([0-9]+-[0-9]+)")


@dataclass(frozen=True)
class Owner:
    """One process, for as long as the machine runs."""

    pid: int
    start: int
    namespaces: str

    def leaf_name(self, name: str) -> str:
        """The directory name for the kernel ``name``.

        Raises:
            CgroupError: the name is not ``kernel-`` and letters, digits, ``_`` and ``-``.
        """
        if not _NAME.fullmatch(name):
            raise CgroupError(f"{name!r} cannot name a cgroup", cause=f"it is not {_NAME.pattern}")
        return f"{name}.{self.pid}.{self.start}.{self.namespaces}"

    def lives(self, proc: Path) -> bool | None:
        """Whether the process runs still; ``None`` where that cannot be known from here."""
        if self.namespaces != _namespaces(proc):
            return None
        stat = _stat(proc, self.pid)
        return stat is not None and stat[1] == self.start and stat[0] not in "ZX"


def myself(proc: Path) -> Owner:
    """This process.

    Raises:
        CgroupError: ``<proc>`` does not show it.
    """
    pid = os.getpid()
    stat = _stat(proc, pid)
    if stat is None:
        path = f"{proc}/{pid}/stat"
        raise CgroupError(
            f"{path} cannot be read", cause="it does not show this process", path=path
        )
    return Owner(pid, stat[1], _namespaces(proc))


def owner_of(leaf_name: str) -> Owner | None:
    """Who made the directory of this name; ``None`` if it is not one of ours."""
    match = _LEAF.fullmatch(leaf_name)
    return Owner(int(match[1]), int(match[2]), match[3]) if match else None


def _stat(proc: Path, pid: int) -> tuple[str, int] | None:
    """State letter and start time, fields 3 and 22; the second field may hold anything."""
    try:
        text = (proc / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    rest = text.rpartition(")")[2].split()
    return rest[0], int(rest[19])


def _namespaces(proc: Path) -> str:
    return "-".join(_inode(proc / "self" / "ns" / kind) for kind in ("pid", "time"))


def _inode(link: Path) -> str:
    """``pid:[4026531836]`` → ``4026531836``; 0 where the kernel has no such namespace."""
    try:
        match = _INODE.search(os.readlink(link))
    except OSError:
        return "0"
    return match[1] if match else "0"
