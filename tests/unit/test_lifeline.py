"""The supervisor's end of the lifeline over real sockets: who waits and who may not."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from sandbox_kernel import lifeline as module
from sandbox_kernel.engine import messages
from sandbox_kernel.errors import KernelStartError, ProtocolError, SandboxError
from sandbox_kernel.lifeline import Lifeline
from sandbox_kernel.protocol import Exited, Failed, Kill, LaunchRequest, Signal, Started
from sandbox_kernel.spec import SandboxSpec

REQUEST: Final = LaunchRequest("x1", SandboxSpec(), {"key": "k"}, "/srv", {"A": "b"}, None, ("-x",))
EXITED: Final = Exited(-9, "the kernel was ended as asked")


class Ends:
    """Both ends of a lifeline: the supervisor's as it is, the client's as a bare socket."""

    def __init__(self) -> None:
        self.socket, self.client = messages.pair()
        self.client.settimeout(10)
        self.ours = Lifeline(self.socket)

    def receive(self) -> tuple[dict[str, Any], list[int]]:
        received = messages.receive(self.client)
        assert received is not None
        return received

    def drain(self) -> list[dict[str, Any]]:
        """All that is there, without waiting."""
        self.client.setblocking(False)  # a socket with a timeout waits whatever the flags say
        found = []
        with contextlib.suppress(BlockingIOError):
            while (received := messages.receive(self.client)) is not None:
                found.append(received[0])
        self.client.settimeout(10)
        return found

    def fill(self) -> int:
        """Until not one message more passes; the number of those that did."""
        raw = json.dumps({"type": "notice", "text": "x" * 1000}).encode()
        before, count = self.socket.gettimeout(), 0
        self.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while self.socket.send(raw):
                count += 1
        self.socket.settimeout(before)
        return count


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.socket.close()
    made.client.close()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience of a moment, where it is to run out."""
    monkeypatch.setattr(module, "_PATIENCE", 0.05)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# -- the request -------------------------------------------------------------------------------


def test_the_request_arrives(ends: Ends) -> None:
    messages.send(ends.client, REQUEST.to_message())
    assert ends.ours.request() == REQUEST


def test_a_request_that_comes_late_is_waited_for(ends: Ends) -> None:
    got: list[LaunchRequest] = []
    thread = threading.Thread(target=lambda: got.append(ends.ours.request()))
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    messages.send(ends.client, REQUEST.to_message())
    thread.join(10)
    assert got == [REQUEST]


def test_a_client_without_a_request_is_not_waited_for_for_ever(ends: Ends, soon: None) -> None:
    with pytest.raises(ProtocolError) as caught:
        ends.ours.request()
    assert caught.value.message == "no request came within 0.05 seconds"


def test_a_client_that_went_away_before_its_request(ends: Ends) -> None:
    ends.client.close()
    with pytest.raises(ProtocolError) as caught:
        ends.ours.request()
    assert caught.value.message == "the client went away before it had sent its request"


MALFORMED: Final[list[dict[str, Any]]] = [
    *({k: v for k, v in REQUEST.to_message().items() if k != key} for key in REQUEST.to_message()),
    REQUEST.to_message() | {"environment": 5},
    REQUEST.to_message() | {"environment": ["A"]},
    REQUEST.to_message() | {"spec": None},
    REQUEST.to_message() | {"spec": 5},
    REQUEST.to_message() | {"arguments": 5},
    Signal(2).to_message(),
    EXITED.to_message(),
]


@pytest.mark.parametrize(
    "message", [m for m in MALFORMED if "type" in m], ids=lambda m: str(m)[:40]
)
def test_a_request_that_is_none(message: dict[str, Any], ends: Ends) -> None:
    messages.send(ends.client, message)
    with pytest.raises(ProtocolError):
        ends.ours.request()


@pytest.mark.parametrize("raw", [b"{", b"5", b'{"type":5}', b"{}", b"\xff"])
def test_a_request_that_is_no_message(raw: bytes, ends: Ends) -> None:
    ends.client.send(raw)
    with pytest.raises(ProtocolError):
        ends.ours.request()


def test_a_request_with_a_spec_that_cannot_be_says_so(ends: Ends) -> None:
    message = REQUEST.to_message()
    message["spec"]["caps"]["memory"] = 1
    messages.send(ends.client, message)
    with pytest.raises(SandboxError, match=r"^memory = 1 is not possible"):
        ends.ours.request()


@pytest.mark.parametrize("message", [REQUEST.to_message(), Signal(1).to_message()])
def test_no_descriptor_comes_in_with_a_request(message: dict[str, Any], ends: Ends) -> None:
    before = open_descriptors()
    messages.send(ends.client, message, [0, 1])
    try:
        ends.ours.request()
    except ProtocolError:
        assert message["type"] == "signal"
    assert open_descriptors() == before


# -- who builds --------------------------------------------------------------------------------


def test_the_client_learns_who_builds_with_a_pidfd(ends: Ends) -> None:
    before = open_descriptors()
    assert ends.ours.accept() is True
    message, (pidfd,) = ends.receive()
    assert message == {"type": "accepted", "supervisor_pid": os.getpid()}
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="utf-8") as file:
        assert f"Pid:\t{os.getpid()}\n" in file.read()
    os.close(pidfd)
    assert open_descriptors() == before


def test_accepting_raises_nothing_where_the_client_is_gone(ends: Ends) -> None:
    before = open_descriptors()
    ends.client.close()
    assert ends.ours.accept() is False
    assert open_descriptors() == before - 1


# -- what matters ------------------------------------------------------------------------------

LAST: Final = [
    EXITED,
    Failed(KernelStartError("fact", cause="cause")),
    Started(1, 2, {"key": "k"}, ("no swap cap",), 5),
]


@pytest.mark.parametrize("message", LAST, ids=lambda m: type(m).__name__)
def test_what_matters_is_said(message: Exited | Failed | Started, ends: Ends) -> None:
    assert ends.ours.say(message)
    assert ends.receive() == (message.to_message(), [])


@pytest.mark.parametrize("message", LAST, ids=lambda m: type(m).__name__)
def test_what_matters_waits_for_a_client_that_is_behind_and_arrives(
    message: Exited | Failed | Started, ends: Ends
) -> None:
    """A server in a long callback reads nothing for seconds; then it must learn of the end."""
    count = ends.fill()
    said: list[bool] = []
    thread = threading.Thread(target=lambda: said.append(ends.ours.say(message)))
    thread.start()
    thread.join(0.1)
    assert thread.is_alive() and said == []
    found = [ends.receive()[0] for _ in range(count + 1)]
    thread.join(10)
    assert said == [True]
    assert found[-1] == message.to_message()
    assert all(m["type"] == "notice" for m in found[:-1])


def test_a_client_that_reads_nothing_is_not_waited_for_for_ever(ends: Ends, soon: None) -> None:
    count = ends.fill()
    assert ends.ours.say(EXITED) is False
    assert len(ends.drain()) == count


def test_a_client_that_is_gone_is_told_nothing(ends: Ends) -> None:
    ends.client.close()
    assert ends.ours.say(EXITED) is False


def test_a_client_that_goes_away_while_it_is_waited_for(ends: Ends) -> None:
    ends.fill()
    said: list[bool] = []
    thread = threading.Thread(target=lambda: said.append(ends.ours.say(EXITED)))
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    ends.client.close()
    thread.join(5)
    assert said == [False]


# -- what may be lost --------------------------------------------------------------------------


def test_a_notice_is_said(ends: Ends) -> None:
    ends.ours.notice("a line")
    assert ends.receive() == ({"type": "notice", "text": "a line"}, [])


def in_time(action: Callable[[], None]) -> None:
    """A notice must not wait, and where it does this is seen here, not at the end of CI's hour."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(3)
    assert not thread.is_alive()


def test_notices_are_dropped_where_the_client_is_behind_and_leave_room(ends: Ends) -> None:
    sent = 2000
    in_time(lambda: [ends.ours.notice("x" * 500) for _ in range(sent)] and None)
    # what matters passes at once, without waiting for anybody
    assert ends.ours.say(EXITED)
    found = ends.drain()
    assert found[-1] == EXITED.to_message()
    assert 10 < len(found) - 1 < sent / 10
    # and once the client has read, notices pass again
    ends.ours.notice("again")
    assert ends.receive()[0]["text"] == "again"


@pytest.mark.parametrize("size", [1, 100, 5000])
def test_room_is_left_whatever_their_size_is(size: int, ends: Ends) -> None:
    in_time(lambda: [ends.ours.notice("x" * size) for _ in range(3000)] and None)
    limit = ends.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    assert module._NOTICES_MAXIMUM <= ends.ours._unread() < limit / 2
    messages.send(ends.socket, Started(1, 2, {"key": "k" * 40_000}).to_message())


def test_a_notice_never_waits(ends: Ends) -> None:
    ends.ours.say(EXITED)  # which leaves a timeout on the socket
    count = ends.fill()
    in_time(lambda: ends.ours.notice("lost"))
    assert len(ends.drain()) == count + 1


def test_a_notice_for_a_client_that_is_gone_is_lost(ends: Ends) -> None:
    ends.client.close()
    ends.ours.notice("lost")


# -- orders ------------------------------------------------------------------------------------


def test_orders_in_their_order(ends: Ends) -> None:
    for order in (Signal(2), Kill()):
        messages.send(ends.client, order.to_message())
    assert [ends.ours.order(), ends.ours.order()] == [Signal(2), Kill()]


@pytest.mark.parametrize("said", [False, True])
def test_no_order_is_neither_waited_for_nor_the_end(said: bool, ends: Ends) -> None:
    """In Python a socket with a timeout waits, whatever the flags say."""
    messages.send(ends.client, REQUEST.to_message())
    ends.ours.request()
    if said:
        ends.ours.say(EXITED)
    found: list[BaseException | object] = []

    def order() -> None:
        try:
            found.append(ends.ours.order())
        except BlockingIOError as error:
            found.append(error)

    in_time(order)
    assert isinstance(found[0], BlockingIOError)


def test_the_end_is_no_order(ends: Ends) -> None:
    messages.send(ends.client, Kill().to_message())
    ends.client.close()
    assert ends.ours.order() == Kill()
    assert ends.ours.order() is None


def test_the_end_of_a_client_that_had_not_read_all_is_the_end(ends: Ends) -> None:
    """Linux says ECONNRESET first."""
    ends.ours.notice("unread")
    ends.client.close()
    assert ends.ours.order() is None


def test_a_socket_that_is_broken_is_the_end(ends: Ends) -> None:
    ends.socket.close()
    assert ends.ours.order() is None


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"{}",
        b"\xff",
        b'{"type":"signal"}',
        b'{"type":"signal","number":0}',
        b'{"type":"launch"}',
        b'{"type":"exited","returncode":0,"reason":""}',
        b'"kill"',
    ],
)
def test_an_order_that_is_none(raw: bytes, ends: Ends) -> None:
    ends.client.send(raw)
    with pytest.raises(ProtocolError):
        ends.ours.order()
    messages.send(ends.client, Kill().to_message())
    assert ends.ours.order() == Kill()


@pytest.mark.parametrize("raw", [b'{"type":"kill"}', b'{"type":"x"}', b"{"])
def test_no_descriptor_comes_in_with_an_order(raw: bytes, ends: Ends) -> None:
    before = open_descriptors()
    socket.send_fds(ends.client, [raw], [0, 1, 2])
    try:
        assert ends.ours.order() == Kill()
    except ProtocolError:
        assert b"kill" not in raw
    assert open_descriptors() == before


def test_it_can_be_polled(ends: Ends) -> None:
    poller = select.poll()
    poller.register(ends.ours.fileno(), select.POLLIN)
    assert poller.poll(0) == []
    messages.send(ends.client, Kill().to_message())
    assert poller.poll(0) == [(ends.socket.fileno(), select.POLLIN)]
