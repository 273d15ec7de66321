"""One connection to a D-Bus peer, with an end to every wait. The wire format is jeepney's.

The peer is a bus, or systemd itself on its private socket, where there is no bus to greet. Not
thread-safe, and only for the process that opened it: the peer learns from the socket who that is.
"""

from __future__ import annotations

import itertools
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from jeepney import HeaderFields, Message, MessageType, Parser
from jeepney.auth import BEGIN, AuthenticationError, Authenticator

#: Signals that nobody waited for yet. A peer that sends more loses the oldest.
_SIGNALS: Final = 1000


class Refused(Exception):
    """The peer answered with an error: its ``name``, such as ``org.….NoSuchUnit``, and ``text``."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name
        self.text = text


class Connection:
    """Use it as a context manager. ``deadline`` is in seconds of :func:`time.monotonic`.

    Every method raises :class:`OSError` if the peer is gone, and :class:`TimeoutError` at the
    deadline.
    """

    def __init__(self, address: str, deadline: float) -> None:
        """Connect and authenticate as the effective user. ``\\0name`` is an abstract socket."""
        self.deadline = deadline
        self._parser = Parser()
        self._serials = itertools.count(1)
        self._signals: deque[Message] = deque(maxlen=_SIGNALS)
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._limit(deadline)
            self._socket.connect(address)
            self._authenticate()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def call(self, message: Message) -> tuple[Any, ...]:
        """Send a method call; the body of its reply.

        Raises:
            Refused: the reply is an error.
        """
        serial = next(self._serials)
        self._send(message.serialise(serial=serial))
        while True:
            found = self._next(self.deadline)
            if found.header.fields.get(HeaderFields.reply_serial) == serial:
                break
        body = tuple(found.body)
        if found.header.message_type is MessageType.error:
            text = str(body[0]) if body else ""
            raise Refused(str(found.header.fields.get(HeaderFields.error_name)), text)
        return body

    def wait(
        self, wanted: Callable[[str, tuple[Any, ...]], bool], until: float | None = None
    ) -> tuple[Any, ...]:
        """The body of the first signal for which ``wanted(member, body)`` holds.

        What came while a call was waiting for its reply is looked at first.
        """
        until = self.deadline if until is None else min(until, self.deadline)
        while True:
            while self._signals:
                signal = self._signals.popleft()
                body = tuple(signal.body)
                if wanted(str(signal.header.fields.get(HeaderFields.member)), body):
                    return body
            self._next(until)

    def _next(self, until: float) -> Message:
        """The next message, whatever it is; a signal is kept as well."""
        while (message := self._parser.get_next_message()) is None:
            self._parser.add_data(self._receive(until))
        if message.header.message_type is MessageType.signal:
            self._signals.append(message)
        return message

    def _authenticate(self) -> None:
        dialogue = Authenticator()
        try:
            for line in dialogue:
                self._send(line)
                dialogue.feed(self._receive(self.deadline))
        except AuthenticationError as error:
            raise ConnectionError(f"the peer did not take this user: {error}") from error
        self._send(BEGIN)

    def _send(self, data: bytes) -> None:
        self._limit(self.deadline)
        self._socket.sendall(data)

    def _receive(self, until: float) -> bytes:
        self._limit(until)
        if data := self._socket.recv(65536):
            return data
        raise ConnectionError("the peer closed the connection")

    def _limit(self, until: float) -> None:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._socket.settimeout(left)
