"""Which links to the kernel were cut and made again while the kernel lived.

When a frame is larger than MAXMSGSIZE libzmq cuts the link without a word, and (seen with 4.3.5) it
does not reconnect after what it takes for an error of the protocol: that is done here. What was
under way is lost, so the requests that wait for it have to be finished by the proxy. A cut alone
says nothing: that is what a kernel's end looks like too, and after that libzmq does retry.
"""

from __future__ import annotations

import contextlib
from typing import Final

import zmq
from zmq.utils.monitor import recv_monitor_message

#: How often a kernel may have one link cut before it stays cut: each time costs the loop a wait.
MOST_CUTS: Final = 100
#: Milliseconds in which libzmq's own retry shows; it is scheduled right after the cut.
_RETRY_SHOWS_MS: Final = 20
_EVENTS: Final = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_CONNECT_DELAYED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
)


class LinkMonitor:
    """Watches one socket that connects to one endpoint."""

    def __init__(self, watched: zmq.Socket[bytes], endpoint: str) -> None:
        self._watched = watched
        self._endpoint = endpoint
        self._cuts = 0
        self._cut = False
        self.socket: zmq.Socket[bytes] = watched.get_monitor_socket(_EVENTS)

    def was_restored(self) -> bool:
        """Read all news, reconnect if libzmq does not; true if a link that was cut is there again.

        Blocks for some milliseconds after a cut. Call it when the watched socket was read empty:
        what is still in it goes with a link that has to be made again.
        """
        restored = False
        while (event := self._next(0)) is not None:
            if event == zmq.EVENT_DISCONNECTED:
                self._cut = True
                self._cuts += 1
                event = self._next(_RETRY_SHOWS_MS)
                if event is None and self._cuts < MOST_CUTS:
                    self._reconnect()
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED and self._cut:
                self._cut, restored = False, True
        return restored

    def _reconnect(self) -> None:
        # to connect to an endpoint that libzmq still lists does nothing
        with contextlib.suppress(zmq.ZMQError):
            self._watched.disconnect(self._endpoint)
        self._watched.connect(self._endpoint)

    def _next(self, timeout_ms: int) -> int | None:
        if not self.socket.poll(timeout_ms):
            return None
        return int(recv_monitor_message(self.socket, zmq.NOBLOCK)["event"])

    def close(self) -> None:
        """Stop watching. Before the watched socket is closed."""
        self._watched.disable_monitor()
        self.socket.close(linger=0)
