"""Which links to the kernel were cut and made again while the kernel lived.

When a frame is larger than MAXMSGSIZE libzmq cuts the link without a word, and (seen with 4.3.5) it
does not reconnect after what it takes for an error of the protocol: that is done here. What was
under way is lost, so the requests that wait for it have to be finished by the proxy. A cut alone
says nothing: that is what a kernel's end looks like too, and after that libzmq does retry.

The proxy can cut a link as well: only that makes libzmq forget a message that has no end.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import zmq
from zmq.utils.monitor import recv_monitor_message

#: How often within the period a kernel may have one link cut before it stays cut.
MOST_CUTS: Final = 100
#: Seconds.
_PERIOD: Final = 600.0
#: Milliseconds in which libzmq's own retry shows; it is scheduled right after the cut.
_RETRY_SHOWS_MS: Final = 20
_EVENTS: Final = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_CONNECT_DELAYED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
)


class LinkMonitor:
    """Watches one socket that connects to one endpoint."""

    def __init__(
        self,
        watched: zmq.Socket[bytes],
        endpoint: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._watched = watched
        self._endpoint = endpoint
        self._clock = clock
        self._cuts: deque[float] = deque(maxlen=MOST_CUTS)
        self._cut = False
        self._link: socket.socket | None = None
        self.given_up = False
        """It was cut too often, and stays so."""
        self.socket: zmq.Socket[bytes] = watched.get_monitor_socket(_EVENTS)

    def was_restored(self) -> bool:
        """Read all news, reconnect if libzmq does not; true if a link that was cut is there again.

        Blocks for some milliseconds after a cut. Call it when the watched socket was read empty:
        what is still in it goes with a link that has to be made again.
        """
        restored = False
        while (news := self._next(0)) is not None:
            event, value = news
            if event == zmq.EVENT_CONNECTED:
                self._keep(value)
            elif event == zmq.EVENT_DISCONNECTED:
                self._was_cut()
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED and self._cut:
                self._cut, restored = False, True
        return restored

    def cut(self) -> None:
        """End the link now, with what libzmq has gathered of an unfinished message."""
        if self._link is not None:
            try:
                self._link.shutdown(socket.SHUT_RDWR)
            except OSError as error:
                if error.errno != errno.ENOTCONN:  # it is cut already
                    raise

    def _was_cut(self) -> None:
        self._forget()
        self._cut = True
        now = self._clock()
        self._cuts.append(now)
        retried = self._next(_RETRY_SHOWS_MS) is not None
        if len(self._cuts) == MOST_CUTS and now - self._cuts[0] < _PERIOD:
            self.given_up = True
            self._disconnect()
        elif not retried:
            self._disconnect()
            self._watched.connect(self._endpoint)

    def _disconnect(self) -> None:
        # to connect to an endpoint that libzmq still lists does nothing
        with contextlib.suppress(zmq.ZMQError):
            self._watched.disconnect(self._endpoint)

    def _keep(self, fd: int) -> None:
        """The link's own descriptor, duplicated: libzmq may close its at any time."""
        self._forget()
        with contextlib.suppress(OSError):
            link = socket.socket(fileno=os.dup(fd))
            if link.getpeername()[1] == int(self._endpoint.rpartition(":")[2]):
                self._link = link
            else:  # it was closed before we looked, and is something else now
                link.close()

    def _forget(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def _next(self, timeout_ms: int) -> tuple[int, int] | None:
        if not self.socket.poll(timeout_ms):
            return None
        news = recv_monitor_message(self.socket, zmq.NOBLOCK)
        return int(news["event"]), int(news["value"])

    def close(self) -> None:
        """Stop watching. Before the watched socket is closed."""
        self._forget()
        self._watched.disable_monitor()
        self.socket.close(linger=0)
