"""What one step of building the root file system is, as frozen data.

Every target is an absolute path *inside*. The order of a plan is the order of execution.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final


class Absent(enum.Enum):
    """What happens when the source of a bind is not on this host."""

    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True)
class Directory:
    """An empty directory of the root file system."""

    target: str
    mode: int = 0o755

    def describe(self) -> str:
        return f"mkdir    {self.target} {self.mode:04o}"


@dataclass(frozen=True)
class Symlink:
    """A symbolic link, such as ``/bin`` → ``usr/bin``."""

    target: str
    to: str

    def describe(self) -> str:
        return f"symlink  {self.target} -> {self.to}"


@dataclass(frozen=True)
class File:
    """A small file that is made up, such as ``/etc/passwd``."""

    target: str
    content: str
    mode: int = 0o644

    def describe(self) -> str:
        return f"file     {self.target} ({len(self.content)} bytes)"


@dataclass(frozen=True)
class Bind:
    """A host path, recursively; ``readonly`` reaches every mount below it."""

    source: str
    target: str
    readonly: bool = True
    absent: Absent = Absent.FAIL
    follow: bool = False
    """Follow symlinks to the source: for the system's own, such as /etc/localtime. What belongs to
    the user was resolved when it was checked, and a link that appears since is refused."""

    def describe(self) -> str:
        return f"bind     {self.target} {'ro' if self.readonly else 'rw'} <- {self.source}"


@dataclass(frozen=True)
class Overlay:
    """A host directory below a layer in memory: writes work and vanish.

    The layer hides what ``hidden`` names (relative paths), whether it exists yet or not, and
    whatever is done to it on the host: a mount over a file goes when that file is replaced.
    """

    source: str
    target: str
    size: int
    inodes: int
    absent: Absent = Absent.FAIL
    hidden: tuple[str, ...] = ()
    readonly: bool = False

    def describe(self) -> str:
        mode = "ro" if self.readonly else f"{self.size} bytes"
        hides = f" less {', '.join(self.hidden)}" if self.hidden else ""
        return f"overlay  {self.target} ({mode}) <- {self.source}{hides}"


@dataclass(frozen=True)
class Tmpfs:
    """A file system in memory, bounded in bytes *and* inodes."""

    target: str
    size: int
    inodes: int
    mode: int = 0o755
    noexec: bool = False

    def describe(self) -> str:
        return f"tmpfs    {self.target} {self.mode:04o} ({self.size} bytes, {self.inodes} inodes)"


@dataclass(frozen=True)
class Proc:
    """A /proc of the own pid namespace."""

    target: str = "/proc"

    def describe(self) -> str:
        return f"proc     {self.target}"


@dataclass(frozen=True)
class Sysfs:
    """A read-only /sys of the own net namespace."""

    target: str = "/sys"

    def describe(self) -> str:
        return f"sysfs    {self.target} ro"


@dataclass(frozen=True)
class Devpts:
    """An own instance of pseudo terminals."""

    target: str = "/dev/pts"

    def describe(self) -> str:
        return f"devpts   {self.target}"


@dataclass(frozen=True)
class Device:
    """One device node of the host, verified by its numbers before it is bound."""

    target: str
    major: int
    minor: int

    def describe(self) -> str:
        return f"device   {self.target} ({self.major}:{self.minor})"


#: Is there before the first :class:`Mask` of a plan.
NULL: Final = Device("/dev/null", 1, 3)


@dataclass(frozen=True)
class Mask:
    """Hide what is there: a file behind /dev/null, a directory behind an empty one.

    A target that does not exist needs no mask.
    """

    target: str

    def describe(self) -> str:
        return f"mask     {self.target}"


@dataclass(frozen=True)
class ReadOnly:
    """Make a part of an own file system read-only, such as /proc/sys."""

    target: str

    def describe(self) -> str:
        return f"readonly {self.target}"


@dataclass(frozen=True)
class Seal:
    """Make an own file system read-only once it is complete; not what is mounted in it."""

    target: str

    def describe(self) -> str:
        return f"seal     {self.target}"


Operation = (
    Directory | Symlink | File | Bind | Overlay | Tmpfs | Proc | Sysfs | Devpts | Device | Mask
    | ReadOnly | Seal
)  # fmt: skip


def describe_plan(plan: tuple[Operation, ...]) -> str:
    """The whole plan for ``--dry-run`` and for the debug log, a line an operation."""
    return "\n".join(operation.describe() for operation in plan)
