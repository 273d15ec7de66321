"""The walls of a running sandbox as they are seen from outside, by its user, without privilege.

:func:`observe` reads ``/proc`` of the sandbox's processes: nothing of what was configured, and
nothing that they say of themselves but the ABI of Landlock, which Linux shows nowhere. A wall that
cannot be seen is not one that stands: it is listed as unknown.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .engine.namespaces import KINDS
from .errors import ProtocolError
from .syscalls import CapabilityBit

_SETS: Final = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
#: Interfaces of a sandbox; there is no other way out of it.
_INTERFACES: Final = {"lo", "eth0"}
#: What /proc/PID/fd says of a descriptor that belongs to no file system.
_ANONYMOUS: Final = ("socket:", "pipe:", "anon_inode:", "/memfd:")


@dataclass(frozen=True)
class Wall:
    """One wall of one process."""

    process: str
    """``kernel``, ``init`` or ``supervisor``."""
    name: str
    stands: bool | None
    """``None``: nothing that could be seen tells."""
    seen: str
    """What was read, for a person."""


@dataclass(frozen=True)
class Observation:
    """All that was seen of one sandbox at one moment."""

    kernel_pid: int
    init_pid: int
    supervisor_pid: int
    walls: tuple[Wall, ...]

    def missing(self) -> tuple[Wall, ...]:
        """Those that should stand and do not."""
        return tuple(wall for wall in self.walls if wall.stands is False)

    def wall(self, process: str, name: str) -> Wall:
        """The one of that name; KeyError: there is none."""
        for wall in self.walls:
            if (wall.process, wall.name) == (process, name):
                return wall
        raise KeyError(f"{process}: {name}")

    def table(self) -> str:
        """A line a wall: whether it stands, whose it is, its name, what was seen."""
        words = {True: "stands", False: "MISSING", None: "unknown"}
        rows = [(words[w.stands], w.process, w.name, w.seen) for w in self.walls]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)),
                       row[3]])
            for row in rows
        )  # fmt: skip


def observe(
    supervisor_pid: int, init_pid: int, landlock_abi: int, proc: Path = Path("/proc")
) -> Observation:
    """Called by whoever runs a sandbox, with what its ``Started`` message said.

    Raises:
        ProtocolError: the sandbox is not there (any more), or is not this user's.
    """
    try:
        children = (proc / f"{init_pid}/task/{init_pid}/children").read_text().split()
        if not children:
            raise ProtocolError(f"the sandbox of process {init_pid} holds no kernel")
        kernel = _Seen("kernel", int(children[0]), proc)
        init = _Seen("init", init_pid, proc)
        supervisor = _Seen("supervisor", supervisor_pid, proc)
        walls = [
            *_ids(kernel), *_namespaces(kernel), *_rights(kernel), *_landlock(landlock_abi),
            *_mounts(kernel), *_descriptors(kernel), *_interfaces(kernel), *_cgroups(kernel),
            *_limits(kernel),
            *_rights(init), *_hidden(init), *_namespaces(init, ("pid", "mnt", "user")),
            *_rights(supervisor, may_kill=True), *_hidden(supervisor), *_core(supervisor),
            *_namespaces(supervisor, ("user", "net")),
        ]  # fmt: skip
    except OSError as error:
        raise ProtocolError(
            f"the sandbox of process {init_pid} cannot be looked at",
            cause=error.strerror,
            path=str(error.filename),
        ) from error
    return Observation(kernel.pid, init_pid, supervisor_pid, tuple(walls))


class _Seen:
    """One process, as files of ``/proc``."""

    def __init__(self, name: str, pid: int, proc: Path) -> None:
        self.name, self.pid, self.proc = name, pid, proc
        self.here = proc / str(pid)
        lines = (line.split(":", 1) for line in self.read("status").splitlines() if ":" in line)
        self.status = {key: text.strip() for key, text in lines}

    def read(self, name: str) -> str:
        return (self.here / name).read_text(errors="replace")

    def wall(self, name: str, stands: bool | None, seen: str) -> Wall:
        return Wall(self.name, name, stands, seen)


# -- one subject each ----------------------------------------------------------------------------


def _ids(seen: _Seen) -> Iterator[Wall]:
    """Host id 0 is in no map."""
    for name in ("uid_map", "gid_map"):
        lines = [tuple(map(int, line.split())) for line in seen.read(name).splitlines()]
        stands = bool(lines) and all(outside > 0 for _, outside, _ in lines)
        text = ", ".join(f"{inside} is {outside} ({count})" for inside, outside, count in lines)
        yield seen.wall(name, stands, text)


def _namespaces(seen: _Seen, kinds: Sequence[str] = KINDS) -> Iterator[Wall]:
    """Each kind is not that of the observer."""
    for kind in kinds:
        ours = os.readlink(seen.proc / "self" / "ns" / kind)
        try:
            theirs = os.readlink(seen.here / "ns" / kind)
        except PermissionError:
            yield seen.wall(f"{kind} namespace", None, "not for us to see")
            continue
        yield seen.wall(f"{kind} namespace", theirs != ours, theirs)


def _rights(seen: _Seen, *, may_kill: bool = False) -> Iterator[Wall]:
    sets = {name: int(seen.status[name], 16) for name in _SETS}
    allowed = 1 << int(CapabilityBit.KILL) if may_kill else 0
    kept = {name: allowed if name in ("CapPrm", "CapEff") else 0 for name in _SETS}
    left = ", ".join(f"{name} {value:#x}" for name, value in sets.items() if value)
    stands = not any(value & ~kept[name] for name, value in sets.items())
    yield seen.wall("capabilities", stands, left or "all five sets are empty")
    flag = seen.status["NoNewPrivs"]
    yield seen.wall("no_new_privs", flag == "1", flag)
    mode, filters = seen.status["Seccomp"], seen.status.get("Seccomp_filters")
    text = f"mode {mode}" + (f", {filters} of them" if filters else "")
    yield seen.wall("seccomp filter", mode == "2", text)


def _landlock(abi: int) -> Iterator[Wall]:
    text = f"ABI {abi}, as its init said" if abi else "this Linux has none, as its init said"
    yield Wall("kernel", "Landlock", abi > 0 or None, text)


def _mounts(seen: _Seen) -> Iterator[Wall]:
    """``mountinfo``: the root is read-only, and nothing mounted makes a program set-uid."""
    options = {}
    for line in seen.read("mountinfo").splitlines():
        fields = line.split()
        options[fields[4]] = set(fields[5].split(","))
    yield seen.wall(
        "read-only root", "ro" in options.get("/", ()), ",".join(sorted(options.get("/", ())))
    )
    lacking = sorted(point for point, flags in options.items() if "nosuid" not in flags)
    text = f"all of {len(options)} mounts" if not lacking else f"not {', '.join(lacking)}"
    yield seen.wall("nosuid", bool(options) and not lacking, text)
    writable = sorted(point for point, flags in options.items() if "rw" in flags)
    yield seen.wall("writable mounts", None, ", ".join(writable) or "none")


def _descriptors(seen: _Seen) -> Iterator[Wall]:
    """Each open file lies on a mount of the sandbox: none of the host's came in."""
    mounts = {line.split()[0] for line in seen.read("mountinfo").splitlines()}
    foreign, count = [], 0
    for entry in os.scandir(seen.here / "fd"):
        try:
            target = os.readlink(entry.path)
            info = seen.read(f"fdinfo/{entry.name}")
        except FileNotFoundError:
            continue  # closed meanwhile
        count += 1
        mount = next(v.split()[1] for v in info.splitlines() if v.startswith("mnt_id:"))
        if not target.startswith(_ANONYMOUS) and mount not in mounts:
            foreign.append(f"{entry.name} is {target}")
    text = ", ".join(foreign) or f"{count} open, no file of the host"
    yield seen.wall("descriptors", not foreign, text)


def _interfaces(seen: _Seen) -> Iterator[Wall]:
    names = {line.split(":")[0].strip() for line in seen.read("net/dev").splitlines()[2:]}
    yield seen.wall("network", names <= _INTERFACES, ", ".join(sorted(names)))


def _cgroups(seen: _Seen) -> Iterator[Wall]:
    """In a directory of its own, by controller; a kernel without caps is where its server is."""
    own = []
    for line in seen.read("cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if path.rpartition("/")[2].startswith("kernel-"):
            own.append(f"{controllers or 'v2'}:{path}")
    yield seen.wall("cgroup", True if own else None, ", ".join(own) or "none of its own")


def _limits(seen: _Seen) -> Iterator[Wall]:
    yield from _core(seen)
    limits = _table_of_limits(seen)
    names = ("locked memory", "msgqueue size", "pending signals", "open files", "realtime priority")
    found = [limits.get(f"Max {name}", "?") for name in names]
    stands = all(text.isdecimal() for text in found)
    text = ", ".join(f"{name} {value}" for name, value in zip(names, found, strict=True))
    yield seen.wall("limits", stands, text)
    yield seen.wall("oom_score_adj", None, seen.read("oom_score_adj").strip())


def _core(seen: _Seen) -> Iterator[Wall]:
    """A dump goes neither into a file nor into a program: see ``process.forbid_core_files``."""
    limit = _table_of_limits(seen).get("Max core file size", "?")
    yield seen.wall("core limit", limit in ("0", "1"), limit)


def _table_of_limits(seen: _Seen) -> dict[str, str]:
    """Name → hard limit."""
    lines = seen.read("limits").splitlines()[1:]
    return {line[:26].strip(): line[26:].split()[1] for line in lines}


def _hidden(seen: _Seen) -> Iterator[Wall]:
    """Linux gives the files of a process that is not dumpable to root."""
    owner = (seen.here / "environ").stat().st_uid
    uid = int(seen.status["Uid"].split()[0])
    stands = None if uid == 0 else owner != uid
    yield seen.wall("not dumpable", stands, f"its files belong to uid {owner}")
