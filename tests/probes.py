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


def _cgroups() -> str | None:
    """A cgroup directory in which this user may make another."""
    name = os.environ.get("SANDBOX_KERNEL_CGROUP")
    if not name:
        return "SANDBOX_KERNEL_CGROUP names no cgroup that was handed to this user"
    for controller in ("memory", "pids", "cpu"):
        if not os.access(CGROUP_ROOT / controller / name, os.W_OK):
            return f"{CGROUP_ROOT / controller / name} is not writable"
    return None


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
    "cgroups": _cgroups,
    "landlock": _landlock,
    "root": _root,
    "subordinate-ids": _subordinate_ids,
}


@functools.cache
def missing(probe: str) -> str | None:
    """Why a test with ``needs(probe)`` cannot run here, or ``None``; KeyError: no such probe."""
    return PROBES[probe]()
