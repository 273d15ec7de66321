"""Namespaces: user, mount, pid, net, ipc, uts, cgroup, time.

The user namespace comes alone and first: what is unshared with it in one call can belong to the
wrong owner. Everything else is unshared from inside it, so that it owns them.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Final

from ..errors import NamespaceError, describe_errno
from ..syscalls import CloneFlag, SyscallError, sethostname, unshare

#: Everything that the stage unshares for the container, in one call; the init does the rest.
CONTAINER: Final = (
    CloneFlag.NEWNS
    | CloneFlag.NEWPID
    | CloneFlag.NEWNET
    | CloneFlag.NEWIPC
    | CloneFlag.NEWUTS
    | CloneFlag.NEWTIME
)

#: ``/proc/PID/ns`` entry of each namespace that a sandboxed kernel has for itself.
KINDS: Final = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")

_SYSCTL: Final = Path("/proc/sys")
_LIMITS: Final = {
    CloneFlag.NEWUSER: "user/max_user_namespaces",
    CloneFlag.NEWNET: "user/max_net_namespaces",
    CloneFlag.NEWNS: "user/max_mnt_namespaces",
    CloneFlag.NEWPID: "user/max_pid_namespaces",
    CloneFlag.NEWIPC: "user/max_ipc_namespaces",
    CloneFlag.NEWUTS: "user/max_uts_namespaces",
    CloneFlag.NEWCGROUP: "user/max_cgroup_namespaces",
    CloneFlag.NEWTIME: "user/max_time_namespaces",
}


#: Counted for the user of the host in all his user namespaces together, and bounded by no cgroup:
#: a kernel that used them up would leave none to his editor outside.
_SHARED_COUNTS: Final = ("user/max_inotify_instances", "user/max_inotify_watches")
#: What one sandbox may have of each: an eighth.
_SHARE: Final = 8

#: The limits as they were before this process had a user namespace of its own: each namespace has
#: limits of its own, and those of all above hold too, but only the own ones can be read.
_outer_limits: dict[str, str | None] = {}


def unshare_user() -> None:
    """Enter a new user namespace. The caller must have one thread; the maps are still empty."""
    names = (*_LIMITS.values(), *_SHARED_COUNTS)
    _outer_limits.update({name: _read(f"{_SYSCTL}/{name}") for name in names})
    _unshare(CloneFlag.NEWUSER, "user")


def unshare_gateway() -> None:
    """Enter the gateway's net namespace, in which the supervisor keeps its end of the link."""
    _unshare(CloneFlag.NEWNET, "net")


def unshare_container() -> None:
    """Unshare all that the container has of its own; pid and time take effect for children."""
    _unshare(CONTAINER, "mount, pid, net, ipc, uts and time")
    _zero_clocks()


def unshare_cgroup() -> None:
    """Called by the init when it is in its cgroup, which is the root of what it sees from now."""
    _unshare(CloneFlag.NEWCGROUP, "cgroup")


def set_hostname(name: str) -> None:
    """The name in the own uts namespace."""
    try:
        sethostname(name)
    except SyscallError as error:
        raise NamespaceError(
            "the host name could not be set", cause=describe_errno(error.errno or 0)
        ) from error


def bound_user_namespaces() -> None:
    """Called by the init: no user namespace below this one, whatever the filter says.

    A second wall beside seccomp. The file belongs to the user namespace that mounted /proc.
    """
    _write_limit("user/max_user_namespaces", 0)


def bound_shared_counts() -> None:
    """Called by the init: inotify is counted for the user outside, who must keep most of it."""
    for name in _SHARED_COUNTS:
        outer = _outer_limits.get(name)
        if outer is not None:  # else Linux was built without inotify
            _write_limit(name, int(outer) // _SHARE)


def _write_limit(name: str, value: int) -> None:
    path = _SYSCTL / name
    try:
        path.write_text(str(value))
    except OSError as error:
        raise NamespaceError(
            f"{path} could not be set to {value}", cause=describe_errno(error.errno or 0)
        ) from error


def _zero_clocks() -> None:
    """Let CLOCK_MONOTONIC and CLOCK_BOOTTIME begin near 0: the host's uptime is not told."""
    path = "/proc/self/timens_offsets"
    lines = []
    for name, clock in (("monotonic", time.CLOCK_MONOTONIC), ("boottime", time.CLOCK_BOOTTIME)):
        seconds = int(time.clock_gettime(clock))
        lines.append(f"{name} {-seconds} 0")
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write("\n".join(lines))
    except OSError as error:
        raise NamespaceError(
            f"{path} did not take the offsets", cause=describe_errno(error.errno or 0)
        ) from error


def _unshare(flags: CloneFlag, what: str) -> None:
    try:
        unshare(flags)
    except SyscallError as error:
        number = error.errno or 0
        cause, remedy = diagnose(flags, number)
        raise NamespaceError(
            f"a new {what} namespace was refused", cause=cause, remedy=remedy
        ) from error


def diagnose(flags: CloneFlag, number: int, sysctl: Path = _SYSCTL) -> tuple[str, str | None]:
    """(cause, remedy or None) for errno ``number`` of ``unshare(flags)``.

    Only what is seen in ``sysctl`` is named: no remedy for a cause that was not detected.
    """
    base = describe_errno(number)
    if number == errno.ENOSPC:
        for flag in CloneFlag:
            limit = _LIMITS.get(flag)
            if flag in flags and limit and "0" in (_read(sysctl / limit), _outer_limits.get(limit)):
                name = limit.replace("/", ".")
                return (
                    f"{base}: {sysctl / limit} is 0, so this kind of namespace is forbidden here",
                    f"as root: sysctl -w {name}=15000",
                )
        return f"{base}: a limit below {sysctl}/user is used up", None
    if number == errno.EPERM and CloneFlag.NEWUSER in flags:
        clone = sysctl / "kernel/unprivileged_userns_clone"
        if _read(clone) == "0":
            return (
                f"{base}: {clone} is 0, so only root may make user namespaces",
                "as root: sysctl -w kernel.unprivileged_userns_clone=1",
            )
        if os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv"):
            return f"{base}: inside a container, whose seccomp profile may forbid it", None
    restrict = sysctl / "kernel/apparmor_restrict_unprivileged_userns"
    if number in (errno.EPERM, errno.EACCES) and _read(restrict) == "1":
        return (
            f"{base}: {restrict} is 1, so AppArmor restricts user namespaces",
            "as root: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or give the "
            "interpreter an AppArmor profile with 'userns,'",
        )
    if number == errno.EINVAL and CloneFlag.NEWTIME in flags:
        return f"{base}: a kernel older than Linux 5.6, or one without time namespaces", None
    return base, None


def _read(path: Path | str) -> str | None:
    """Without :mod:`pathlib`: of all that is read before the fork these are the most files."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, 4096).decode().strip()
    except OSError:
        return None
    finally:
        os.close(fd)
