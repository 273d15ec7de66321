"""Hand v1 cgroup directories to an ordinary user, as an administrator would. Only root can.

::

    python3 -I cgroups.py make sandbox-kernel-test-PID UID    # one directory a controller
    python3 -I cgroups.py remove sandbox-kernel-test-PID      # with what is in it

No other name is taken, so that no group of the machine is ever touched: ``make`` refuses a
directory that is there already, ``remove`` is content if it is not. Nothing but stdlib.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from pathlib import Path

CONTROLLERS = frozenset(("memory", "cpu", "cpuacct", "pids", "freezer", "cpuset"))
NAME = re.compile(r"sandbox-kernel-test-[0-9]+")
GRACE = 10.0
"""Seconds within which killed processes must be gone."""


def mounts() -> list[Path]:
    """Where the v1 hierarchies of these controllers are mounted whole."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        root, point = before.split()[3:5]
        kind, _, options = after.split()[:3]
        if kind == "cgroup" and root == "/" and CONTROLLERS & set(options.split(",")):
            found.append(Path(point))
    return found


def make(name: str, uid: int) -> int:
    directories = [mount / name for mount in mounts()]
    if not directories:
        return fail("no v1 hierarchy of these controllers is mounted")
    there = [str(d) for d in directories if d.exists()]
    if there:
        return fail(f"these are there already and are left alone: {', '.join(there)}")
    try:
        for directory in directories:
            directory.mkdir()
            # A cpuset takes no process before it has both; the user's own will copy them.
            for file in ("cpuset.cpus", "cpuset.mems"):
                if (directory / file).exists():
                    (directory / file).write_text((directory.parent / file).read_text())
            # The directory only: limits on it stay the administrator's.
            os.chown(directory, uid, -1)
    except OSError as error:
        remove(name)
        return fail(f"{error.filename}: {error.strerror}")
    return 0


def remove(name: str) -> int:
    status = 0
    for mount in mounts():
        if (mount / name).is_dir() and not remove_tree(mount / name):
            status = fail(f"{mount / name} could not be removed")
    return status


def remove_tree(top: Path) -> bool:
    """Kill who is below, then rmdir from the leaves up; whether it is gone."""
    deadline = time.monotonic() + GRACE
    while True:
        directories = sorted([top, *(p for p in top.rglob("*") if p.is_dir())], reverse=True)
        for directory in directories:
            with contextlib.suppress(FileNotFoundError):
                if (directory / "freezer.state").exists() and directory != top:
                    (directory / "freezer.state").write_text("THAWED")  # or SIGKILL has to wait
                for pid in map(int, (directory / "cgroup.procs").read_text().split()):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(OSError):  # EBUSY until the kernel has taken the last one out
            for directory in directories:
                directory.rmdir()
        if not top.exists():
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)


def fail(message: str) -> int:
    print(f"cgroups.py: {message}", file=sys.stderr)
    return 1


def main(arguments: list[str]) -> int:
    match arguments:
        case ["make", name, uid] if NAME.fullmatch(name) and uid.isdigit():
            return make(name, int(uid))
        case ["remove", name] if NAME.fullmatch(name):
            return remove(name)
    return fail("usage: make sandbox-kernel-test-PID UID | remove sandbox-kernel-test-PID")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
