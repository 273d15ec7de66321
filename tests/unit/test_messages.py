"""Messages over real sockets: whole, bounded, and closed behind what is refused."""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_kernel.engine.messages import MESSAGE_MAXIMUM, decode, pair, receive, send
from sandbox_kernel.errors import ProtocolError

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Pair]:
    left, right = pair()
    with left, right:
        left.settimeout(10)
        right.settimeout(10)
        yield left, right


@pytest.fixture
def descriptor() -> Iterator[int]:
    read_end, write_end = os.pipe()
    os.close(write_end)
    yield read_end
    with contextlib.suppress(OSError):
        os.close(read_end)


def open_descriptors() -> set[str]:
    listed = os.listdir("/proc/self/fd")
    return {name for name in listed if os.path.lexists(f"/proc/self/fd/{name}")}


def message_of(size: int) -> dict[str, Any]:
    """A message that is ``size`` bytes on the socket."""
    bare = len(json.dumps({"type": "t", "x": ""}, separators=(",", ":")))
    return {"type": "t", "x": "a" * (size - bare)}


# -- what passes -------------------------------------------------------------------------------


def test_both_ways(ends: Pair) -> None:
    left, right = ends
    for sender, receiver in ((left, right), (right, left)):
        message = {"type": "t", "list": [1, None, "ä\udc80\0"], "nested": {"x": 0.5}}
        send(sender, message)
        assert receive(receiver) == (message, [])


def test_one_message_is_one_packet(ends: Pair) -> None:
    for number in range(20):
        send(ends[0], {"type": "t", "number": number})
    got = [receive(ends[1]) for _ in range(20)]
    assert [g[0]["number"] for g in got if g] == list(range(20))


def test_descriptors_go_along(ends: Pair, descriptor: int) -> None:
    send(ends[0], {"type": "t"}, [descriptor, descriptor])
    received = receive(ends[1])
    assert received is not None
    message, fds = received
    assert message == {"type": "t"}
    assert len(set(fds)) == 2
    for fd in fds:
        assert os.path.sameopenfile(fd, descriptor)
        os.close(fd)


def test_a_descriptor_does_not_survive_an_exec(ends: Pair, descriptor: int) -> None:
    send(ends[0], {"type": "t"}, [descriptor])
    received = receive(ends[1])
    assert received is not None
    flags = [fcntl.fcntl(fd, fcntl.F_GETFD) for fd in received[1]]
    os.close(*received[1])
    assert flags == [fcntl.FD_CLOEXEC]


def test_the_largest_message(ends: Pair) -> None:
    message = message_of(MESSAGE_MAXIMUM)
    send(ends[0], message)
    assert receive(ends[1]) == (message, [])


def test_the_end_of_the_stream(ends: Pair) -> None:
    send(ends[0], {"type": "last"})
    ends[0].close()
    assert receive(ends[1]) == ({"type": "last"}, [])
    assert receive(ends[1]) is None
    assert receive(ends[1]) is None


def test_nothing_there(ends: Pair) -> None:
    ends[1].setblocking(False)
    with pytest.raises(BlockingIOError):
        receive(ends[1])


class Recorder(socket.socket):
    """A blocking socket that tells which flags its system calls got."""

    received: int = 0
    sent: int = 0

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> Any:
        self.received = flags
        return super().recvmsg(bufsize, ancbufsize, flags)

    def sendmsg(self, buffers: Any, ancdata: Any = (), flags: int = 0, *rest: Any) -> int:
        self.sent = flags
        return super().sendmsg(buffers, ancdata, flags, *rest)


def test_the_flags_reach_the_system_call() -> None:
    left, right = pair()
    with Recorder(fileno=left.detach()) as sender, Recorder(fileno=right.detach()) as receiver:
        send(sender, {"type": "t"})
        receive(receiver, flags=socket.MSG_DONTWAIT)
    assert receiver.received == socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    assert sender.sent & socket.MSG_NOSIGNAL


# -- what does not -----------------------------------------------------------------------------


def test_a_message_too_large_is_refused_and_nothing_is_sent(ends: Pair) -> None:
    with pytest.raises(ProtocolError) as caught:
        send(ends[0], message_of(MESSAGE_MAXIMUM + 1))
    error = caught.value
    assert error.fact == f"a message of type 't' has {MESSAGE_MAXIMUM + 1} bytes"
    assert f"{MESSAGE_MAXIMUM} can be sent" in str(error.cause)
    ends[1].setblocking(False)
    with pytest.raises(BlockingIOError):
        receive(ends[1])


def test_the_other_side_is_gone(ends: Pair) -> None:
    ends[1].close()
    with pytest.raises(BrokenPipeError):  # and no SIGPIPE, whatever its disposition is
        send(ends[0], {"type": "t"})


def test_a_packet_larger_than_a_message_is_never_cut(ends: Pair, descriptor: int) -> None:
    raw = json.dumps(message_of(MESSAGE_MAXIMUM)).encode()  # with blanks, so a few bytes longer
    assert len(raw) > MESSAGE_MAXIMUM
    socket.send_fds(ends[0], [raw], [descriptor])
    before = open_descriptors()
    with pytest.raises(ProtocolError, match=f"larger than {MESSAGE_MAXIMUM} bytes"):
        receive(ends[1])
    assert open_descriptors() == before


def test_more_descriptors_than_fit_are_closed(ends: Pair, descriptor: int) -> None:
    before = open_descriptors()
    many = array.array("i", [descriptor] * 40)
    ends[0].sendmsg([b'{"type":"t"}'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, many)])
    with pytest.raises(ProtocolError):
        receive(ends[1])
    assert open_descriptors() == before


def test_eight_descriptors_fit(ends: Pair, descriptor: int) -> None:
    send(ends[0], {"type": "t"}, [descriptor] * 8)
    received = receive(ends[1])
    assert received is not None and len(received[1]) == 8
    for fd in received[1]:
        os.close(fd)


MALFORMED = [
    b"{",
    b"\xff\xfe\xfd",
    b"\0",
    b'{"type":"t"} x',
    b"'t'",
    b"null",
    b"[]",
    b'"type"',
    b"17",
    b"{}",
    b'{"type":null}',
    b'{"type":1}',
    b'{"type":["t"]}',
    b'{"typ":"t"}',
    b"[" * 100_000,
    b'{"type":' * 10_000,
    b'{"type":"t","n":' + b"9" * 5000 + b"}",
]


@pytest.mark.parametrize("raw", MALFORMED, ids=lambda raw: repr(raw[:12]))
def test_what_is_no_message_is_refused_and_its_descriptors_are_closed(
    raw: bytes, ends: Pair, descriptor: int
) -> None:
    before = open_descriptors()
    socket.send_fds(ends[0], [raw], [descriptor, descriptor])
    with pytest.raises(ProtocolError) as caught:
        receive(ends[1])
    assert caught.value.message.startswith("a message is not ")
    assert open_descriptors() == before


def test_an_empty_packet_with_a_descriptor(ends: Pair, descriptor: int) -> None:
    before = open_descriptors()
    ends[0].sendmsg([b""], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))])
    with pytest.raises(ProtocolError, match="a message is empty"):
        receive(ends[1])
    assert open_descriptors() == before


def test_an_empty_packet_is_the_end(ends: Pair) -> None:
    """It cannot be told from one; whoever sends it has ended the conversation."""
    ends[0].send(b"")
    assert receive(ends[1]) is None


def test_the_content_is_not_in_the_error() -> None:
    """It may be a key, and errors are logged."""
    with pytest.raises(ProtocolError) as caught:
        decode(b'{"type":"launch","key":"SECRET"')
    assert "SECRET" not in caught.value.message
    assert caught.value.__suppress_context__


# -- whatever comes ----------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@settings(derandomize=True, database=None, deadline=None)
@given(raw=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_bytes_are_a_message_or_a_protocol_error(raw: bytes) -> None:
    try:
        message = decode(raw)
    except ProtocolError:
        return
    assert isinstance(message["type"], str)


@settings(derandomize=True, database=None, deadline=None)
@given(message=st.dictionaries(st.text(), JSON, max_size=5), kind=st.text())
def test_what_is_sent_arrives(message: dict[str, Any], kind: str) -> None:
    left, right = pair()
    with left, right:
        send(left, message | {"type": kind})
        assert receive(right) == (message | {"type": kind}, [])
