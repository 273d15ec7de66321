"""Flags of libzmq as plain integers, and the sending of a message with them.

pyzmq's own are members of an enum, and putting them together costs more than what they ask for: a
cell has some forty of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import zmq

POLLIN: Final = int(zmq.POLLIN)
POLLOUT: Final = int(zmq.POLLOUT)
RCVMORE: Final = int(zmq.RCVMORE)
NOBLOCK: Final = int(zmq.NOBLOCK)
_EVENTS: Final = int(zmq.EVENTS)
_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)


def is_readable(socket: zmq.Socket[bytes]) -> bool:
    """Is there a message? To ask costs a tenth of the exception that says that there is none."""
    return bool(socket.getsockopt(_EVENTS) & POLLIN)  # type: ignore[operator]


def send(
    socket: zmq.Socket[bytes], frames: Sequence[bytes | zmq.Frame], *, copy: bool = True
) -> None:
    """A whole message without waiting. libzmq takes the first part only if it takes all.

    Raises:
        zmq.Again: there is no room; nothing was sent.
    """
    for frame in frames[:-1]:
        socket.send(frame, _MORE, copy)
    socket.send(frames[-1], NOBLOCK, copy)
