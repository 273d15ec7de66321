"""How much this process holds, and when it is looked at."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox_kernel.channels.gauge import Gauge

PAGE = os.sysconf("SC_PAGESIZE")


class Process:
    """A process as the gauge sees it, and the C library in it; numbers are pages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = 1000.0
        self.freed = 0
        self.trims = 0
        self.holds(100, shared=40)

    def clock(self) -> float:
        return self.now

    def holds(self, resident: int, *, shared: int = 40) -> None:
        self.resident, self.shared = resident, shared
        self.path.write_text(f"9999 {resident} {shared} 3 0 500 0\n")

    def trim(self) -> None:
        self.trims += 1
        self.holds(self.resident - self.freed, shared=self.shared)
        self.freed = 0


@pytest.fixture
def process(tmp_path: Path) -> Process:
    return Process(tmp_path / "statm")


@pytest.fixture
def gauge(process: Process) -> Iterator[Gauge]:
    gauge = Gauge(str(process.path), clock=process.clock, trim=process.trim)
    yield gauge
    gauge.close()


# -- how much ------------------------------------------------------------------------------------


def test_what_was_there_before_and_what_is_shared_do_not_count(
    gauge: Gauge, process: Process
) -> None:
    assert gauge.used(0) == 0
    process.holds(130)
    assert gauge.used(30 * PAGE) == 30 * PAGE
    process.holds(150, shared=60)
    assert gauge.used(30 * PAGE) == 30 * PAGE
    process.holds(90)
    assert gauge.used(0) == -10 * PAGE
    assert process.trims == 0


def test_beyond_what_is_enough_the_freed_is_given_back_first(
    gauge: Gauge, process: Process
) -> None:
    process.holds(200)
    process.freed = 70
    assert gauge.used(99 * PAGE) == 30 * PAGE
    assert process.trims == 1


def test_that_is_done_once_in_a_while(gauge: Gauge, process: Process) -> None:
    process.holds(200)
    assert gauge.used(0) == 100 * PAGE
    process.now += 0.09
    process.freed = 70
    assert gauge.used(0) == 100 * PAGE
    assert process.trims == 1
    process.now += 0.02
    assert gauge.used(0) == 30 * PAGE
    assert process.trims == 2


def test_of_this_process(gauge: Gauge) -> None:
    own = Gauge()
    try:
        before = own.used(0)
        held = bytearray(64 * 1024**2)
        held[::PAGE] = b"x" * len(held[::PAGE])
        assert own.used(1 << 60) - before > 60 * 1024**2
        del held
        assert own.used(0) - before < 8 * 1024**2
    finally:
        own.close()


# -- when ----------------------------------------------------------------------------------------


@pytest.fixture
def handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGPROF)
    yield
    signal.signal(signal.SIGPROF, before)


def test_it_wakes_who_uses_the_cpu(gauge: Gauge, handler: None) -> None:
    assert not gauge.is_due()
    gauge.start()
    while not select.select([gauge], [], [], 0)[0]:
        pass  # which is what uses it
    assert gauge.is_due()
    gauge.close()
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)
    assert signal.set_wakeup_fd(-1) == -1


def test_many_wake_ups_are_one_look(gauge: Gauge) -> None:
    os.write(gauge._write, b"\0" * 100)
    assert gauge.is_due()
    assert not gauge.is_due()


def test_closed_twice_is_closed_once(gauge: Gauge) -> None:
    fds = gauge._statm, gauge._read, gauge._write
    assert not any(map(os.get_inheritable, fds))
    gauge.close()
    gauge.close()
    for fd in fds:
        with pytest.raises(OSError):
            os.fstat(fd)
