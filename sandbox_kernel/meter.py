"""What one kernel uses, measured outside of it: for cells, for ``%sandbox``, for usage requests.

Composes the counters of the cgroup with those of the link, for the proxy (:mod:`.channels`), which
knows neither. Made by the supervisor before it is locked down; afterwards it opens nothing but what
:meth:`KernelMeter.use` shows.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Iterator
from typing import Any, Final

from .capevents import CapEvents
from .channels import Account, Reading
from .engine.cgroups import CgroupUsage, Counters, KernelCgroup
from .engine.traffic import LinkTraffic
from .errors import SandboxError
from .spec import GIB, KIB, MIB, Caps

#: Seconds for which :meth:`KernelMeter.use` repeats itself: a kernel decides how often it is asked.
_FRESH: Final = 0.1
#: Pid of every kernel, in its own namespace.
_PID: Final = 2


class KernelMeter:
    """:class:`.channels.Meter`. ``events`` knows the caps that are in force.

    ``denials`` has each reading count what was refused. ``link`` is the gateway's interface, in
    whose net namespace this is called.
    """

    def __init__(
        self,
        cgroup: KernelCgroup,
        events: CapEvents,
        *,
        hostname: str,
        link: str,
        denials: bool,
    ) -> None:
        self._cgroup = cgroup
        self._events = events
        self._hostname = hostname
        self._denials = denials
        self._counters = Counters(cgroup.leaves)
        self._traffic = LinkTraffic(link)
        self._machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self._usable = len(os.sched_getaffinity(0))
        self._asked: tuple[float, int | None] = (time.monotonic(), self._counters.read().cpu_usec)
        self._told = (-math.inf, "")
        self.peak_of = "cell" if self._counters.peak_begins_anew else "kernel"

    def read(self) -> Reading:
        """See :class:`.channels.Meter`."""
        counts = self._counters.read(denials=self._denials)
        sent, received = self._traffic.read() or (None, None)
        return Reading(
            time.monotonic(), counts.cpu_usec, counts.read_bytes, counts.written_bytes,
            sent, received, counts.refused_forks, counts.oom_kills,
        )  # fmt: skip

    def take_peak(self) -> int | None:
        """See :class:`.channels.Meter`."""
        return self._counters.take_peak()

    def snapshot(self) -> CgroupUsage:
        """That of the cgroup, with the peak of the kernel's whole life.

        Raises:
            OSError: a file could not be read.
        """
        usage = self._cgroup.usage()
        return dataclasses.replace(
            usage, memory_peak=self._counters.peak_of_life(usage.memory_peak)
        )

    def use(self) -> str:
        """See :class:`.channels.Meter`: the lines of ``%sandbox``."""
        told, text = self._told
        if time.monotonic() - told > _FRESH:
            try:
                usage = self.snapshot()
            except (OSError, SandboxError):
                usage = CgroupUsage()
            text = "".join(f"{name:<9} {line}\n" for name, line in self._lines(usage))
            self._told = (time.monotonic(), text)
        return text

    def cell(self, account: Account) -> str:
        """See :class:`.channels.Meter`: the line of ``%%sandbox``."""
        parts = [f"{account.wall_s:.3f} s"]
        if account.cpu_s is not None:
            parts.append(f"{account.cpu_s:.3f} s of cpu")
        if account.peak_bytes is not None:
            of = "" if account.peak_of == "cell" else " of the kernel's life"
            parts.append(f"memory peak{of} {size(account.peak_bytes)}")
        if account.read_bytes is not None and account.written_bytes is not None:
            parts.append(
                f"disk {size(account.read_bytes)} read, {size(account.written_bytes)} written"
            )
        if account.sent_bytes is not None and account.received_bytes is not None:
            parts.append(f"link {size(account.sent_bytes)} out, {size(account.received_bytes)} in")
        return f"[sandbox] this cell: {'; '.join(parts)}\n"

    def usage(self) -> dict[str, Any] | None:
        """See :class:`.channels.Meter`. The host of the reply is the sandbox: its CPUs and its
        memory are what the caps leave, and a percentage of the host's CPU is one of that.

        Memory is what the cap counts, without the page cache that Linux gives back first.
        """
        memory = self._counters.memory()
        cpu = self._counters.read().cpu_usec
        if not memory or cpu is None:
            return None
        caps, user = self._events.in_force
        cores = self._cores(caps, user)
        percent = self._cpu_percent(cpu)
        return {
            "hostname": self._hostname,
            "pid": _PID,
            "kernel_cpu": round(percent, 1),
            "kernel_memory": _working_set(memory),
            "cpu_count": math.ceil(cores),
            "host_cpu_percent": round(min(percent / cores, 100.0), 1),
            "host_virtual_memory": _virtual_memory(memory, self._total(caps, user)),
        }

    def close(self) -> None:
        """Before the cgroup is removed. Twice is once."""
        self._counters.close()
        self._traffic.close()

    # -- details ----------------------------------------------------------------------------

    def _cpu_percent(self, cpu_usec: int) -> float:
        """Of one core, since the last request, as psutil counts it."""
        (then, before), now = self._asked, time.monotonic()
        self._asked = (now, cpu_usec)
        if before is None or now <= then:
            return 0.0
        return max(cpu_usec - before, 0) / 10_000 / (now - then)

    def _cores(self, caps: Caps, user: Caps) -> float:
        asked = [c.cpus for c in (caps, user) if c.cpus is not None]
        return min([float(self._usable), *asked])

    def _total(self, caps: Caps, user: Caps) -> int:
        asked = [c.memory for c in (caps, user) if c.memory is not None]
        return min([self._machine, *asked])

    def _lines(self, usage: CgroupUsage) -> Iterator[tuple[str, str]]:
        caps, user = self._events.in_force
        if usage.memory_current is not None:
            peak = "" if usage.memory_peak is None else f", peak {size(usage.memory_peak)}"
            yield "memory", _of(size(usage.memory_current), _capped(caps.memory)) + peak
        if usage.cpu_usec is not None:
            cap = None if caps.cpus is None else f"{caps.cpus:g} cores"
            yield "cpu", _with_cap(f"{usage.cpu_usec / 1e6:.2f} s since the start", cap)
        if usage.pids_current is not None:
            cap = None if caps.pids is None else str(caps.pids)
            yield "tasks", _of(str(usage.pids_current), cap)
        if (traffic := self._traffic.read()) is not None:
            yield "link", f"{size(traffic[0])} out, {size(traffic[1])} in"
        shown = {"memory", "cpus", "pids"}
        for name, value in caps.asked().items():
            if name not in shown:
                yield name, str(value)
        for name, value in user.asked().items():
            text = size(value) if name == "memory" else str(value)
            yield f"user.{name}", f"{text} for all kernels of the user"


def size(count: int) -> str:
    """Bytes for a person."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} B"


def _capped(cap: int | None) -> str | None:
    return None if cap is None else size(cap)


def _of(used: str, cap: str | None) -> str:
    return f"{used}, no cap" if cap is None else f"{used} of {cap}"


def _with_cap(used: str, cap: str | None) -> str:
    return f"{used}, no cap" if cap is None else f"{used}, cap {cap}"


def _working_set(memory: dict[str, int]) -> int:
    return max(memory["current"] - memory.get("inactive_file", 0), 0)


def _virtual_memory(memory: dict[str, int], total: int) -> dict[str, Any]:
    """With the fields that psutil's ``virtual_memory`` has on Linux."""
    used = _working_set(memory)
    cached = memory.get("active_file", 0) + memory.get("inactive_file", 0)
    available = max(total - used, 0)
    return {
        "total": total,
        "available": available,
        "percent": round(100 * min(used / total, 1.0), 1),
        "used": used,
        "free": max(total - memory["current"], 0),
        "active": memory.get("active_anon", 0) + memory.get("active_file", 0),
        "inactive": memory.get("inactive_anon", 0) + memory.get("inactive_file", 0),
        "buffers": 0,
        "cached": cached,
        "shared": memory.get("shmem", 0),
        "slab": 0,
    }
