"""How much memory messages hold in this process, looked at while it works.

libzmq delivers whole messages: one that has no end is gathered without a bound and without waking
anybody. So the process has itself woken by the CPU time that it uses, whichever thread uses it: an
idle one never wakes, and one that gathers cannot do so for long unseen. A look takes microseconds.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import time
from collections.abc import Callable
from typing import Final

from ..syscalls import malloc_trim

#: Seconds of CPU time of all threads together between two looks.
_INTERVAL: Final = 0.02
#: Seconds from one trim to the next.
_TRIM_INTERVAL: Final = 0.1


class Gauge:
    """Made before the walls of this process stand, which may forbid /proc; one a process.

    It takes SIGPROF, the profiling timer and Python's wake-up descriptor for itself.
    """

    def __init__(
        self,
        statm: str = "/proc/self/statm",
        *,
        clock: Callable[[], float] = time.monotonic,
        trim: Callable[[], object] = malloc_trim,
    ) -> None:
        self._clock = clock
        self._trim = trim
        self._statm = os.open(statm, os.O_RDONLY | os.O_CLOEXEC)
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._trimmed = 0.0
        self._base = self._private()

    def fileno(self) -> int:
        """For a poll: readable when a look is due."""
        return self._read

    def start(self) -> None:
        """Called by the proxy from the main thread, when it begins to serve."""
        signal.signal(signal.SIGPROF, lambda number, frame: None)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        signal.setitimer(signal.ITIMER_PROF, _INTERVAL, _INTERVAL)

    def is_due(self) -> bool:
        """Is a look due? Until the next time, then, it is not."""
        try:
            return bool(os.read(self._read, 512))
        except BlockingIOError:
            return False

    def used(self, enough: int) -> int:
        """Bytes that this process holds more than when the gauge was made.

        Beyond ``enough`` what was freed is given back to the system first: the C library keeps
        small pieces. That takes milliseconds, so not each time.
        """
        used = self._private() - self._base
        now = self._clock()
        if used <= enough or now - self._trimmed < _TRIM_INTERVAL:
            return used
        self._trim()
        self._trimmed = self._clock()
        return self._private() - self._base

    def _private(self) -> int:
        _, resident, shared, *_ = os.pread(self._statm, 128, 0).split()
        return (int(resident) - int(shared)) * mmap.PAGESIZE

    def close(self) -> None:
        """Twice is once."""
        if self._statm < 0:
            return
        signal.setitimer(signal.ITIMER_PROF, 0)
        with contextlib.suppress(ValueError):  # not the main thread: it was never started
            signal.set_wakeup_fd(-1)
        for fd in (self._statm, self._read, self._write):
            os.close(fd)
        self._statm = -1
