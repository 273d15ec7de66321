"""When the time of a cell or of a kernel is up: what the supervisor is to do, and when.

Pure but for its clock. The supervisor's loop tells it what runs and asks what is due. A cell gets
an interrupt first, a kernel SIGTERM; who has not ended ``time_grace`` seconds later is killed.
While a kernel is paused no cell of it runs and nobody leaves it unused; its lifetime goes on.
"""

from __future__ import annotations

import enum
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .death import TimeCap, TimeUp, human_time
from .engine.process import ExitStatus
from .spec import SandboxSpec

#: Seconds before the end of its lifetime at which a kernel says so, or a tenth of it if less.
_WARNING: Final = 60.0


class Act(enum.Enum):
    """What the supervisor is to do."""

    WARN = "warn"
    INTERRUPT = "interrupt"
    TERMINATE = "terminate"
    KILL = "kill"


@dataclass(frozen=True)
class Due:
    """``text`` is for the log, and for the notebook as well where there is a cell to show it."""

    act: Act
    text: str


class Deadlines:
    """Of one kernel that runs.

    ``wait_for_use``: the kernel before this one was ended by a time cap, and this one stands in its
    place, maybe unasked. Its clocks begin when somebody uses it, or it would go round for ever.
    """

    def __init__(
        self,
        spec: SandboxSpec,
        *,
        wait_for_use: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec = spec
        self._clock = clock
        caps = (spec.cell_timeout, spec.lifetime, spec.idle_timeout)
        self._any = any(cap is not None for cap in caps)
        self._began = self._used = None if wait_for_use else clock()
        self._uses = 0
        self._cell: int | None = None
        self._cell_began = 0.0
        self._paused: float | None = None
        self._warned = False
        self._asked: TimeCap | None = None
        self._asked_at = 0.0
        self._killed = False
        self._next: float | None = None
        self._stale = True
        """Something has changed that :attr:`_next` follows from."""

    def see(self, cell: int | None, uses: int) -> None:
        """``cell`` is the number of the one that runs; ``uses`` counts what clients asked for."""
        if not self._any or (cell == self._cell and uses == self._uses):
            return
        self._stale = True
        now = self._clock()
        self._used, self._uses = now, uses
        if self._began is None:
            self._began = now
        if cell != self._cell:
            self._cell, self._cell_began = cell, now
            if self._asked is TimeCap.CELL and not self._killed:
                self._asked = None

    def pause(self) -> None:
        """Twice is once."""
        if self._paused is None:
            self._paused, self._stale = self._clock(), True

    def resume(self) -> None:
        """As if no time had passed since, but for the lifetime."""
        if self._paused is None:
            return
        passed = self._clock() - self._paused
        self._paused, self._stale = None, True
        now = self._clock()
        self._cell_began = min(self._cell_began + passed, now)
        if self._used is not None:
            self._used = min(self._used + passed, now)
        if self._asked is TimeCap.CELL:
            self._asked_at += passed

    def timeout(self) -> float | None:
        """Seconds after which :meth:`due` has something; ``None``: not before something happens."""
        at = self._at()
        return None if at is None else max(at - self._clock(), 0.0)

    def due(self) -> Due | None:
        """The next thing to be done now, once; call it until there is none."""
        at = self._at()
        if at is None or at > self._clock():
            return None
        self._stale = True
        _, act = min(self._plan(), key=lambda each: each[0])
        return act()

    def blame(self, status: ExitStatus | None) -> TimeUp | None:
        """The cap that a kernel which ended with ``status`` was ended by, if it was one.

        An interrupt only ends a kernel that has no handler for it any more.
        """
        if self._asked is None:
            return None
        seconds = self._seconds(self._asked)
        if self._killed:
            return TimeUp(self._asked, seconds, self._spec.time_grace)
        if self._asked is not TimeCap.CELL or (status and status.signal == signal.SIGINT):
            return TimeUp(self._asked, seconds)
        return None

    # -- details ----------------------------------------------------------------------------

    def _at(self) -> float | None:
        """When the next thing comes, by the clock. Asked for at each message, so it is kept."""
        if self._stale:
            self._next = min((at for at, _ in self._plan()), default=None) if self._any else None
            self._stale = False
        return self._next

    def _plan(self) -> list[tuple[float, Callable[[], Due]]]:
        """What comes, and when, by the clock."""
        spec, plan = self._spec, list[tuple[float, Callable[[], Due]]]()
        if self._killed:
            return plan
        runs = self._paused is None
        if self._asked is not None and (runs or self._asked is not TimeCap.CELL):
            plan.append((self._asked_at + spec.time_grace, self._kill))
        if spec.lifetime is not None and self._began is not None:
            end = self._began + spec.lifetime
            if not self._warned:
                plan.append((end - min(_WARNING, spec.lifetime / 10), self._warn))
            if self._asked is not TimeCap.LIFETIME:
                plan.append((end, lambda: self._ask(TimeCap.LIFETIME)))
        if self._asked is None and runs:
            if spec.cell_timeout is not None and self._cell is not None:
                at = self._cell_began + spec.cell_timeout
                plan.append((at, lambda: self._ask(TimeCap.CELL)))
            if spec.idle_timeout is not None and self._cell is None and self._used is not None:
                at = self._used + spec.idle_timeout
                plan.append((at, lambda: self._ask(TimeCap.IDLE)))
        return plan

    def _ask(self, cap: TimeCap) -> Due:
        self._asked, self._asked_at = cap, self._clock()
        length = human_time(self._seconds(cap))
        if cap is TimeCap.CELL:
            return Due(
                Act.INTERRUPT,
                f"the cell has run for its cell_timeout of {length} and is interrupted; in "
                f"{human_time(self._spec.time_grace)} its kernel is killed",
            )
        return Due(Act.TERMINATE, f"the kernel is ended: its {cap.value} of {length} is over")

    def _warn(self) -> Due:
        self._warned = True
        whole = self._seconds(TimeCap.LIFETIME)
        left = human_time(min(_WARNING, whole / 10))
        return Due(
            Act.WARN,
            f"the kernel ends in {left}, when its lifetime of {human_time(whole)} is over: save "
            "what you need",
        )

    def _kill(self) -> Due:
        self._killed = True
        grace = human_time(self._spec.time_grace)
        return Due(Act.KILL, f"the kernel is killed: it went on for {grace} after it was told")

    def _seconds(self, cap: TimeCap) -> float:
        seconds = getattr(self._spec, cap.value)
        return float(seconds)
