"""When the time of a cell or of a kernel is up; with a clock that the test turns."""

from __future__ import annotations

import itertools
import signal
from typing import Any, Final

import pytest

from sandbox_kernel.deadlines import Act, Deadlines
from sandbox_kernel.death import TimeCap, TimeUp
from sandbox_kernel.engine.process import ExitStatus
from sandbox_kernel.spec import parse_spec

KILLED: Final = ExitStatus(signal=signal.SIGKILL)
INTERRUPTED: Final = ExitStatus(signal=signal.SIGINT)
TERMINATED: Final = ExitStatus(signal=signal.SIGTERM)


class Kernel:
    """Deadlines and the time, as the supervisor's loop turns: it wakes when it was told to."""

    def __init__(self, *, wait_for_use: bool = False, **config: Any) -> None:
        self.now = 0.0
        self._uses = itertools.count(1)
        self.uses = 0
        self.cell: int | None = None
        self.deadlines = Deadlines(
            parse_spec(config), wait_for_use=wait_for_use, clock=lambda: self.now
        )

    def use(self, cell: int | None = None) -> None:
        self.uses = next(self._uses)
        self.run(cell)

    def run(self, cell: int | None) -> None:
        self.cell = cell
        self.deadlines.see(cell, self.uses)

    def until(self, end: float) -> list[tuple[float, Act]]:
        """What is due until then, and when."""
        found = []
        while True:
            self.deadlines.see(self.cell, self.uses)
            while (due := self.deadlines.due()) is not None:
                found.append((self.now, due.act))
            wait = self.deadlines.timeout()
            if wait is None or self.now + wait > end:
                self.now = end
                return found
            assert wait > 0, "it would spin"
            self.now += wait


def test_without_a_cap_nothing_is_due_and_nobody_is_woken() -> None:
    kernel = Kernel()
    kernel.use(cell=1)
    assert kernel.until(1e9) == []
    assert kernel.deadlines.timeout() is None
    assert kernel.deadlines.blame(KILLED) is None


# -- a cell ------------------------------------------------------------------------------------


def test_a_cell_is_interrupted_and_its_kernel_killed_if_it_goes_on() -> None:
    kernel = Kernel(cell_timeout=60, time_grace=5)
    kernel.now = 100
    kernel.use(cell=1)
    assert kernel.until(1000) == [(160, Act.INTERRUPT), (165, Act.KILL)]
    assert kernel.deadlines.blame(KILLED) == TimeUp(TimeCap.CELL, 60, 5)


def test_a_cell_that_ends_when_it_is_interrupted_is_forgiven() -> None:
    kernel = Kernel(cell_timeout=60, time_grace=5)
    kernel.use(cell=1)
    assert kernel.until(63) == [(60, Act.INTERRUPT)]
    kernel.run(None)
    assert kernel.until(1000) == []
    assert kernel.deadlines.blame(KILLED) is None
    kernel.use(cell=2)
    assert kernel.until(1065) == [(1060, Act.INTERRUPT), (1065, Act.KILL)]


def test_each_cell_has_a_time_of_its_own() -> None:
    kernel = Kernel(cell_timeout=60, time_grace=5)
    for cell in range(1, 10):
        kernel.use(cell)
        assert kernel.until(cell * 59) == []


def test_only_an_interrupt_that_killed_the_kernel_is_blamed_before_the_kill() -> None:
    kernel = Kernel(cell_timeout=60)
    kernel.use(cell=1)
    kernel.until(61)
    assert kernel.deadlines.blame(INTERRUPTED) == TimeUp(TimeCap.CELL, 60)
    assert kernel.deadlines.blame(ExitStatus(signal=signal.SIGSEGV)) is None
    assert kernel.deadlines.blame(ExitStatus(code=3)) is None
    assert kernel.deadlines.blame(None) is None


# -- a kernel ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("lifetime", "warned"), [(3600, 3540), (100, 90)])
def test_a_lifetime_ends_whatever_runs_and_says_so_before(lifetime: int, warned: int) -> None:
    kernel = Kernel(lifetime=lifetime, time_grace=5)
    kernel.use(cell=1)
    assert kernel.until(9999) == [
        (warned, Act.WARN), (lifetime, Act.TERMINATE), (lifetime + 5, Act.KILL),
    ]  # fmt: skip
    assert kernel.deadlines.blame(KILLED) == TimeUp(TimeCap.LIFETIME, lifetime, 5)


@pytest.mark.parametrize("status", [TERMINATED, ExitStatus(code=0), None])
def test_however_it_obeys_its_lifetime_is_blamed(status: ExitStatus | None) -> None:
    kernel = Kernel(lifetime=100)
    kernel.until(101)
    assert kernel.deadlines.blame(status) == TimeUp(TimeCap.LIFETIME, 100)


def test_a_lifetime_that_is_over_while_a_cell_was_interrupted() -> None:
    kernel = Kernel(cell_timeout=60, lifetime=62, time_grace=5)
    kernel.use(cell=1)
    acts = [(55.8, Act.WARN), (60, Act.INTERRUPT), (62, Act.TERMINATE), (67, Act.KILL)]
    assert kernel.until(100) == acts


def test_a_kernel_is_idle_when_no_cell_runs_and_nobody_asks() -> None:
    kernel = Kernel(idle_timeout=60)
    kernel.until(59)
    kernel.use()
    assert kernel.until(100) == []
    kernel.use(cell=1)
    assert kernel.until(1000) == []
    kernel.run(None)
    assert kernel.until(1060) == [(1060, Act.TERMINATE)]
    assert kernel.deadlines.blame(TERMINATED) == TimeUp(TimeCap.IDLE, 60)


@pytest.mark.parametrize("key", ["idle_timeout", "lifetime"])
def test_one_in_the_place_of_another_waits_for_its_first_use(key: str) -> None:
    """Who restarts whatever has died would otherwise do so for ever."""
    kernel = Kernel(wait_for_use=True, **{key: 60})
    assert kernel.until(1000) == []
    kernel.use()
    assert (1060, Act.TERMINATE) in kernel.until(1060)


# -- paused ------------------------------------------------------------------------------------


def test_the_time_of_a_pause_is_not_that_of_a_cell() -> None:
    kernel = Kernel(cell_timeout=60, time_grace=5)
    kernel.use(cell=1)
    kernel.until(50)
    kernel.deadlines.pause()
    kernel.deadlines.pause()
    assert kernel.until(1050) == []
    kernel.deadlines.resume()
    kernel.deadlines.resume()
    assert kernel.until(2000) == [(1060, Act.INTERRUPT), (1065, Act.KILL)]


def test_the_grace_of_a_cell_waits_for_the_end_of_a_pause() -> None:
    kernel = Kernel(cell_timeout=60, time_grace=5)
    kernel.use(cell=1)
    kernel.until(62)
    kernel.deadlines.pause()
    assert kernel.until(1062) == []
    kernel.deadlines.resume()
    assert kernel.until(2000) == [(1065, Act.KILL)]


def test_who_is_paused_is_not_idle() -> None:
    kernel = Kernel(idle_timeout=60)
    kernel.until(50)
    kernel.deadlines.pause()
    assert kernel.until(1050) == []
    kernel.deadlines.resume()
    assert kernel.until(1060) == [(1060, Act.TERMINATE)]


def test_a_cell_that_was_asked_for_during_a_pause_begins_at_its_end() -> None:
    kernel = Kernel(cell_timeout=60, idle_timeout=10)
    kernel.deadlines.pause()
    kernel.until(500)
    kernel.use(cell=1)
    kernel.until(1000)
    kernel.deadlines.resume()
    assert kernel.until(1060) == [(1060, Act.INTERRUPT)]


def test_a_pause_does_not_prolong_a_life() -> None:
    kernel = Kernel(lifetime=100, time_grace=5)
    kernel.deadlines.pause()
    assert [act for _, act in kernel.until(200)] == [Act.WARN, Act.TERMINATE, Act.KILL]
