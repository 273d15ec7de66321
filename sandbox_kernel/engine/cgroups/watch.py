"""Events of a kernel's cgroup as they happen, on one descriptor for the supervisor's poll loop.

v2: the kernel marks ``memory.events`` and ``pids.events`` as modified. One hears of that through
inotify or by polling the open file for POLLPRI; this does the latter, which takes none of the few
inotify instances of a user. v1: for memory an eventfd is registered in ``cgroup.event_control``. It
says that somebody has to be killed *now*, to the cgroup whose limit it is and to all below; so one
more on the directory above tells whose limit that is. Of a fork that was refused v1 tells nobody:
its counter is there for who looks. Throttling by ``cpus`` is an event nowhere, and in the usage.
"""

from __future__ import annotations

import contextlib
import os
import select
from dataclasses import dataclass, replace
from pathlib import Path

from .group import KernelCgroup
from .interface import CgroupEvents, Leaf, Version


@dataclass
class _Alarms:
    """The eventfds of one v1 group: how often each has fired."""

    own: int = 0
    above: int = 0


class EventWatch:
    """Made by the supervisor before anybody is in the group; closed before the group goes.

    What cannot be watched is left out: the counters are read at the end all the same.
    """

    def __init__(self, group: KernelCgroup) -> None:
        self._group = group
        self._epoll = select.epoll()
        self._files: dict[int, Path] = {}
        self._eventfds: dict[int, bool] = {}
        self._alarms: _Alarms | None = None
        for leaf in group.leaves:
            self._watch(leaf)
        self.start = self.events()
        """The counters before anybody was in the group."""

    def fileno(self) -> int:
        """Readable when something has happened."""
        return self._epoll.fileno()

    def take(self) -> CgroupEvents:
        """All counters now. The descriptor is not readable afterwards, until the next event."""
        for fd, _ in self._epoll.poll(0):
            if fd in self._eventfds:
                self._count(fd)
            else:
                self._rearm(fd)
        return self.events()

    def events(self) -> CgroupEvents:
        """As :meth:`KernelCgroup.events`, with what v1 counts nowhere."""
        found = self._group.events()
        if self._alarms is None:
            return found
        for fd in self._eventfds:
            self._count(fd)
        return replace(
            found, oom=max(self._alarms.own - self._alarms.above, 0), oom_above=self._alarms.above
        )

    def close(self) -> None:
        """Twice is once."""
        for fd in (*self._files, *self._eventfds):
            os.close(fd)
        self._files, self._eventfds = {}, {}
        self._epoll.close()

    def _watch(self, leaf: Leaf) -> None:
        if leaf.version is Version.V2:
            for controller in {"memory", "pids"}.intersection(leaf.controllers):
                with contextlib.suppress(OSError):
                    self._poll_file(leaf.path / f"{controller}.events")
        elif "memory" in leaf.controllers:
            with contextlib.suppress(OSError):
                self._register(leaf.path, above=False)
                self._alarms = _Alarms()
                self._register(leaf.path.parent, above=True)

    def _poll_file(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._files[fd] = path
        self._rearm(fd)
        self._epoll.register(fd, select.EPOLLPRI)

    def _rearm(self, fd: int) -> None:
        """The kernel compares with what was read last through this descriptor."""
        with contextlib.suppress(OSError):  # ENODEV: the group is gone
            os.pread(fd, 4096, 0)

    def _register(self, directory: Path, *, above: bool) -> None:
        control = os.open(directory / "memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        try:
            eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._eventfds[eventfd] = above
            files = self._group.files
            files.write(directory / "cgroup.event_control", f"{eventfd} {control}")
        finally:
            os.close(control)
        self._epoll.register(eventfd, select.EPOLLIN)

    def _count(self, fd: int) -> None:
        with contextlib.suppress(BlockingIOError):
            fired = os.eventfd_read(fd)
            if self._alarms is not None:
                if self._eventfds[fd]:
                    self._alarms.above += fired
                else:
                    self._alarms.own += fired
