"""A sandbox of the pool, while nobody has it: complete, locked down, its kernel up and idle.

The supervisor waits here between the end of set-up and its first client. Nothing of a client's runs
yet, and the proxy is not there. It ends when its client gives it up, when the kernel ends, when a
cap is run into, or when the machine is short of memory: a start can do without it.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from typing import Final

from .binding import WAITS
from .capevents import CapEvents
from .channels import BackEnds
from .console import Console
from .engine.container import Container
from .errors import KernelStartError, ProtocolError
from .lifeline import Lifeline
from .protocol import Bind, Kill, Waits

#: Pressure stall information of the whole machine: <https://docs.kernel.org/accounting/psi.html>.
_PRESSURE: Final = "/proc/pressure/memory"
#: Somebody waited for memory for 200 ms of 2 s, the only window that an ordinary user may have.
_TRIGGER: Final = b"some 200000 2000000\0"


def watch_pressure() -> int:
    """A descriptor that has POLLPRI when memory is short; -1 where Linux was built without.

    Called before the supervisor is locked down.
    """
    try:
        fd = os.open(_PRESSURE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        os.write(fd, _TRIGGER)
    except OSError:  # before Linux 6.5 only root may
        os.close(fd)
        return -1
    return fd


class Waiting:
    """One poll loop, until somebody wants the sandbox or it ends."""

    def __init__(
        self,
        lifeline: Lifeline,
        box: Container,
        console: Console,
        events: CapEvents,
        back_ends: BackEnds,
        bound: int,
        pressure: int,
        deadline: float,
    ) -> None:
        self.lifeline = lifeline
        self.box = box
        self.console = console
        self.events = events
        self.back_ends = back_ends
        self.bound = bound
        self.pressure = pressure
        self.deadline = deadline
        self.kernel_is_up = False
        self.bind: Bind | None = None

    def serve(self) -> Bind:
        """Raises:
        ProtocolError: the client has given it up, or said what cannot be said to it.
        KernelStartError: the kernel did not come up, or it ends for a reason that is said.
        """
        poller = select.poll()
        for fd in (self.lifeline, self.box.channel, self.box.pidfd, self.console.read_end):
            poller.register(fd, select.POLLIN)
        poller.register(self.bound, select.POLLIN)
        poller.register(self.events.fileno(), select.POLLIN)
        if self.pressure >= 0:
            poller.register(self.pressure, select.POLLPRI)
        while self.bind is None or not self.kernel_is_up:
            ready = {fd for fd, _ in poller.poll(self._timeout_ms())}
            if not self.kernel_is_up and time.monotonic() > self.deadline:
                raise self._ended("it said nothing for too long")
            for line in self.console.read() if self.console.read_end in ready else ():
                self.lifeline.notice(line)
            if self.box.pidfd in ready or self.box.channel.fileno() in ready:
                self._from_init()
            if self.bound in ready:
                self._from_kernel()
            if self.lifeline.fileno() in ready:
                self._from_client()
            if self.bind is None:
                self._is_it_worth_it(ready)
        return self.bind

    def _timeout_ms(self) -> int | None:
        if self.kernel_is_up:
            return None
        return int(max(self.deadline - time.monotonic(), 0) * 1000) + 1

    def _from_client(self) -> None:
        try:
            order = self.lifeline.order()
        except BlockingIOError:
            return
        match order:
            case None | Kill():
                raise ProtocolError("the client gave the sandbox up before it was used")
            case Bind() if self.bind is None:
                self.bind = order
            case _:
                raise ProtocolError(f"{type(order).__name__} was sent to a sandbox that waits")

    def _from_init(self) -> None:
        """It has nothing to say before the kernel ends, but which process that is."""
        with contextlib.suppress(BlockingIOError):
            message = self.box.receive()
            if message is None or message["type"] != "kernel":
                raise self._ended("it ended")

    def _from_kernel(self) -> None:
        if os.read(self.bound, 1) != WAITS:
            raise self._ended("it ended")
        self.kernel_is_up = True
        self.back_ends.connect_ahead()
        self.lifeline.say(Waits())

    def _is_it_worth_it(self, ready: set[int]) -> None:
        if self.pressure in ready:
            raise self._ended("the machine is short of memory")
        if self.events.fileno() in ready and (news := self.events.news(fired=True)):
            raise self._ended("; ".join(news))

    def _ended(self, why: str) -> KernelStartError:
        cause = self.console.with_tail(why)
        return KernelStartError("a kernel of the pool ended while it waited", cause=cause)
