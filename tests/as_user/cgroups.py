"""Hand cgroup directories to an ordinary user, as an administrator would. Only root can.

::

    python3 -I cgroups.py make sandbox-kernel-test-PID UID    # one directory a hierarchy
    python3 -I cgroups.py enter sandbox-kernel-test-PID PID   # on v2: put a process into a leaf
    python3 -I cgroups.py remove sandbox-kernel-test-PID      # with what is in it

On v1 the directory is handed over and nothing in it. On v2 it is what the kernel's documentation
names (the directory, ``cgroup.procs``, ``cgroup.threads``, ``cgroup.subtree_control``), and a
process can only be moved from within: so the tests have to be started in its leaf ``tests``.

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

CONTROLLERS = frozenset(("memory", "cpu", "cpuacct", "pids", "freezer", "cpuset", "blkio"))
NAME = re.compile(r"sandbox-kernel-test-[0-9]+")
GRACE = 10.0
"""Seconds within which killed processes must be gone."""


LEAF = "tests"
#: On a v2 directory: the controllers that were switched on above it for its sake.
ENABLED = "user.sandbox-kernel.enabled"


def mounts() -> list[Path]:
    """Where the v1 hierarchies of these controllers are mounted whole."""
    return [
        point
        for point, kind, options in hierarchies()
        if kind == "cgroup" and CONTROLLERS & set(options.split(","))
    ]


def unified() -> list[Path]:
    """Where the v2 hierarchy is mounted whole, if it has a controller left for us."""
    return [
        point
        for point, kind, _ in hierarchies()
        if kind == "cgroup2" and (point / "cgroup.controllers").read_text().split()
    ][:1]


def hierarchies() -> list[tuple[Path, str, str]]:
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        root, point = before.split()[3:5]
        kind, _, options = after.split()[:3]
        if root == "/" and kind in ("cgroup", "cgroup2"):
            found.append((Path(point), kind, options))
    return found


def make(name: str, uid: int) -> int:
    directories = [mount / name for mount in mounts()]
    both = [*directories, *(mount / name for mount in unified())]
    if not both:
        return fail("no hierarchy of these controllers is mounted")
    there = [str(d) for d in both if d.exists()]
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
        for mount in unified():
            make_unified(mount / name, uid)
    except OSError as error:
        remove(name)
        return fail(f"{error.filename}: {error.strerror}")
    return 0


def make_unified(directory: Path, uid: int) -> None:
    control = directory.parent / "cgroup.subtree_control"
    enabled = control.read_text().split()
    directory.mkdir()
    missing = [c for c in (directory.parent / "cgroup.controllers").read_text().split()
               if c not in enabled]  # fmt: skip
    os.setxattr(directory, ENABLED, " ".join(missing).encode())
    for controller in missing:
        control.write_text(f"+{controller}")
    (directory / LEAF).mkdir()
    names = ("cgroup.procs", "cgroup.threads", "cgroup.subtree_control")
    for path in (directory, *(directory / n for n in names), directory / LEAF / "cgroup.procs"):
        os.chown(path, uid, -1)


def enter(name: str, pid: int) -> int:
    """Its children will be there too. Nothing to do where there is no v2."""
    for mount in unified():
        (mount / name / LEAF / "cgroup.procs").write_text(str(pid))
    return 0


def remove(name: str) -> int:
    status = 0
    for mount in (*mounts(), *unified()):
        path = mount / name
        if not path.is_dir():
            continue
        enabled = enabled_for(path)
        if not remove_tree(path):
            status = fail(f"{path} could not be removed")
        elif enabled:
            switch_off(mount, enabled)
    return status


def enabled_for(directory: Path) -> list[str]:
    try:
        return os.getxattr(directory, ENABLED).decode().split()
    except OSError:  # v1, or made by nobody of us
        return []


def switch_off(mount: Path, controllers: list[str]) -> None:
    """Unless another run needs them: the last one does it."""
    others = [p for p in mount.glob("sandbox-kernel-test-*") if p.is_dir()]
    if others:
        left = dict.fromkeys([*enabled_for(others[0]), *controllers])
        os.setxattr(others[0], ENABLED, " ".join(left).encode())
        return
    for controller in controllers:
        (mount / "cgroup.subtree_control").write_text(f"-{controller}")


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
        case ["enter", name, pid] if NAME.fullmatch(name) and pid.isdigit():
            return enter(name, int(pid))
        case ["remove", name] if NAME.fullmatch(name):
            return remove(name)
    return fail("usage: make|enter|remove sandbox-kernel-test-PID [UID|PID]")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
