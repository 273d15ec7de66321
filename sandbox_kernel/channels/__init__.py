"""The message-aware ZMQ proxy between Jupyter's clients and one sandboxed kernel.

::

    listeners    binds the client's endpoints with plain sockets, before any zmq context
    proxy        composes what follows in the supervisor's one poll loop
      backends       the sockets to the kernel
      lane           ROUTER ↔ DEALER: shell, control, stdin, heartbeat
      broadcast      XPUB: iopub to every subscriber, with bounded memory
      cutting        output beyond the spec's caps
      pending        requests that a client still waits for
      accounting   what each cell used, and who writes it down
      announcements  what the user reads in the output of the next cell
      monitoring     which links to the kernel were cut and made again
      gauge          how much memory messages hold, looked at while the process works
      junk           links that bring too much that has to be dropped
    wire         libzmq's flags and the sending of a message
    messages     frames, signatures, headers; what the proxy itself says
    connection   the connection file
    limits       every number
    report       what was dropped, counted and logged at a bounded rate

Everything from the kernel is hostile bytes, and the kernel knows the signing key: a valid
signature says that a message is well formed by the kernel's own account, never that it is true.
"""

from __future__ import annotations

from .accounting import Account, Entry, Journal, Meter, Reading
from .backends import BackEnds
from .connection import Channel, ConnectionInfo
from .gauge import Gauge
from .limits import MessageLimits
from .listeners import FrontEnds, bind_front_ends
from .proxy import Proxy

__all__ = [
    "Account",
    "BackEnds",
    "Channel",
    "ConnectionInfo",
    "Entry",
    "FrontEnds",
    "Gauge",
    "Journal",
    "MessageLimits",
    "Meter",
    "Proxy",
    "Reading",
    "bind_front_ends",
]
