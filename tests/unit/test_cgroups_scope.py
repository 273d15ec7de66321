"""Getting into the scope: what is asked of systemd, in which order, and what a refusal says."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jeepney import HeaderFields, Message, MessageType, Parser
from jeepney.low_level import Endianness, Header

from sandbox_kernel.engine.cgroups import UserScope, scope
from sandbox_kernel.engine.cgroups.dbus import Connection, Refused
from sandbox_kernel.errors import CgroupError

SYSTEMD = "org.freedesktop.systemd1"
LEAF = "attach /supervisors"


class Systemd:
    """In place of a connection: ``answers`` are of the calls in their order, then all is well."""

    def __init__(self, *answers: str | None) -> None:
        self.answers = list(answers)
        self.calls: list[str] = []
        self.deadline = time.monotonic() + 1000
        self.signals: list[tuple[str, tuple[Any, ...]]] = []
        self.result = "done"

    def call(self, message: Message) -> tuple[Any, ...]:
        member = str(message.header.fields[HeaderFields.member])
        message.serialise(serial=1)  # jeepney checks the signature
        if member in ("Hello", "AddMatch", "Subscribe"):
            self.calls.append(member)
            return ()
        names = {"AttachProcessesToUnit": "attach", "StartTransientUnit": "start"}
        self.calls.append(f"{names[member]} {message.body[1]}".strip())
        answer = self.answers.pop(0) if self.answers else None
        if answer is not None:
            raise Refused(answer, "because")
        self.signals.append(("JobRemoved", (2, "/other", "other.scope", "failed")))
        self.signals.append(("JobRemoved", (1, "/job", "sandbox-kernel.scope", self.result)))
        return ("/job",)

    def wait(self, wanted: Any, until: float | None = None) -> tuple[Any, ...]:
        self.calls.append("wait")
        for name, body in self.signals:
            if wanted(name, body):
                return body
        raise TimeoutError


def join(systemd: Systemd, *, direct: bool = True) -> list[str]:
    connection: Any = systemd
    scope._join(scope._Manager(connection, direct=direct))
    return systemd.calls


GONE, FILE = f"{SYSTEMD}.NoSuchUnit", "org.freedesktop.DBus.Error.FileNotFound"
EXISTS, BUSY = f"{SYSTEMD}.UnitExists", "org.freedesktop.DBus.Error.InvalidArgs"


def test_a_scope_that_is_there_takes_one_call() -> None:
    assert join(Systemd()) == [LEAF]


def test_a_bus_is_greeted_and_asked_for_signals() -> None:
    assert join(Systemd(GONE), direct=False) == [
        "Hello", LEAF, "AddMatch", "Subscribe", "start fail", "wait",
    ]  # fmt: skip


def test_a_scope_without_its_leaf_yet_is_entered_as_it_is() -> None:
    assert join(Systemd(FILE)) == [LEAF, "attach"]


def test_the_leaf_that_was_made_meanwhile_is_taken() -> None:
    assert join(Systemd(FILE, "org.freedesktop.DBus.Error.Failed")) == [LEAF, "attach", LEAF]


def test_a_scope_that_ends_is_made_anew() -> None:
    """It is there, takes nobody, and cannot be made; then it is gone."""
    calls = join(Systemd(BUSY, EXISTS, GONE))
    assert calls == [LEAF, "Subscribe", "start fail", "wait", LEAF, "start fail", "wait"]


def test_it_is_given_up_after_some_tries() -> None:
    systemd = Systemd(*[BUSY, EXISTS] * 50)
    with pytest.raises(Refused) as caught:
        join(systemd)
    assert caught.value.name == BUSY
    assert systemd.calls.count("start fail") == scope._TRIES


@pytest.mark.parametrize("answers", [["x.AccessDenied"], [GONE, "x.AccessDenied"]])
def test_a_real_refusal_is_not_tried_again(answers: list[str]) -> None:
    with pytest.raises(Refused, match=r"x\.AccessDenied: because"):
        join(Systemd(*answers))


def test_a_start_that_failed_is_a_refusal() -> None:
    systemd = Systemd(GONE)
    systemd.result = "timeout"
    with pytest.raises(Refused, match="ended with 'timeout'"):
        join(systemd)


# -- reaching it -----------------------------------------------------------------------------------


def refusal(*buses: str, seconds: float = 60) -> str:
    with pytest.raises(CgroupError) as caught:
        UserScope(buses, seconds).enter()
    assert caught.value.fact == "sandbox-kernel.scope could not be entered"
    return str(caught.value.cause)


def test_without_an_address_the_variables_are_named() -> None:
    assert "XDG_RUNTIME_DIR and DBUS_SESSION_BUS_ADDRESS are not set" in refusal()


def test_every_address_that_was_tried_is_named(tmp_path: Path) -> None:
    one, other = f"unix:path={tmp_path}/a%20b", f"unix:path={tmp_path}/c"
    cause = refusal(one, other)
    assert f"({one}: no such file or directory (ENOENT), {other}: no such" in cause


@pytest.mark.parametrize("bus", ["nonsense", "tcp:host=h,port=1", "unix:tmpdir=/x", "unix:path"])
def test_an_address_without_a_socket_is_no_crash(bus: str) -> None:
    assert refusal(bus) == f"the user's systemd cannot be reached (no socket in {bus})"


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as found:
        found.bind(str(tmp_path / "bus"))
        found.listen()
        yield found


def test_a_peer_that_says_nothing_is_waited_for_a_bounded_time(listener: socket.socket) -> None:
    bus = f"unix:path={listener.getsockname()}"
    begin = time.monotonic()
    assert refusal(bus, seconds=0.2) == f"{bus} said nothing for 0.2 seconds"
    assert time.monotonic() - begin < 60


def test_abstract_sockets_are_known() -> None:
    assert list(scope._sockets("tcp:host=h,port=1;unix:abstract=/tmp/x,guid=1")) == ["\0/tmp/x"]


# -- the connection --------------------------------------------------------------------------------


def message(kind: MessageType, signature: str, body: tuple[Any, ...], **fields: Any) -> bytes:
    named = {HeaderFields[name]: value for name, value in fields.items()}
    named[HeaderFields.signature] = signature
    header = Header(Endianness.little, kind, 0, 1, -1, -1, named)
    return bytes(Message(header, body).serialise(serial=9))


def connected(listener: socket.socket, *replies: bytes) -> Connection:
    """A connection to a peer that has said all it will say."""
    import threading

    def serve() -> None:
        peer, _ = listener.accept()
        with peer:
            while b"\r\n" not in peer.recv(4096):
                pass
            peer.sendall(b"OK 0123456789abcdef0123456789abcdef\r\n")
            data, parser = peer.recv(4096).removeprefix(b"BEGIN\r\n"), Parser()
            parser.add_data(data)
            while parser.get_next_message() is None:
                parser.add_data(peer.recv(4096))
            peer.sendall(b"".join(replies))

    threading.Thread(target=serve, daemon=True).start()
    return Connection(listener.getsockname(), time.monotonic() + 60)


def ask(connection: Connection) -> tuple[Any, ...]:
    return connection.call(scope.new_method_call(scope._MANAGER, "Subscribe"))


def test_a_signal_that_came_before_the_reply_is_not_lost(listener: socket.socket) -> None:
    signal = message(
        MessageType.signal, "s", ("here",), path="/x", interface="a.b", member="UnitRemoved"
    )
    other = message(MessageType.method_return, "s", ("not this one",), reply_serial=77)
    reply = message(MessageType.method_return, "s", ("well",), reply_serial=1)
    with connected(listener, signal, other, reply) as connection:
        assert ask(connection) == ("well",)
        assert connection.wait(lambda name, body: name == "UnitRemoved") == ("here",)
        with pytest.raises(ConnectionError):
            connection.wait(lambda name, body: True)


def test_the_name_and_the_text_of_an_error_are_kept(listener: socket.socket) -> None:
    error = message(MessageType.error, "s", ("no",), reply_serial=1, error_name="a.b.Denied")
    with connected(listener, error) as connection:
        with pytest.raises(Refused) as caught:
            ask(connection)
        assert (caught.value.name, caught.value.text) == ("a.b.Denied", "no")
