"""What every back end speaks: plain data, and the few things done to a cgroup file system.

Two words are kept apart all through this package. A *delegated directory* is made by an
administrator, by the Hub or by systemd, belongs to the user and survives the kernel. A *leaf* is
made by :func:`~sandbox_kernel.engine.cgroups.create` below it, one for each hierarchy, holds the
processes of one kernel and is removed with it.
"""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from ...errors import CgroupError, describe_errno
from ...spec import Caps

#: The controller that holds each cap; the keys are those of :class:`~sandbox_kernel.spec.Caps`.
CONTROLLER_OF: Final = {"memory": "memory", "cpus": "cpu", "pids": "pids"}
#: Used where they are delegated, never required: they account, and they help to kill.
OPTIONAL_CONTROLLERS: Final = ("memory", "pids", "cpuacct", "freezer")
#: Bytes.
PAGE: Final = os.sysconf("SC_PAGE_SIZE")
#: Microseconds. The quota of the cap ``cpus`` is counted in it on v1 and v2.
CPU_PERIOD: Final = 100_000
#: The variable through which a caller gets the ``hint``; named here for the messages only.
HINT_VARIABLE: Final = "SANDBOX_KERNEL_CGROUP"


class Version(enum.Enum):
    """Which interface a hierarchy has."""

    V1 = "v1"
    V2 = "v2"


class Source(enum.Enum):
    """How a delegated directory was found, in the order in which they are tried."""

    HINT = "hint"
    """The caller named it, by :data:`HINT_VARIABLE`."""
    OWN = "own"
    """It is the cgroup of this process."""
    CONVENTIONAL = "conventional"
    """``<mount>/sandbox-kernel/u<uid>``."""


@dataclass(frozen=True)
class Place:
    """One controller is delegated to this user in ``directory``."""

    controller: str
    version: Version
    directory: Path
    source: Source


@dataclass(frozen=True)
class Leaf:
    """One directory of one kernel, in one hierarchy, and the controllers that act there."""

    version: Version
    path: Path
    controllers: tuple[str, ...]


@dataclass(frozen=True)
class Setting:
    """One value for one file of a leaf. ``accepts`` judges what the file says afterwards."""

    file: str
    value: str
    accepts: Callable[[str], bool]


@dataclass(frozen=True)
class CgroupUsage:
    """What one kernel uses and used. ``None``: no controller accounts it here."""

    memory_current: int | None = None
    """Bytes, page cache and tmpfs included."""
    memory_peak: int | None = None
    """Bytes."""
    memory_failcnt: int | None = None
    """How often the kernel's own memory cap was reached; most of them end in reclaim, not in a
    kill."""
    oom_kills: int | None = None
    """Processes of this cgroup that the OOM killer ended."""
    pids_current: int | None = None
    """Tasks: processes and threads, zombies that nobody has reaped included."""
    pids_max_events: int | None = None
    """Forks and clones that were refused."""
    cpu_usec: int | None = None
    """Microseconds of user and system time, of ended processes too."""


@dataclass(frozen=True)
class CgroupEvents:
    """The counters that explain a death: compare a snapshot with an earlier one.

    The kernel counts an OOM kill where the victim was, not where the limit was. So
    ``memory_limit`` and ``memory_limit_above`` say which cap it was: the kernel's or the user's.
    """

    oom_kill: int | None = None
    memory_limit: int | None = None
    """Times that the limit of the leaf was reached."""
    memory_limit_above: int | None = None
    """Times that the limit of the delegated directory was reached."""
    pids_limit: int | None = None


class Files:
    """What is done to a cgroup file system. A unit test passes one that refuses the nth call.

    Every method raises a plain :class:`OSError`; the callers know what it means.
    """

    def read(self, path: Path) -> str | None:
        """The text of a file, or ``None`` if it is not there (any more)."""
        try:
            return path.read_text()
        except OSError as error:
            # ENODEV: the cgroup was removed between open and read; EOPNOTSUPP: not in this type.
            if error.errno in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP, errno.ENOTDIR):
                return None
            raise

    def write(self, path: Path, value: str) -> None:
        """One ``write()``: the kernel parses each call as a whole. Never creates the file."""
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)

    def mkdir(self, path: Path) -> None:
        os.mkdir(path, 0o755)

    def rmdir(self, path: Path) -> None:
        os.rmdir(path)

    def writable(self, path: Path) -> bool:
        """Whether the effective user of this process may write the file or directory."""
        return os.access(path, os.W_OK, effective_ids=True)

    def delegated_by_systemd(self, path: Path) -> bool:
        """Whether systemd promised (``Delegate=yes``) to keep its hands off this directory."""
        try:
            return os.getxattr(path, "user.delegate") == b"1"
        except OSError:
            return False

    def pids(self, directory: Path) -> list[int]:
        """Processes in the directory itself; ``[]`` if it is gone."""
        text = self.read(directory / "cgroup.procs") or ""
        # 0 stands for a process that this pid namespace cannot see.
        return [pid for pid in map(int, text.split()) if pid > 0]

    def children(self, directory: Path) -> list[Path]:
        """Directories directly below; ``[]`` if it is gone or not for us to look into."""
        try:
            with os.scandir(directory) as entries:
                return [Path(e.path) for e in entries if e.is_dir(follow_symlinks=False)]
        except (FileNotFoundError, PermissionError):
            return []


FILES: Final = Files()


class Backend(Protocol):
    """One cgroup version. Stateless: everything it knows is in the leaf."""

    def prepare(self, place: Place, controllers: tuple[str, ...], files: Files) -> None:
        """Make the controllers reach the children of a delegated directory."""

    def settings(self, leaf: Leaf, caps: Caps, files: Files) -> tuple[Setting, ...]:
        """What to write for the caps whose controller acts in this leaf, in this order."""

    def refusal(self, leaf: Leaf, setting: Setting, error: OSError, files: Files) -> CgroupError:
        """Why the kernel did not take a setting, as far as it can be seen."""

    def bounds_swap(self, leaf: Leaf, files: Files) -> bool:
        """Whether the memory cap of this leaf holds swap too."""

    def usage(self, leaf: Leaf, files: Files) -> CgroupUsage:
        """What this leaf accounts; the other fields are ``None``."""

    def events(self, leaf: Leaf, files: Files) -> CgroupEvents:
        """What this leaf counts; the other fields are ``None``."""


# -- small pieces that both back ends use -------------------------------------------------------


def same(value: str) -> Callable[[str], bool]:
    """Accepts exactly this text."""
    return lambda text: text.split() == value.split()


def same_pages(size: int) -> Callable[[str], bool]:
    """Accepts what the kernel makes of a size in bytes: rounded down to whole pages, not more."""
    largest = (2**63 - 1) // PAGE * PAGE

    def accepts(text: str) -> bool:
        word = text.strip()
        read = largest if word == "max" else int(word)
        return size - PAGE < read <= size

    return accepts


def cpu_quota(cpus: float) -> int:
    """Microseconds in each :data:`CPU_PERIOD`."""
    return round(cpus * CPU_PERIOD)


def number(text: str | None) -> int | None:
    """The only number of a file."""
    return int(text) if text is not None else None


def keyed(text: str | None, key: str) -> int | None:
    """The number that follows ``key`` in a file of ``key number`` lines."""
    for line in (text or "").splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return None


def plain_refusal(leaf: Leaf, setting: Setting, error: OSError) -> CgroupError:
    """The refusal of which nothing more than the errno is known."""
    path = leaf.path / setting.file
    return CgroupError(
        f"{path} did not take {setting.value!r}",
        cause=describe_errno(error.errno or 0),
        path=str(path),
    )
