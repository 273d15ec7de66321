"""What is said beside a cell about caps that it runs into, each once per cell, while it lives.

Owned by the supervisor. Memory that nears its cap is told by Linux as it happens; what nothing
tells of is read at the begin and the end of a cell: two or three small files.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from .capevents import CapEvents
from .caps import Caps
from .death import human_size
from .engine.cgroups import KernelCgroup, MemoryAlarm, Refusals, refusals
from .errors import SandboxError
from .spec import MIB, MemoryPressure, SandboxSpec

#: Of the cap on memory; and bytes, so that there is time to interrupt a cell.
_SHARE: Final = 0.9
_HEADROOM: Final = 64 * MIB
_NEARLY: Final = 0.98
#: Seconds. That a shorter cell was slowed down nobody needs to know.
_SHORT: Final = 1.0
#: Seconds in which the cap ``cpus`` is counted.
_PERIOD: Final = 0.1
#: Seconds between two looks at the memory, whatever Linux tells.
_INTERVAL: Final = 0.02


class _Teller(Protocol):
    def tell(self, text: str) -> None:
        """A line in the output of the cell that runs."""
        ...


def threshold(caps: Caps) -> int | None:
    """Bytes at which a cell is warned: ``memory_high``, else nine tenths of the cap, with some
    MiB left of it but for the smallest; ``None`` without a cap."""
    if caps.memory_high is not None:
        return caps.memory_high
    if caps.memory is None:
        return None
    return max(min(int(caps.memory * _SHARE), caps.memory - _HEADROOM), caps.memory // 2)


class Beside:
    """``send`` has a signal sent to the kernel's process group."""

    def __init__(
        self,
        spec: SandboxSpec,
        cgroup: KernelCgroup,
        events: CapEvents,
        alarm: MemoryAlarm,
        teller: _Teller,
        send: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec = spec
        self._cgroup = cgroup
        self._events = events
        self._alarm = alarm
        self._teller = teller
        self._send = send
        self._clock = clock
        self._watched: tuple[int | None, int | None] = (None, None)
        self._cell = False
        self._warned = False
        self._high: int | None = None
        """What was in use when it was warned of last; a cell that frees it is left alone."""
        self._looked = self._began = 0.0
        self._at_begin = Refusals()
        self._adjust()

    def fileno(self) -> int:
        """Readable when memory is to be looked at: call :meth:`look`."""
        return self._alarm.fileno()

    def begin(self) -> None:
        """A cell begins."""
        self._adjust()
        self._cell, self._warned, self._began = True, False, self._clock()
        self._at_begin = self._counts()
        if self._high is not None:  # a cell before has left that
            self._high = _quietly(self._alarm.used)

    def end(self) -> None:
        """Its idle is about to be published."""
        if not self._cell:
            return
        self._cell = False
        caps, now = self._events.caps, self._counts()
        refused = now.forks - self._at_begin.forks
        if refused > 0 and caps.pids is not None:
            times = f"{refused} times" if refused > 1 else "once"
            self._teller.tell(
                f"a new process or thread was refused {times}: the cap is {caps.pids} (pids)"
            )
        self._tell_throttling(caps, now)

    def look(self) -> None:
        """Linux says that memory is short, or was a moment ago."""
        self._alarm.take()
        caps = self._events.caps
        limit, now = threshold(caps), self._clock()
        if self._warned or not self._cell or limit is None or now - self._looked < _INTERVAL:
            return
        self._looked = now
        used = _quietly(self._alarm.used)
        if used is None or used < self._limit(limit, caps):
            return
        self._warned, self._high = True, used
        interrupts = self._spec.on_memory_pressure is MemoryPressure.INTERRUPT
        self._teller.tell(_sentence(used, caps) + ("; the cell is interrupted" * interrupts))
        if interrupts:
            self._send(signal.SIGINT)

    def _limit(self, limit: int, caps: Caps) -> float:
        """That of a cell that begins beyond it is half of what is left. Usage is counted in
        batches, so a little less is enough."""
        if self._high is None or self._high < limit * _NEARLY:
            return limit * _NEARLY
        return (self._high + (caps.memory or 2 * self._high)) / 2

    def _adjust(self) -> None:
        """Caps are changed while a kernel runs."""
        caps = self._events.caps
        wanted = (threshold(caps), caps.memory)
        if wanted != self._watched and wanted[0] is not None:
            self._alarm.watch(wanted[0], wanted[1] or wanted[0])
        self._watched = wanted

    def _counts(self) -> Refusals:
        """Only where a cap makes them tell something."""
        caps = self._events.caps
        if caps.cpus is None and caps.pids is None:
            return Refusals()
        return _quietly(lambda: refusals(self._cgroup)) or Refusals()

    def _tell_throttling(self, caps: Caps, now: Refusals) -> None:
        """Counted in periods of a tenth of a second: in how many the cell had to wait."""
        seconds = self._clock() - self._began
        held = (now.periods - self._at_begin.periods) * _PERIOD
        if caps.cpus is None or seconds < _SHORT:
            return
        if held > seconds * self._spec.warn_throttled:
            self._teller.tell(
                f"the cell was held back by the cap of {caps.cpus:g} CPUs (cpus) during "
                f"{min(held, seconds):.1f} of {seconds:.1f} seconds"
            )


def _sentence(used: int, caps: Caps) -> str:
    if caps.memory is None:
        return f"memory: {human_size(used)} in use; beyond memory_high the kernel is slowed down"
    return (
        f"memory: {human_size(used)} of {human_size(caps.memory)} in use; at the cap the kernel is "
        "killed"
    )


_T = TypeVar("_T")


def _quietly(read: Callable[[], _T]) -> _T | None:
    try:
        return read()
    except (SandboxError, OSError):
        return None
