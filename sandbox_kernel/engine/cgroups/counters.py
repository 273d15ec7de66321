"""What one kernel has used so far, cheap enough to be read twice a cell.

:meth:`~.group.KernelCgroup.usage` opens some fifteen files; here the few that a cell needs stay
open, so a reading is one ``pread`` a file. They are opened before the supervisor is locked down,
while it may still be root, and nothing is looked up by name afterwards.

The peak is the one figure that has to be begun anew: on v1 any write to
``memory.max_usage_in_bytes`` does it, for every reader; on v2 a write to ``memory.peak`` does it
for this descriptor alone, since Linux 6.12. Where neither can be had the peak is that of the
kernel's whole life, and :attr:`Counters.peak_begins_anew` says so.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from .interface import Leaf, Version, keyed, number

#: Bytes. ``io.stat`` and ``memory.stat`` have a line a device, or some fifty.
_MOST: Final = 16_384


@dataclass(frozen=True, slots=True)
class Counts:
    """Counters of one moment; ``None`` where no controller accounts it."""

    cpu_usec: int | None = None
    read_bytes: int | None = None
    """From block devices, past every cache."""
    written_bytes: int | None = None
    """To block devices. On v1 what goes through the page cache is not counted."""
    refused_forks: int | None = None
    oom_kills: int | None = None


class Counters:
    """Made by the supervisor when the cgroup is there, closed by it before the cgroup goes."""

    def __init__(self, leaves: Iterable[Leaf]) -> None:
        self._files: dict[str, int] = {}
        self._v1_cpu = False
        self._highest: int | None = None
        for leaf in leaves:
            if leaf.version is Version.V1:
                self._open_v1(leaf)
            else:
                self._open_v2(leaf)
        self.peak_begins_anew = self._begin_peak()

    def read(self, *, denials: bool = False) -> Counts:
        """Never raises: a file that is gone is ``None``. ``denials`` costs two files more."""
        read_bytes, written_bytes = self._io()
        cpu = self._text("cpu")
        return Counts(
            cpu_usec=_thousandth(number(cpu)) if self._v1_cpu else keyed(cpu, "usage_usec"),
            read_bytes=read_bytes,
            written_bytes=written_bytes,
            refused_forks=keyed(self._text("pids"), "max") if denials else None,
            oom_kills=keyed(self._text("oom"), "oom_kill") if denials else None,
        )

    def take_peak(self) -> int | None:
        """Bytes of memory at the most since the last call, if :attr:`peak_begins_anew`."""
        peak = number(self._text("peak"))
        if peak is None:
            return None
        self._highest = max(peak, self._highest or 0)
        if self.peak_begins_anew:
            self._begin_peak()
        return peak

    def peak_of_life(self, seen: int | None) -> int | None:
        """``seen`` is what the file says now, which may have begun anew with a cell."""
        return seen if self._highest is None else max(seen or 0, self._highest)

    def memory(self) -> dict[str, int]:
        """Bytes: ``current``, and what ``memory.stat`` says by the names of v2."""
        current = number(self._text("current"))
        if current is None:
            return {}
        stat = self._text("stat")
        names = ("active_file", "inactive_file", "active_anon", "inactive_anon", "shmem")
        found = {n: v for n in names if (v := self._stat(stat, n)) is not None}
        return {"current": current, **found}

    def close(self) -> None:
        """Twice is once."""
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()

    # -- details ----------------------------------------------------------------------------

    def _open_v1(self, leaf: Leaf) -> None:
        names = {
            "cpuacct": {"cpu": "cpuacct.usage"},
            "memory": {
                "peak": "memory.max_usage_in_bytes",
                "current": "memory.usage_in_bytes",
                "stat": "memory.stat",
                "oom": "memory.oom_control",
            },
            "pids": {"pids": "pids.events"},
            "io": {"io_v1": "blkio.throttle.io_service_bytes"},
        }
        for controller in leaf.controllers:
            for key, name in names.get(controller, {}).items():
                self._open(key, leaf, name)
        self._v1_cpu |= "cpuacct" in leaf.controllers and "cpu" in self._files

    def _open_v2(self, leaf: Leaf) -> None:
        """What a controller brings is there where the controller is, and else is left out.
        ``cpu.stat`` is always there: on a hybrid system v1 may have accounted it already."""
        names = {
            "cpu": "cpu.stat", "peak": "memory.peak", "current": "memory.current",
            "stat": "memory.stat", "oom": "memory.events", "pids": "pids.events",
            "io_v2": "io.stat",
        }  # fmt: skip
        for key, name in names.items():
            if key not in self._files:
                self._open(key, leaf, name)

    def _open(self, key: str, leaf: Leaf, name: str) -> None:
        path = leaf.path / name
        modes = (os.O_RDWR, os.O_RDONLY) if key == "peak" else (os.O_RDONLY,)
        for mode in modes:
            with contextlib.suppress(OSError):
                self._files[key] = os.open(path, mode | os.O_CLOEXEC)
                return

    def _begin_peak(self) -> bool:
        try:
            os.write(self._files["peak"], b"0")
        except (KeyError, OSError):  # none, opened for reading only, or a Linux before 6.12
            return False
        return True

    def _text(self, key: str) -> str | None:
        try:
            return os.pread(self._files[key], _MOST, 0).decode("ascii", "replace")
        except (KeyError, OSError):
            return None

    def _stat(self, text: str | None, name: str) -> int | None:
        """On v1 ``total_`` stands before what includes the directories below."""
        value = keyed(text, f"total_{name}")
        return value if value is not None else keyed(text, name)

    def _io(self) -> tuple[int | None, int | None]:
        if (text := self._text("io_v1")) is not None:
            words = [line.split() for line in text.splitlines()]
            rows = [w for w in words if len(w) == 3]
            return (
                sum(int(w[2]) for w in rows if w[1] == "Read"),
                sum(int(w[2]) for w in rows if w[1] == "Write"),
            )
        if (text := self._text("io_v2")) is None:
            return None, None
        pairs = [word.split("=", 1) for word in text.split() if "=" in word]
        return (
            sum(int(value) for name, value in pairs if name == "rbytes"),
            sum(int(value) for name, value in pairs if name == "wbytes"),
        )


def _thousandth(nanoseconds: int | None) -> int | None:
    return None if nanoseconds is None else nanoseconds // 1000
