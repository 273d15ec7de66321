"""The supervisor's end of the lifeline, see :mod:`.protocol`.

Notices may be lost where the client does not read; what decides its next step may not. So notices
leave room in the socket, and the others wait for it, for a bounded time.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import socket
import termios
from collections.abc import Sequence
from typing import Final

from .engine import messages
from .errors import ProtocolError
from .protocol import (
    Accepted,
    Answer,
    Exited,
    Failed,
    FromClient,
    LaunchRequest,
    Notice,
    Started,
    Waits,
    parse_from_client,
)

#: Seconds that a client has to send its request, and to make room for a message that matters.
_PATIENCE: Final = 10.0
#: Bytes that may wait to be read before notices are dropped.
_NOTICES_MAXIMUM: Final = 32 * 1024


class Lifeline:
    """One packet socket to the client. Its end is the end of the sandbox."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def fileno(self) -> int:
        return self._socket.fileno()

    def request(self) -> LaunchRequest:
        """The first message, which the client sends at once.

        Raises:
            ProtocolError: none came, or it is not a request.
        """
        self._socket.settimeout(_PATIENCE)
        try:
            received = messages.receive(self._socket)
        except TimeoutError as error:
            raise ProtocolError(f"no request came within {_PATIENCE:g} seconds") from error
        if received is None:
            raise ProtocolError("the client went away before it had sent its request")
        message, fds = received
        for fd in fds:
            os.close(fd)
        try:
            return LaunchRequest.from_message(message)
        except (KeyError, TypeError, AttributeError) as error:
            raise ProtocolError("the request is malformed", cause=repr(error)) from error

    def accept(self) -> bool:
        """Say who builds, with a pidfd: from here on the client can end it whatever happens.

        False if nobody is there to hear it: then nothing is to be built.
        """
        pidfd = os.pidfd_open(os.getpid())
        try:
            return self.say(Accepted(os.getpid()), [pidfd])
        finally:
            os.close(pidfd)

    def say(
        self,
        message: Accepted | Waits | Started | Failed | Exited | Answer,
        fds: Sequence[int] = (),
    ) -> bool:
        """Send what matters; false if the client is gone, or reads nothing for too long."""
        self._socket.settimeout(_PATIENCE)
        try:
            messages.send(self._socket, message.to_message(), fds)
        except OSError:  # TimeoutError is one
            return False
        return True

    def notice(self, text: str) -> None:
        """Send a line for the log, unless the client is behind. Never waits."""
        with contextlib.suppress(OSError):
            if self._unread() < _NOTICES_MAXIMUM:
                messages.send(self._socket, Notice(text).to_message())

    def order(self) -> FromClient | None:
        """The client's next order without waiting, ``None`` at its end.

        Raises:
            BlockingIOError: there is none yet.
            ProtocolError: it is not an order.
        """
        try:
            self._socket.setblocking(False)  # with a timeout Python waits, whatever the flags say
            received = messages.receive(self._socket)
        except BlockingIOError:
            raise
        except OSError:
            return None
        if received is None:
            return None
        message, fds = received
        for fd in fds:
            os.close(fd)
        return parse_from_client(message)

    def _unread(self) -> int:
        """Bytes that the other end has not taken yet."""
        count = array.array("i", [0])
        fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, count)
        return count[0]
