"""What every back end speaks: plain data, and the few things done to a cgroup file system.

Two words are kept apart all through this package. A *delegated directory* is made by an
administrator, by the Hub or by systemd, belongs to the user and survives the kernel. A *leaf* is
made by :func:`~sandbox_kernel.engine.cgroups.create` below it, one for each hierarchy, holds the
processes of one kernel and is removed with it.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final, Protocol

from ...caps import parse_numbers
from ...errors import CgroupError, describe_errno
from ...spec import Caps

#: The controller that holds each cap; the keys are those of :class:`~sandbox_kernel.spec.Caps`.
CONTROLLER_OF: Final = {
    "memory": "memory",
    "memory_swap": "memory",
    "memory_high": "memory",
    "memory_low": "memory",
    "cpus": "cpu",
    "cpu_weight": "cpu",
    "cpu_rt": "cpu",
    "cpuset_cpus": "cpuset",
    "cpuset_mems": "cpuset",
    "pids": "pids",
    "io": "io",
    "hugetlb": "hugetlb",
    "net_classid": "net_cls",
    "net_prio": "net_prio",
    "devices": "devices",
}
#: Controllers have the names of v2; where v1 has another one, this is it.
V1_NAMES: Final = {"io": "blkio"}
#: There is no more of these than v1 had.
V1_ONLY: Final = frozenset({"net_cls", "net_prio", "devices", "cpuacct", "freezer"})
#: Used where they are delegated, never required: they account, and they help to kill and to pause.
OPTIONAL_CONTROLLERS: Final = ("memory", "pids", "cpuacct", "freezer", "io", "perf_event")
_OCTAL: Final = re.compile(r"\\([0-7]{3})")
#: Bytes.
PAGE: Final = os.sysconf("SC_PAGE_SIZE")
#: Microseconds. The quota of the cap ``cpus`` is counted in it on v1 and v2.
CPU_PERIOD: Final = 100_000
#: Microseconds. That of the cap ``cpu_rt``.
RT_PERIOD: Final = 1_000_000
#: The variable through which a caller gets the ``hint``; named here for the messages only.
HINT_VARIABLE: Final = "SANDBOX_KERNEL_CGROUP"
#: The unit that all kernels of a user share where his systemd delegates, and who is where in it.
SCOPE_UNIT: Final = "sandbox-kernel.scope"
SCOPE_LEAF: Final = "supervisors"


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
    SCOPE = "scope"
    """A scope that the user's systemd made with ``Delegate=yes``."""
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
    """One value for one file of a leaf. ``accepts`` judges what is read afterwards."""

    file: str
    value: str
    accepts: Callable[[str], bool]
    shown_in: str | None = None
    """The file that shows what is in force, if it is another one."""
    neutral: str | None = None
    """Where a file has a line for each device: what is written behind the first word of ``value``
    to have none again. ``None``: the file has one value."""


@dataclass(frozen=True)
class IoUsage:
    """What went through one block device."""

    device: str
    """``major:minor``."""
    read_bytes: int = 0
    write_bytes: int = 0
    read_operations: int = 0
    write_operations: int = 0


@dataclass(frozen=True)
class Pressure:
    """How long tasks had to wait for one resource, in microseconds since the cgroup was made."""

    resource: str
    """``cpu``, ``memory`` or ``io``."""
    some_usec: int
    """At least one task waited."""
    full_usec: int | None
    """All tasks that were not idle waited at once."""
    some_percent: float
    """Of the last ten seconds."""


@dataclass(frozen=True)
class CgroupUsage:
    """What one kernel uses and used. ``None``: no controller accounts it here."""

    memory_current: int | None = None
    """Bytes, page cache and tmpfs included."""
    memory_peak: int | None = None
    """Bytes."""
    memory_swap: int | None = None
    """Bytes that lie in swap."""
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
    cpu_user_usec: int | None = None
    cpu_system_usec: int | None = None
    cpu_throttled_usec: int | None = None
    """Microseconds for which the cap ``cpus`` let it wait, summed over CPUs."""
    cpu_throttled_periods: int | None = None
    """Periods of :data:`CPU_PERIOD` in which it had to."""
    io: tuple[IoUsage, ...] | None = None
    """By device; a device that nothing went through is not in it."""
    pressure: tuple[Pressure, ...] | None = None
    """``None`` on v1, and where Linux was built or booted without PSI."""


@dataclass(frozen=True)
class CgroupEvents:
    """The counters that explain a death: see :meth:`since`.

    The kernel counts an OOM kill where the victim was, not where the limit was. So
    ``memory_limit`` and ``memory_limit_above`` say which cap it was: the kernel's or the user's.
    """

    oom_kill: int | None = None
    memory_limit: int | None = None
    """Times that the limit of the leaf was reached."""
    memory_limit_above: int | None = None
    """Times that the limit of the directory above the leaf was reached."""
    memory_high: int | None = None
    """Times that it was slowed down for the cap ``memory_high``."""
    oom: int | None = None
    """Times that nothing could be reclaimed below the limit of the leaf, so that somebody had to
    be killed. On v1 nothing counts it: only who watches, see :class:`.watch.EventWatch`."""
    oom_above: int | None = None
    """The same of the directory above."""
    pids_limit: int | None = None

    def since(self, earlier: CgroupEvents) -> CgroupEvents:
        """What came after ``earlier``: the directory above has counted for other kernels too."""
        counts: dict[str, int | None] = {}
        for name in (item.name for item in fields(self)):
            now, before = getattr(self, name), getattr(earlier, name)
            counts[name] = None if now is None else max(now - (before or 0), 0)
        return CgroupEvents(**counts)


class Files:
    """What is done to a cgroup file system. A unit test passes one that refuses the nth call.

    ``sys`` is where sysfs is mounted: what a block device is. Every method raises a plain
    :class:`OSError`; the callers know what it means.
    """

    sys: Path = Path("/sys")

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
        """Readable for all whatever the umask: root's supervisor is not root when it looks why a
        kernel died."""
        os.mkdir(path, 0o755)
        path.chmod(0o755)

    def rmdir(self, path: Path) -> None:
        os.rmdir(path)

    def writable(self, path: Path) -> bool:
        """Whether the effective user of this process may write the file or directory."""
        return os.access(path, os.W_OK, effective_ids=True)

    @contextlib.contextmanager
    def locked(self, directory: Path) -> Iterator[None]:
        """Alone among those who make or remove a user's cgroup below ``directory``."""
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def device_of(self, path: Path) -> tuple[int, int, bool]:
        """(major, minor, is a block device node itself) of what ``path`` is or lies on."""
        found = os.stat(path)
        is_node = stat.S_ISBLK(found.st_mode)
        number = found.st_rdev if is_node else found.st_dev
        return os.major(number), os.minor(number), is_node

    def privileged(self) -> bool:
        """Whether this process may write ``devices.*`` of v1: CAP_SYS_ADMIN of the host."""
        status = Path("/proc/self/status").read_text()
        effective = next(v for v in status.splitlines() if v.startswith("CapEff:"))
        maps = Path("/proc/self/uid_map").read_text().split()
        return bool(int(effective.split()[1], 16) >> 21 & 1) and maps == ["0", "0", str(2**32 - 1)]

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

    def lacks(self, leaf: Leaf, caps: Caps, files: Files) -> dict[str, CgroupError]:
        """The caps, by key, that this leaf cannot hold though their controller acts in it."""

    def settings(self, leaf: Leaf, caps: Caps, files: Files) -> tuple[Setting, ...]:
        """What to write for the caps whose controller acts in this leaf, in this order.

        ``caps.io`` names devices by ``major:minor`` here.
        """

    def freeze(self, leaf: Leaf, frozen: bool, files: Files, deadline: float) -> bool:
        """Stop or continue all that is in the leaf; whether that is what it shows in time.

        Raises:
            OSError: the freezer refused.
        """

    def refusal(self, leaf: Leaf, setting: Setting, error: OSError, files: Files) -> CgroupError:
        """Why the kernel did not take a setting, as far as it can be seen."""

    def bounds_swap(self, leaf: Leaf, files: Files) -> bool:
        """Whether the memory cap of this leaf holds swap too."""

    def usage(self, leaf: Leaf, files: Files) -> CgroupUsage:
        """What this leaf accounts; the other fields are ``None``."""

    def events(self, leaf: Leaf, files: Files) -> CgroupEvents:
        """What this leaf counts; the other fields are ``None``."""


# -- small pieces that both back ends use -------------------------------------------------------


def unescape(text: str) -> str:
    """A path as mountinfo spells it: blanks and backslashes are octal there."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def by_directory(places: Iterable[Place]) -> dict[Path, list[Place]]:
    """Controllers that are mounted together, or on v2, share one directory."""
    grouped: dict[Path, list[Place]] = {}
    for place in places:
        grouped.setdefault(place.directory, []).append(place)
    return grouped


def could_not_be_made(path: Path, error: OSError) -> CgroupError:
    """The refusal of a ``mkdir``."""
    cause = describe_errno(error.errno or 0)
    return CgroupError(f"cgroup {path} could not be made", cause=cause, path=str(path))


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


def has_line(*words: str) -> Callable[[str], bool]:
    """Accepts text with a line that begins with the first word and has the others too."""

    def accepts(text: str) -> bool:
        lines = (line.split() for line in text.splitlines())
        return any(v and v[0] == words[0] and set(words) <= set(v) for v in lines)

    return accepts


def same_numbers(value: str) -> Callable[[str], bool]:
    """Accepts the same set in Linux' list format."""
    return lambda text: parse_numbers(text.strip()) == parse_numbers(value)


def of_pages(size: int, page: int) -> Callable[[str], bool]:
    """As :func:`same_pages`, of pages of ``page`` bytes."""
    return lambda text: size - page < int(text) <= size


def page_size(name: str) -> int:
    """Bytes of the huge page that Linux calls ``2MB``."""
    return int(name[:-2]) * {"K": 2**10, "M": 2**20, "G": 2**30}[name[-2]]


def cpu_quota(cpus: float) -> int:
    """Microseconds in each :data:`CPU_PERIOD`."""
    return round(cpus * CPU_PERIOD)


def hugetlb_settings(path: Path, caps: Caps, suffix: str) -> Iterator[Setting]:
    """``suffix`` is what the version calls the file of a limit."""
    for size, limit in caps.hugetlb:
        accepts = of_pages(limit, page_size(size))
        # First what is reserved: there a process gets an error, at the other one it is killed.
        for name in (f"hugetlb.{size}.rsvd.{suffix}", f"hugetlb.{size}.{suffix}"):
            if (path / name).exists():
                yield Setting(name, str(limit), accepts)


def lacks_hugetlb(leaf: Leaf, caps: Caps, suffix: str) -> dict[str, CgroupError]:
    """A size of page that the machine has not."""
    for size, _ in caps.hugetlb if "hugetlb" in leaf.controllers else ():
        if not (leaf.path / f"hugetlb.{size}.{suffix}").exists():
            return {"hugetlb": unsupported(leaf, "hugetlb", f"there are no huge pages of {size}")}
    return {}


def unaccounted_swap(leaf: Leaf) -> CgroupError:
    """Why ``memory_swap`` cannot be held there."""
    cause = "this Linux kernel does not account swap"
    return unsupported(leaf, "memory_swap", cause, "boot with swapaccount=1")


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


def fields_of(text: str | None) -> dict[str, dict[str, str]]:
    """``{first word: {key: value}}`` of lines like ``8:0 rbytes=1 wbytes=2``."""
    found: dict[str, dict[str, str]] = {}
    for line in (text or "").splitlines():
        first, *pairs = line.split() or [""]
        found[first] = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    return found


def unsupported(leaf: Leaf, cap: str, cause: str, remedy: str | None = None) -> CgroupError:
    """The controller is there, and the cap is beyond it."""
    return CgroupError(
        f"the cap {cap} cannot be held under {leaf.path.parent}",
        cause=cause,
        remedy=remedy,
        path=str(leaf.path.parent),
    )
