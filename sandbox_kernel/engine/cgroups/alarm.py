"""Told by Linux that the memory of a kernel nears its cap, before somebody is killed.

v1: ``cgroup.event_control`` takes thresholds of ``memory.usage_in_bytes``, and the pressure level
``medium``: where page cache fills the group no threshold is crossed any more, but reclaim fails
before the end. v2: ``memory.events`` can be polled (``high``, ``max``), and ``memory.pressure``
takes a trigger. Each only says: look now. What counts is what cannot be reclaimed, see
:meth:`MemoryAlarm.used`.

Sources: Documentation/admin-guide/cgroup-v1/memory.rst, Documentation/accounting/psi.rst.
"""

from __future__ import annotations

import contextlib
import os
import select
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .group import KernelCgroup
from .interface import Files, Leaf, Version, keyed, number

#: Somebody waited for memory for 200 ms of 2 s, the only window that an ordinary user may have.
_TRIGGER: Final = b"some 200000 2000000\0"
#: Of the room between the threshold and the cap: the further thresholds.
_STEPS: Final = (0.0, 0.5, 0.75)


@dataclass(frozen=True)
class Refusals:
    """Counters that Linux tells nobody of."""

    forks: int = 0
    periods: int = 0
    """Tenths of a second in which the cap ``cpus`` let somebody wait."""


def refusals(group: KernelCgroup) -> Refusals:
    """Now. Reads a file for each of the controllers ``pids`` and ``cpu``.

    Raises:
        OSError: the group is gone.
    """
    forks = periods = 0
    for leaf in group.leaves:
        if "pids" in leaf.controllers:
            forks = keyed(group.files.read(leaf.path / "pids.events"), "max") or 0
        if "cpu" in leaf.controllers:
            periods = keyed(group.files.read(leaf.path / "cpu.stat"), "nr_throttled") or 0
    return Refusals(forks, periods)


class MemoryAlarm:
    """Made by the supervisor before it is locked down; closed before the group goes.

    Where nothing can be watched the descriptor is never readable.
    """

    def __init__(self, group: KernelCgroup) -> None:
        self._files: Files = group.files
        self._leaf = next((leaf for leaf in group.leaves if "memory" in leaf.controllers), None)
        self._epoll = select.epoll()
        self._eventfds: list[int] = []
        self._polled: list[int] = []
        if self._leaf is None:
            return
        if self._leaf.version is Version.V2:
            self._watch_v2(self._leaf)
        else:
            self._register(self._leaf, "memory.pressure_level", "medium")

    def fileno(self) -> int:
        """Readable when it is time to look: call :meth:`take`, then :meth:`used`."""
        return self._epoll.fileno()

    def watch(self, threshold: int, cap: int) -> None:
        """Bytes. v1: be told when this and something more is in use; again after other caps."""
        leaf = self._leaf
        if leaf is None or leaf.version is Version.V2:
            return
        for fd in self._eventfds[1:]:
            os.close(fd)  # which ends its registration
        del self._eventfds[1:]
        for step in _STEPS:
            self._register(
                leaf, "memory.usage_in_bytes", str(int(threshold + (cap - threshold) * step))
            )

    def take(self) -> None:
        """Not readable afterwards, until the next event."""
        for fd, _ in self._epoll.poll(0):
            with contextlib.suppress(OSError):
                if fd in self._eventfds:
                    os.eventfd_read(fd)
                else:
                    os.pread(fd, 4096, 0)

    def used(self) -> int | None:
        """Bytes in use without page cache that could be reclaimed; ``None`` if nobody knows."""
        if self._leaf is None:
            return None
        v1 = self._leaf.version is Version.V1
        path = self._leaf.path
        stat = self._files.read(path / "memory.stat")
        name = "memory.usage_in_bytes" if v1 else "memory.current"
        current = number(self._files.read(path / name))
        cache = keyed(stat, "cache" if v1 else "file") or 0
        return None if current is None else current - cache + (keyed(stat, "shmem") or 0)

    def close(self) -> None:
        """Twice is once."""
        for fd in (*self._eventfds, *self._polled):
            os.close(fd)
        self._eventfds, self._polled = [], []
        self._epoll.close()

    def _register(self, leaf: Leaf, name: str, argument: str) -> None:
        eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._eventfds.append(eventfd)
        with contextlib.suppress(OSError):
            watched = os.open(leaf.path / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                control = leaf.path / "cgroup.event_control"
                self._files.write(control, f"{eventfd} {watched} {argument}")
            finally:
                os.close(watched)
        self._epoll.register(eventfd, select.EPOLLIN)

    def _watch_v2(self, leaf: Leaf) -> None:
        self._poll(leaf.path / "memory.events", os.O_RDONLY)
        with contextlib.suppress(OSError):  # Linux without PSI, or before 6.5
            os.write(self._poll(leaf.path / "memory.pressure", os.O_RDWR | os.O_NONBLOCK), _TRIGGER)

    def _poll(self, path: Path, flags: int) -> int:
        fd = os.open(path, flags | os.O_CLOEXEC)
        self._polled.append(fd)
        os.pread(fd, 4096, 0)  # Linux compares with what was read last through this descriptor
        self._epoll.register(fd, select.EPOLLPRI)
        return fd
