"""The client's end of a lifeline: what it takes, what it keeps, and that it loses no descriptor."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from sandbox_kernel.client import Sandbox
from sandbox_kernel.engine import messages
from sandbox_kernel.errors import KernelStartError, MountError
from sandbox_kernel.protocol import Accepted, Exited, Failed, Kill, Notice, Signal, Started

STARTED = Started(7, 8, {"shell_port": 5}, ("warning",))
LOST = Exited(-9, "the supervisor of the sandbox was killed", "SandboxLost")


class Supervised:
    """A sandbox whose supervisor the test speaks for."""

    def __init__(self) -> None:
        ours, self.theirs = messages.pair()
        self.sandbox = Sandbox(ours)

    def say(self, message: Any, fds: list[int] | None = None) -> None:
        messages.send(self.theirs, message.to_message(), fds or [])

    def accept(self) -> subprocess.Popen[bytes]:
        """A process stands for the supervisor; its pidfd is handed over, and closed here."""
        child = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE)
        pidfd = os.pidfd_open(child.pid)
        self.say(Accepted(child.pid), [pidfd])
        os.close(pidfd)
        return child


@pytest.fixture
def supervised() -> Iterator[Supervised]:
    made = Supervised()
    yield made
    made.theirs.close()
    made.sandbox.close()


@pytest.fixture
def supervisor(supervised: Supervised) -> Iterator[subprocess.Popen[bytes]]:
    child = supervised.accept()
    with child:
        yield child
        child.kill()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_nothing_is_waited_for(supervised: Supervised) -> None:
    assert supervised.sandbox.take() is None


def test_the_life_of_a_sandbox(supervised: Supervised, supervisor: subprocess.Popen[bytes]) -> None:
    sandbox = supervised.sandbox
    assert sandbox.take() == Accepted(supervisor.pid)
    assert sandbox.started is None and sandbox.pid is None
    for message in (STARTED, Notice("a line"), Exited(3, "why")):
        supervised.say(message)
        assert sandbox.take() == message
    assert sandbox.started == STARTED and sandbox.pid == 7
    assert sandbox.exited == Exited(3, "why") and sandbox.returncode == 3
    supervised.say(Notice("after the end"))
    assert sandbox.take() is None


def test_a_supervisor_that_hangs_while_it_builds_can_be_killed(
    supervised: Supervised, supervisor: subprocess.Popen[bytes]
) -> None:
    supervised.sandbox.take()
    supervised.sandbox.kill_supervisor()
    assert supervisor.wait(10) == -signal.SIGKILL
    supervised.sandbox.kill_supervisor()  # again


def test_without_a_pidfd_nothing_is_killed(supervised: Supervised) -> None:
    supervised.sandbox.kill_supervisor()


@pytest.mark.parametrize("count", [0, 2])
def test_only_one_descriptor_is_a_pidfd(count: int, supervised: Supervised) -> None:
    supervised.say(Accepted(1), [0, 1][:count])
    before = open_descriptors()
    supervised.sandbox.take()
    assert supervised.sandbox._supervisor_pidfd == -1
    assert open_descriptors() == before


def test_the_first_pidfd_stays_the_supervisors(
    supervised: Supervised, supervisor: subprocess.Popen[bytes]
) -> None:
    supervised.sandbox.take()
    before, pidfd = open_descriptors(), supervised.sandbox._supervisor_pidfd
    supervised.say(Accepted(1), [0])
    supervised.sandbox.take()
    assert supervised.sandbox._supervisor_pidfd == pidfd
    assert open_descriptors() == before


@pytest.mark.parametrize(
    "message", [STARTED, Notice("x"), Exited(0, ""), Failed(MountError("x"))], ids=repr
)
def test_no_descriptor_comes_in_with_anything_else(message: Any, supervised: Supervised) -> None:
    before = open_descriptors()
    supervised.say(message, [0, 1])
    try:
        supervised.sandbox.take()
    except (MountError, KernelStartError):
        assert isinstance(message, (Failed, Exited))
    assert open_descriptors() == before


def test_a_start_that_failed_is_raised_and_is_the_end(supervised: Supervised) -> None:
    supervised.say(Failed(MountError("fact", cause="cause")))
    with pytest.raises(MountError, match="fact: cause"):
        supervised.sandbox.take()
    assert supervised.sandbox.exited == Exited(1, "fact: cause")
    assert supervised.sandbox.take() is None


def test_a_failure_of_a_kernel_that_ran_is_its_end(supervised: Supervised) -> None:
    supervised.say(STARTED)
    supervised.say(Failed(MountError("fact")))
    supervised.sandbox.take()
    assert supervised.sandbox.take() == Exited(1, "fact", "SandboxLost")


@pytest.mark.parametrize("unread", [False, True])
def test_an_end_without_a_word(unread: bool, supervised: Supervised) -> None:
    supervised.say(STARTED)
    if unread:
        supervised.sandbox.kill()
    supervised.theirs.close()
    assert supervised.sandbox.take() == STARTED
    assert supervised.sandbox.take() == supervised.sandbox.exited == LOST


def test_an_end_without_a_word_before_the_start(supervised: Supervised) -> None:
    supervised.theirs.close()
    with pytest.raises(KernelStartError, match="ended while it was building the sandbox"):
        supervised.sandbox.take()
    assert supervised.sandbox.exited == LOST


@pytest.mark.parametrize("raw", [b"{", b"5", b"{}", b'{"type":"kill"}', b'{"type":"started"}'])
def test_a_supervisor_that_says_what_nobody_says(
    raw: bytes, supervised: Supervised, supervisor: subprocess.Popen[bytes]
) -> None:
    supervised.say(STARTED)
    supervised.sandbox.take()
    supervised.sandbox.take()
    socket.send_fds(supervised.theirs, [raw], [0])
    before = open_descriptors()
    assert supervised.sandbox.take() == LOST
    assert open_descriptors() == before


@pytest.mark.parametrize("raw", [b"{", b"{}", b'{"type":"kill"}', b'{"type":"started"}'])
def test_a_supervisor_that_was_taken_over_is_killed(
    raw: bytes, supervised: Supervised, supervisor: subprocess.Popen[bytes]
) -> None:
    supervised.say(STARTED)
    supervised.sandbox.take()
    supervised.sandbox.take()
    supervised.theirs.send(raw)
    supervised.sandbox.take()
    assert supervisor.wait(5) == -signal.SIGKILL


def test_orders_arrive(supervised: Supervised) -> None:
    supervised.sandbox.signal(2)
    supervised.sandbox.kill()
    for order in (Signal(2), Kill()):
        assert messages.receive(supervised.theirs) == (order.to_message(), [])
    supervised.theirs.close()
    supervised.sandbox.kill()  # needs nobody


def test_closing_is_the_end_on_both_sides_and_can_be_done_twice(
    supervised: Supervised, supervisor: subprocess.Popen[bytes]
) -> None:
    supervised.sandbox.take()
    before = open_descriptors()
    duplicate = os.dup(supervised.sandbox.fileno())
    supervised.sandbox.close()
    poller = select.poll()
    poller.register(duplicate, select.POLLIN)
    assert poller.poll(0)  # whoever waits on it wakes
    os.close(duplicate)
    assert messages.receive(supervised.theirs) is None
    assert open_descriptors() == before - 2
    supervised.sandbox.close()
