"""Ending the processes of leaves, waiting until they are gone, removing the directories.

A process is only ever signalled through a pidfd of which it is known that it was opened for a
member of the leaf: the number alone may by now belong to somebody else. Deadlines are in seconds
of :func:`time.monotonic`; nothing here waits for ever, and nothing raises for what is gone.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from ...errors import describe_errno
from .interface import Files, Leaf, Version

#: The longest single wait in seconds: a process that is moved out of a leaf wakes no pidfd.
_SLICE: Final = 0.1
#: Descriptors are limited too, so of a bomb a part at a time.
_AT_ONCE: Final = 256
#: Seconds between two looks where the kernel offers no event (the freezer and rmdir of v1).
_POLL: Final = 0.002
_FREEZE_SECONDS: Final = 0.5


def kill_all(leaves: Sequence[Leaf], files: Files, deadline: float) -> list[str]:
    """SIGKILL to every process in the leaves until there is none; the problems, if any."""
    problems: list[str] = []
    for leaf in leaves:
        if leaf.version is Version.V2:
            _kill_v2(leaf, files, problems)
    refused: set[int] = set()
    frozen = _stop_forks(leaves, files)
    try:
        _signal(leaves, files, refused)
    finally:
        # SIGKILL reaches a frozen process of v1 only after it is thawed.
        for path in frozen:
            _try_write(files, path, "THAWED")
    while (left := _members(leaves, files) - refused) and time.monotonic() < deadline:
        _signal(leaves, files, refused)
        _wait_some(left, lambda: _members(leaves, files), deadline)
    for pid in sorted(refused & _members(leaves, files)):
        problems.append(f"process {pid} could not be killed: {describe_errno(errno.EPERM)}")
    if left:
        problems.append(f"processes are still alive after SIGKILL: pids {_join(left)}")
    return problems


def remove_leaf(leaf: Leaf, files: Files, deadline: float) -> list[str]:
    """rmdir of the leaf with what is below, as soon as its processes are gone."""
    problems: list[str] = []
    for child in files.children(leaf.path):
        problems += remove_leaf(Leaf(leaf.version, child, leaf.controllers), files, deadline)
    while True:
        try:
            files.rmdir(leaf.path)
            return problems
        except FileNotFoundError:
            return problems
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() >= deadline:
                problems.append(_not_removed(leaf.path, error, files))
                return problems
        _wait_some(files.pids(leaf.path), lambda: files.pids(leaf.path), deadline)


def _not_removed(path: Path, error: OSError, files: Files) -> str:
    try:
        pids = files.pids(path)
    except OSError:  # what refused rmdir may refuse this too, and is the cause
        pids = []
    cause = f"pids {_join(pids)} are in it" if pids else describe_errno(error.errno or 0)
    return f"cgroup {path} could not be removed: {cause}"


def _join(pids: Sequence[int] | set[int]) -> str:
    return ", ".join(map(str, sorted(pids)))


def _members(leaves: Sequence[Leaf], files: Files) -> set[int]:
    found: set[int] = set()
    for path in _directories(leaves, files):
        found.update(files.pids(path))
    return found


def _directories(leaves: Sequence[Leaf], files: Files) -> list[Path]:
    """The leaves, and what somebody may have made below them."""
    todo, found = [leaf.path for leaf in leaves], []
    while todo:
        path = todo.pop()
        found.append(path)
        todo += files.children(path)
    return found


def _kill_v2(leaf: Leaf, files: Files, problems: list[str]) -> None:
    """cgroup.kill, since Linux 5.14: atomic, children included."""
    path = leaf.path / "cgroup.kill"
    if files.read(leaf.path / "cgroup.procs") is None or not path.exists():
        return
    try:
        files.write(path, "1")
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            problems.append(f"{path} did not take '1': {describe_errno(error.errno or 0)}")


def _stop_forks(leaves: Sequence[Leaf], files: Files) -> list[Path]:
    """Let the processes make no new ones while they are killed; what must be thawed after.

    Freezing may fail (a process in an uninterruptible wait), so forks are forbidden as well.
    """
    frozen: list[Path] = []
    for leaf in leaves:
        if "pids" in leaf.controllers:
            _try_write(files, leaf.path / "pids.max", "0")
        if leaf.version is Version.V1 and "freezer" in leaf.controllers:
            state = leaf.path / "freezer.state"
            frozen.append(state)
            _freeze(state, files)
    return frozen


def _freeze(state: Path, files: Files) -> None:
    """Write again until it says so: v1 gives up in FREEZING when a fork raced with it."""
    deadline = time.monotonic() + _FREEZE_SECONDS
    while _try_write(files, state, "FROZEN"):
        if (files.read(state) or "").strip() == "FROZEN" or time.monotonic() >= deadline:
            return
        time.sleep(_POLL)


def _try_write(files: Files, path: Path, value: str) -> bool:
    try:
        files.write(path, value)
    except OSError:
        return False
    return True


def _signal(leaves: Sequence[Leaf], files: Files, refused: set[int]) -> None:
    """One SIGKILL to everybody in the leaves; whom the kernel protects is added to ``refused``."""
    todo = sorted(_members(leaves, files) - refused)
    for begin in range(0, len(todo), _AT_ONCE):
        with ExitStack() as stack:
            for pid, fd in _open_members(
                todo[begin : begin + _AT_ONCE], lambda: _members(leaves, files), stack
            ).items():
                try:
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                except PermissionError:
                    refused.add(pid)


def _wait_some(pids: Iterable[int], members: Callable[[], Iterable[int]], deadline: float) -> None:
    """Until these processes have ended, or one slice is over, or the deadline."""
    with ExitStack() as stack:
        fds = list(_open_members(sorted(pids)[:_AT_ONCE], members, stack).values())
        if not fds:  # the kernel is still taking the last one out of the directory
            time.sleep(_POLL)
            return
        poll = select.poll()
        for fd in fds:
            poll.register(fd, select.POLLIN)
        left = set(fds)
        until = min(deadline, time.monotonic() + _SLICE)
        while left and (remaining := until - time.monotonic()) > 0:
            for fd, _ in poll.poll(remaining * 1000):
                poll.unregister(fd)
                left.discard(fd)


def _open_members(
    pids: Iterable[int], members: Callable[[], Iterable[int]], stack: ExitStack
) -> dict[int, int]:
    """pidfds of those that are members still.

    ``members`` is asked again after the open: who is in the list then is who the pidfd stands
    for, or the pidfd stands for a process that has ended already. Both are safe to signal.
    """
    opened: dict[int, int] = {}
    for pid in pids:
        try:
            opened[pid] = os.pidfd_open(pid)
        except OSError:
            continue
        stack.callback(os.close, opened[pid])
    still = set(members())
    return {pid: fd for pid, fd in opened.items() if pid in still}
