"""iopub's queue: order, bounds, what is kept; with a socket that says when it has room."""

from __future__ import annotations

from typing import Any, cast

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from sandbox_kernel.channels.accounting import Accounting
from sandbox_kernel.channels.answers import Answers
from sandbox_kernel.channels.broadcast import Broadcast
from sandbox_kernel.channels.connection import Channel
from sandbox_kernel.channels.limits import MessageLimits
from sandbox_kernel.channels.messages import Composer, Header, Signer, split
from sandbox_kernel.channels.pending import PendingTable
from sandbox_kernel.channels.report import Report

COST = 1024
LIMITS = MessageLimits(
    iopub_queue_bytes=4 * (COST + 10), iopub_reserve_bytes=3 * (COST + 10), stall_seconds=5
)


class FakeXpub:
    """Has room for ``room`` messages; lossy while NODROP is off, as libzmq is."""

    def __init__(self) -> None:
        self.room = 0
        self.nodrop = 1
        self.sent: list[list[bytes]] = []
        self.lossy: list[list[bytes]] = []
        self.events: list[bytes] = []
        self.parts: list[bytes] = []

    def send(self, frame: bytes, flags: int, copy: bool) -> None:
        """It refuses a message at its first part, or takes all of them."""
        assert flags & zmq.NOBLOCK
        self.parts.append(frame)
        if not self.parts[1:] and self.nodrop and not self.room:
            self.parts.clear()
            raise zmq.Again
        if not flags & zmq.SNDMORE:
            self.take(self.parts)
            self.parts = []

    def take(self, frames: list[bytes]) -> None:
        if not self.nodrop:
            self.lossy.append(frames)
        else:
            self.room -= 1
            self.sent.append(frames)

    def setsockopt(self, option: int, value: int) -> None:
        assert option == zmq.XPUB_NODROP
        self.nodrop = value

    def recv(self, flags: int) -> bytes:
        if not self.events:
            raise zmq.Again
        return self.events.pop(0)


class Case:
    def __init__(self) -> None:
        self.socket = FakeXpub()
        self.now = 0.0
        self.report = Report(lambda line: None, 10.0)
        composer = Composer(Signer(b"k", "hmac-sha256"))
        self.broadcast = Broadcast(
            cast(Any, self.socket), LIMITS, composer, self.report, clock=lambda: self.now
        )

    def send(self, name: str, *, essential: bool = False) -> None:
        self.broadcast.send([name.encode().ljust(10)], essential=essential)

    def drained(self) -> list[str]:
        self.socket.room = 1000
        self.broadcast.flush()
        assert not self.broadcast.held
        return [
            split(frames).content.decode() if len(frames) > 1 else frames[0].decode().strip()
            for frames in self.socket.sent
        ]


@pytest.fixture
def case() -> Case:
    return Case()


def test_what_does_not_fit_waits_in_order(case: Case) -> None:
    case.socket.room = 1
    for name in "abcd":
        case.send(name)
    assert case.broadcast.held and case.broadcast.timeout_ms() == 5
    assert case.drained() == ["a", "b", "c", "d"]
    assert case.broadcast.timeout_ms() is None


def test_output_is_shed_and_status_is_kept(case: Case) -> None:
    for number in range(10):
        case.send(f"out{number}")
    case.send("idle", essential=True)
    case.send("out-late")
    *before, loss, idle, late_loss = case.drained()
    assert before == ["out0", "out1", "out2", "out3"]
    assert "6 messages of output (60 bytes) were dropped" in loss
    assert idle == "idle"
    assert "1 messages of output (10 bytes)" in late_loss
    assert sum(case.report.counts.values()) == 7


def test_the_reserve_is_bounded_too(case: Case) -> None:
    for number in range(100):
        case.send(f"idle{number}", essential=True)
    names = case.drained()
    assert names[:7] == [f"idle{n}" for n in range(7)]
    assert len(names) == 8 and "93 messages" in names[7]


def test_an_idle_without_room_is_owed_until_there_is_some(case: Case) -> None:
    pending = PendingTable(8)
    composer = Composer(Signer(b"", "hmac-sha256"))
    answers = Answers(composer, case.broadcast, {}, pending, Accounting(MessageLimits()))
    pending.add(Channel.SHELL, (b"c",), Header("id", "execute_request", "s"), b'{"msg_id":"id"}')
    (request,) = pending
    request.replied = True
    for number in range(100):
        case.send(f"status{number}", essential=True)
    answers.idle(request)
    answers.pay()
    assert len(pending) == 1 and not case.broadcast.has_room
    case.drained()
    answers.pay()
    assert b"idle" in case.socket.sent[-1][-1] and len(pending) == 0


def test_a_small_frame_that_waits_does_not_keep_what_it_was_received_with(case: Case) -> None:
    case.broadcast.send([zmq.Frame(b"small"), zmq.Frame(b"x" * 5000)], essential=True)
    (waits,) = case.broadcast._queue
    assert [type(frame) for frame in waits.frames] == [bytes, bytes]


def test_a_single_stalled_reader_is_never_passed_over(case: Case) -> None:
    case.socket.events = [b"\1"]
    case.broadcast.take_subscriptions()
    case.send("a")
    case.now = 1000.0
    case.broadcast.flush()
    assert case.broadcast.held and not case.socket.lossy
    assert case.broadcast.timeout_ms() == 50
    assert case.drained() == ["a"]


def test_one_of_two_is_passed_over_after_a_while(case: Case) -> None:
    case.socket.events = [b"\1", b"\1"]
    case.broadcast.take_subscriptions()
    case.send("a")
    case.send("b")
    case.now = 4.9
    case.broadcast.flush()
    assert not case.socket.lossy
    case.now = 5.0
    case.broadcast.flush()
    assert case.socket.lossy == [[b"a".ljust(10)]]
    assert case.socket.nodrop == 1
    assert case.drained() == ["b"]


def test_who_has_gone_does_not_count(case: Case) -> None:
    case.socket.events = [b"\1", b"\1", b"\0"]
    case.broadcast.take_subscriptions()
    case.send("a")
    case.now = 6.0
    case.broadcast.flush()
    assert not case.socket.lossy


def test_a_welcome_waits_for_the_kernel(case: Case) -> None:
    case.socket.room = 10
    case.socket.events = [b"\1", b"\1stream", b"\1\xff", b"", b"\2nonsense", b"\1" + b"x" * 2000]
    case.broadcast.take_subscriptions()
    assert case.socket.sent == []
    case.broadcast.upstream_is_live()
    case.broadcast.upstream_is_live()
    topics = [split(frames).identities for frames in case.socket.sent]
    assert topics == [(), (b"stream",)]


@given(st.lists(st.tuples(st.sampled_from(["output", "status", "room"]), st.integers(0, 40))))
def test_memory_is_bounded_and_order_is_kept(steps: list[tuple[str, int]]) -> None:
    case = Case()
    for number, (kind, amount) in enumerate(steps):
        if kind == "room":
            case.socket.room = amount
            case.broadcast.flush()
        else:
            case.send(f"{number}", essential=kind == "status")
        assert case.broadcast._queued <= LIMITS.iopub_queue_bytes + LIMITS.iopub_reserve_bytes
        assert case.broadcast._queued == sum(item.cost for item in case.broadcast._queue)
    numbers = [int(name) for name in case.drained() if name.isdigit()]
    assert numbers == sorted(numbers)
