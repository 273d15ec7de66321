"""What this machine has, by name: the only reasons for which a test may be skipped.

A test says ``@pytest.mark.needs("cgroups")``; where the probe finds nothing it is skipped with the
probe's own words. In CI a skip is a failure, unless ``SANDBOX_KERNEL_MAY_SKIP`` (names with commas
between) lists the probe. A probe looks for the thing itself, never for a uid or a missing import.
"""

from __future__ import annotations

import ctypes
import functools
import os
import pwd
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

CGROUP_ROOT: Final = Path("/sys/fs/cgroup")

#: How many times longer than usual anything may take here: ``make test-vm`` sets it for a machine
#: that is emulated. Deadlines of the tests are to be multiplied by it.
TIMEOUT_FACTOR: Final = float(os.environ.get("SANDBOX_KERNEL_TIMEOUT_FACTOR") or 1)


def _subordinate_ids() -> str | None:
    """newuidmap and a range for this user."""
    for program in ("newuidmap", "newgidmap"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    try:
        me = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        me = str(os.getuid())
    for table in ("/etc/subuid", "/etc/subgid"):
        path = Path(table)
        owners = {line.split(":")[0] for line in path.read_text().split()} if path.exists() else ()
        if me not in owners and str(os.getuid()) not in owners:
            return f"{me} has no range in {table}"
    return None


def chromium() -> str | None:
    """The path of a Chromium that needs no display, or of one that can do without."""
    names = ("chromium-headless-shell", "chromium")
    return next((path for name in names if (path := shutil.which(name))), None)


def _chromium() -> str | None:
    """A browser that tests can steer."""
    return None if chromium() else "neither chromium-headless-shell nor chromium is installed"


def _cgroups() -> str | None:
    """A cgroup directory in which this user may make another."""
    name = os.environ.get("SANDBOX_KERNEL_CGROUP", "").strip("/")
    if not name:
        return "SANDBOX_KERNEL_CGROUP names no cgroup that was handed to this user"
    if _unified():
        path = CGROUP_ROOT / name
        missing = {"memory", "pids", "cpu"} - set(_words(path / "cgroup.controllers"))
        if missing or not os.access(path, os.W_OK):
            return f"{path} is not writable, or is without {', '.join(missing) or 'nothing'}"
        return None
    for controller in ("memory", "pids", "cpu"):
        if not os.access(CGROUP_ROOT / controller / name, os.W_OK):
            return f"{CGROUP_ROOT / controller / name} is not writable"
    return None


def _cgroup_v1() -> str | None:
    """The controllers are on v1, though there may be a v2 beside it."""
    return "this machine has cgroup v2 alone" if _unified() else None


def _cgroup_v2() -> str | None:
    """All controllers are on v2."""
    return None if _unified() else "the controllers of this machine are on cgroup v1"


def _controller(name: str) -> Callable[[], str | None]:
    """A controller that was handed to this user with the others."""

    def probe() -> str | None:
        if reason := _cgroups():
            return reason
        given = os.environ["SANDBOX_KERNEL_CGROUP"].strip("/")
        if _unified():
            there = name in _words(CGROUP_ROOT / given / "cgroup.controllers")
        elif name == "hugetlb":
            there = name in _words(CGROUP_ROOT / "unified" / given / "cgroup.controllers")
        else:
            v1_name = {"io": "blkio"}.get(name, name)
            there = os.access(CGROUP_ROOT / v1_name / given, os.W_OK)
        return None if there else f"the controller {name} was not handed to this user"

    return probe


def _unified() -> bool:
    return (CGROUP_ROOT / "cgroup.controllers").exists()


def _words(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def _systemd_user() -> str | None:
    """A systemd of this user that answers, and hands controllers of cgroup v2 down."""
    if not _unified():
        return "the controllers of this machine are on cgroup v1"
    folder = os.environ.get("XDG_RUNTIME_DIR", "")
    if not Path(folder, "systemd/private").is_socket():
        return f"no systemd of this user listens in {folder or 'XDG_RUNTIME_DIR, which is not set'}"
    if not os.environ.get("DBUS_SESSION_BUS_ADDRESS"):
        return "DBUS_SESSION_BUS_ADDRESS names no bus"
    uid = os.getuid()
    manager = CGROUP_ROOT / f"user.slice/user-{uid}.slice/user@{uid}.service"
    missing = {"memory", "pids", "cpu"} - set(_words(manager / "cgroup.controllers"))
    return f"{manager} is without {', '.join(sorted(missing))}" if missing else None


def _disk() -> str | None:
    """The temporary folder lies on a block device, so that there is something to be limited."""
    return None if os.major(os.stat("/var/tmp").st_dev) else "/var/tmp lies on no block device"


def caps_column() -> str:
    """Which column of docs/caps.md this run fills; on cgroup v2 only who started it knows."""
    named = os.environ.get("SANDBOX_KERNEL_CAPS_COLUMN", "")
    if named or _unified():
        return named
    return "v1-user" if os.geteuid() else "v1-root"


def _caps_column() -> str | None:
    """The run says what its cgroup is."""
    return None if caps_column() else "SANDBOX_KERNEL_CAPS_COLUMN says of no v2 cgroup who made it"


def _landlock() -> str | None:
    """Landlock in the running kernel: its ABI version is asked for."""
    create_ruleset, version_flag = 444, 1
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(create_ruleset, None, 0, version_flag) > 0:
        return None
    return f"the kernel has no Landlock ({os.strerror(ctypes.get_errno()).lower()})"


def _root() -> str | None:
    """All capabilities, in the first user namespace."""
    if os.geteuid() != 0:
        return "it prepares what only root can"
    mapped = Path("/proc/self/uid_map").read_text().split()
    return None if mapped == ["0", "0", "4294967295"] else "this is not the first user namespace"


#: name → None where the thing is there, else the reason to give
PROBES: Final[dict[str, Callable[[], str | None]]] = {
    "caps-column": _caps_column,
    "cgroup-v1": _cgroup_v1,
    "cgroup-v2": _cgroup_v2,
    "cgroups": _cgroups,
    "chromium": _chromium,
    "cpuset": _controller("cpuset"),
    "disk": _disk,
    "hugetlb": _controller("hugetlb"),
    "io": _controller("io"),
    "landlock": _landlock,
    "root": _root,
    "subordinate-ids": _subordinate_ids,
    "systemd-user": _systemd_user,
}


@functools.cache
def missing(probe: str) -> str | None:
    """Why a test with ``needs(probe)`` cannot run here, or ``None``; KeyError: no such probe."""
    return PROBES[probe]()
