"""uid_map and gid_map: planned as data, then written.

Three identities, see :class:`sandbox_kernel.spec.Identity`. An ordinary user may map one id, its
own, without help; every other map goes through the setuid helpers ``newuidmap`` and ``newgidmap``,
which hold it against ``/etc/subuid`` and ``/etc/subgid``. Run by root no map ever holds host id 0.

A map of its own id alone a process writes itself. Any other is written by a *mapper*: a child that
stays in the parent user namespace, because a process that has just unshared its user namespace has
no right in the old one any more.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import IdMapError, describe_errno
from ..spec import Identity

#: The id inside that an isolated kernel has.
ISOLATED_ID: Final = 1000

_HELPER_REMEDY: Final = "as root: apt-get install uidmap, or dnf install shadow-utils"


@dataclass(frozen=True)
class IdMapping:
    """One line of a map: ``count`` ids from ``inside`` on are ``outside`` on the host."""

    inside: int
    outside: int
    count: int

    def line(self) -> str:
        return f"{self.inside} {self.outside} {self.count}"


@dataclass(frozen=True)
class SubordinateRange:
    """One line of /etc/subuid or /etc/subgid: host ids ``start`` … ``start + count - 1``."""

    start: int
    count: int


@dataclass(frozen=True)
class IdPlan:
    """Both maps, who the kernel is inside, and by which way the maps are written."""

    uid_map: tuple[IdMapping, ...]
    gid_map: tuple[IdMapping, ...]
    uid: int
    gid: int
    helper: bool
    """Through newuidmap and newgidmap."""
    privileged: bool
    """The mapper is root and writes the files itself."""

    @property
    def denies_setgroups(self) -> bool:
        """A one-id map without help needs ``setgroups`` denied; nobody else may deny it."""
        return not self.helper and not self.privileged

    def outside_uid(self) -> int:
        """The host's id of the kernel."""
        return _outside(self.uid_map, self.uid)

    def outside_gid(self) -> int:
        """The host's group id of the kernel."""
        return _outside(self.gid_map, self.gid)


def _outside(mappings: tuple[IdMapping, ...], inside: int) -> int:
    for m in mappings:
        if m.inside <= inside < m.inside + m.count:
            return m.outside + inside - m.inside
    raise IdMapError(f"id {inside} is not mapped")


def subordinate_ranges(path: Path, user: str, uid: int) -> tuple[SubordinateRange, ...]:
    """The ranges that ``path`` (/etc/subuid or /etc/subgid) gives to ``user`` or ``uid``."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    ranges = []
    for line in text.splitlines():
        fields = line.strip().split(":")
        if len(fields) != 3 or fields[0] not in (user, str(uid)):
            continue
        if fields[1].isdecimal() and fields[2].isdecimal() and int(fields[2]) > 0:
            ranges.append(SubordinateRange(int(fields[1]), int(fields[2])))
    return tuple(ranges)


def plan(
    identity: Identity,
    id_range: int,
    *,
    uid: int,
    gid: int,
    user: str,
    subuid: Path = Path("/etc/subuid"),
    subgid: Path = Path("/etc/subgid"),
) -> IdPlan:
    """Decide the maps for the user ``uid``/``gid`` named ``user``. Reads the subordinate ranges.

    Raises:
        IdMapError: the identity needs subordinate ids and there are none, or too few.
    """
    privileged = uid == 0
    fixed = {Identity.ROOT: 0, Identity.ISOLATED: ISOLATED_ID}
    own_inside, group_inside = fixed.get(identity, uid), fixed.get(identity, gid)
    subordinate_self = identity is Identity.ISOLATED or privileged
    needed = id_range + (1 if subordinate_self else 0)
    maps = []
    for host, inside, path in ((uid, own_inside, subuid), (gid, group_inside, subgid)):
        spare = _spare_ids(path, user, uid, needed, identity, privileged)
        own = spare.pop(0) if subordinate_self else host
        maps.append(_map(inside, own, spare))
    return IdPlan(
        uid_map=maps[0],
        gid_map=maps[1],
        uid=own_inside,
        gid=group_inside,
        helper=needed > 0 and not privileged,
        privileged=privileged,
    )


def _spare_ids(
    path: Path, user: str, uid: int, needed: int, identity: Identity, privileged: bool
) -> list[int]:
    """``needed`` host ids from the user's subordinate ranges, never id 0."""
    if not needed:
        return []
    found: list[int] = []
    last = 1
    for block in sorted(subordinate_ranges(path, user, uid), key=lambda block: block.start):
        first = max(block.start, last)  # a range may be there twice, under name and uid
        last = max(block.start + block.count, last)
        found += range(first, min(last, first + needed - len(found)))
        if len(found) == needed:
            return found
    why = (
        "run by root, a kernel never gets host id 0 and needs a subordinate id"
        if privileged
        else f"identity {identity.value!r} with id_range needs {needed} subordinate ids"
    )
    option = "--add-subuids" if path.name == "subuid" else "--add-subgids"
    raise IdMapError(
        f"{path} gives user {user!r} {len(found)} of {needed} ids",
        cause=why,
        remedy=f"as root: usermod {option} 524288-589823 {user} (or another range that is free)",
        path=str(path),
    )


def _map(inside: int, own: int, spare: list[int]) -> tuple[IdMapping, ...]:
    """``own`` at ``inside``, the spare host ids at 0, 1, 2 … around it, in few lines."""
    pairs = [(inside, own)]
    next_inside = 0
    for host in spare:
        if next_inside == inside:
            next_inside += 1
        pairs.append((next_inside, host))
        next_inside += 1
    lines: list[IdMapping] = []
    for i, o in sorted(pairs):
        last = lines[-1] if lines else None
        if last and i == last.inside + last.count and o == last.outside + last.count:
            lines[-1] = IdMapping(last.inside, last.outside, last.count + 1)
        else:
            lines.append(IdMapping(i, o, 1))
    return tuple(lines)


def check_helper(plan_: IdPlan) -> None:
    """Before anything is started: are the helpers that the plan needs installed?"""
    if plan_.helper:
        for name in ("newuidmap", "newgidmap"):
            _find_helper(name)


def _find_helper(name: str) -> str:
    path = shutil.which(name, path="/usr/bin:/bin:/usr/local/bin:/usr/sbin:/sbin")
    if path is None:
        raise IdMapError(
            f"{name} is not installed",
            cause="mapping subordinate ids needs it",
            remedy=_HELPER_REMEDY,
        )
    return path


def write(plan_: IdPlan, pid: int) -> None:
    """Write the maps of process ``pid``: called by the mapper, or by ``pid`` for its own id.

    ``pid`` has unshared its user namespace and waits, so its number cannot be given to another.
    Everything goes through a descriptor of its ``/proc`` directory all the same.
    """
    directory = os.open(f"/proc/{pid}", os.O_DIRECTORY | os.O_RDONLY | os.O_CLOEXEC)
    try:
        if plan_.helper:
            _run_helper("newgidmap", pid, plan_.gid_map)
            _run_helper("newuidmap", pid, plan_.uid_map)
            return
        if plan_.denies_setgroups:
            _write_file(directory, "setgroups", "deny")
        _write_file(directory, "gid_map", "\n".join(m.line() for m in plan_.gid_map))
        _write_file(directory, "uid_map", "\n".join(m.line() for m in plan_.uid_map))
    finally:
        os.close(directory)


def _write_file(directory: int, name: str, text: str) -> None:
    try:
        fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise IdMapError(
            f"{name} did not take {text!r}",
            cause=describe_errno(error.errno or 0) + _apparmor_hint(error.errno or 0),
        ) from error


def _apparmor_hint(number: int) -> str:
    """On Ubuntu 24.04 the unshare succeeds and the next step is refused."""
    import errno

    path = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
    try:
        restricted = path.read_text().strip() == "1"
    except OSError:
        return ""
    if number in (errno.EPERM, errno.EACCES) and restricted:
        return f"; {path} is 1, so AppArmor restricts user namespaces of unconfined programs"
    return ""


def _run_helper(name: str, pid: int, mappings: tuple[IdMapping, ...]) -> None:
    numbers = [str(n) for m in mappings for n in (m.inside, m.outside, m.count)]
    command = [_find_helper(name), str(pid), *numbers]
    result = subprocess.run(
        command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}, check=False
    )
    if result.returncode != 0:
        said = result.stderr.strip().splitlines()
        raise IdMapError(
            f"{name} refused the map {' '.join(numbers)}",
            cause=said[-1] if said else f"it ended with status {result.returncode}",
        )
