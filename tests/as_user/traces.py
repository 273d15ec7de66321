"""What the throw-away user has left on this machine. Only root can look; nothing but stdlib.

::

    python3 -I traces.py pick          # prints a uid and the first of 65536 subordinate ids
    python3 -I traces.py check USER    # prints what is there; 1 if anything is
    python3 -I traces.py remove USER   # ends the processes, removes the files

Whose traces count: the user's own id and the whole range of its subordinate ids. Only processes
and files of this one user are ever touched. Therefore its ids are not those that ``useradd`` would
pick: in a container that shares /proc with its host, a name that is free may be a uid that is not.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shutil
import signal
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

#: Where any user can write. The home is removed as a whole.
PUBLIC_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm", "/run/lock", "/dev/mqueue")
#: As in Debian's login.defs, and above the ids that a machine gives its first users.
USER_IDS = (20000, 60000)
SUBORDINATE_IDS = range(100_000, 600_100_000)
GRACE = 10.0
"""Seconds within which all processes must have ended after the task's last one."""


def ids_of(user: str) -> list[range]:
    """The user's id and its subordinate ranges."""
    ids = [range(pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_uid + 1)]
    lines = Path("/etc/subuid").read_text().splitlines() if Path("/etc/subuid").exists() else []
    for line in lines:
        name, start, count = line.split(":")
        if name == user:
            ids.append(range(int(start), int(start) + int(count)))
    return ids


def pick() -> int:
    """Ids that no table names and under which no process runs."""
    taken = {entry.pw_uid for entry in pwd.getpwall()} | {entry.gr_gid for entry in grp.getgrall()}
    uid = next(
        uid
        for uid in range(*USER_IDS)
        if uid not in taken and not any(processes([range(uid, uid + 1)]))
    )
    starts = [SUBORDINATE_IDS.start]
    for table in ("/etc/subuid", "/etc/subgid"):
        lines = Path(table).read_text().splitlines() if Path(table).exists() else []
        starts += [int(start) + int(count) for _, start, count in (li.split(":") for li in lines)]
    span = range(max(starts), max(starts) + 65536)
    while any(processes([span])):
        span = range(span.stop, span.stop + 65536)
    print(uid, span.start)
    return 0


def processes(ids: list[range]) -> Iterator[tuple[int, str]]:
    """Pid and command line of each process with one of these ids.

    Zombies are not counted: one whose parent lives is that parent's matter, and the parent is
    listed; any other waits for a pid 1 that some containers do not have.
    """
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            status = Path(entry.path, "status").read_text(errors="replace")
            command = Path(entry.path, "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        if fields["State"].strip().startswith("Z"):
            continue
        if any(int(uid) in span for uid in fields["Uid"].split() for span in ids):
            text = command.replace(b"\0", b" ").decode(errors="replace").strip()
            yield int(entry.name), f"{text or fields['Name'].strip()} [{fields['State'].strip()}]"


def files(ids: list[range]) -> Iterator[Path]:
    """Top entries of the public folders that belong to one of these ids."""
    for folder in PUBLIC_FOLDERS:
        if os.path.isdir(folder):
            for entry in os.scandir(folder):
                if any(entry.stat(follow_symlinks=False).st_uid in span for span in ids):
                    yield Path(entry.path)


def run_time_entries(user: str) -> list[Path]:
    folder = Path("/run/user", str(pwd.getpwnam(user).pw_uid))
    return sorted(folder.iterdir()) if folder.is_dir() else []


def check(user: str) -> int:
    ids = ids_of(user)
    deadline = time.monotonic() + GRACE
    while left := list(processes(ids)):
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    found = [f"process {pid}: {command}" for pid, command in left]
    found += [f"file {path}" for path in files(ids) if path.name != f"pytest-of-{user}"]
    found += [f"file {path}" for path in run_time_entries(user)]
    for line in found:
        print(f"left behind, {line}", file=sys.stderr)
    return 1 if found else 0


def remove(user: str) -> int:
    ids = ids_of(user)
    deadline = time.monotonic() + GRACE
    while left := list(processes(ids)):
        for pid, _ in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            print(f"these would not end: {left}", file=sys.stderr)
            return 1
        time.sleep(0.05)
    for path in files(ids):
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit({"pick": pick, "check": check, "remove": remove}[sys.argv[1]](*sys.argv[2:]))
