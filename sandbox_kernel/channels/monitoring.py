"""Which links to the kernel were cut and made again while the kernel lived.

libzmq cuts a link without a word when a frame is larger than MAXMSGSIZE, and reconnects. What was
under way is lost, so the requests that wait for it have to be finished by the proxy. A cut alone
says nothing: that is what a kernel's end looks like too.
"""

from __future__ import annotations

import zmq
from zmq.utils.monitor import recv_monitor_message

_EVENTS = zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED


class LinkMonitor:
    """Watches one socket that connects to one endpoint."""

    def __init__(self, watched: zmq.Socket[bytes]) -> None:
        self._watched = watched
        self._cut = False
        self.socket: zmq.Socket[bytes] = watched.get_monitor_socket(_EVENTS)

    def was_restored(self) -> bool:
        """Read all news; true if the link was cut and is there again."""
        restored = False
        while True:
            try:
                event = recv_monitor_message(self.socket, zmq.NOBLOCK)["event"]
            except zmq.Again:
                return restored
            if event == zmq.EVENT_DISCONNECTED:
                self._cut = True
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED and self._cut:
                self._cut, restored = False, True

    def close(self) -> None:
        """Stop watching. Before the watched socket is closed."""
        self._watched.disable_monitor()
        self.socket.close(linger=0)
