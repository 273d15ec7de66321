"""Heartbeats of a kernel that is paused: the only message that the proxy answers in its place.

A client without a kernel manager (``jupyter console --existing``, qtconsole) declares a kernel dead
that owes it one heartbeat for a second. One that hangs *is* to look dead, so heartbeats are
forwarded as long as the kernel runs; one that was paused on order is alive.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import zmq

from ..errors import ProtocolError
from . import wire

#: Heartbeats that are remembered: a client has one under way at a time.
_MAXIMUM: Final = 64

Socket = zmq.Socket[bytes]
Frames = list[bytes]


class Heartbeat:
    """Told of each heartbeat that passes, see :class:`~.judge.Judge`; ``front`` is the clients'."""

    def __init__(self, front: Socket) -> None:
        self._front = front
        self._paused = False
        self._asked: deque[Frames] = deque(maxlen=_MAXIMUM)
        """With the kernel, which has not answered."""
        self._answered: deque[Frames] = deque(maxlen=_MAXIMUM)
        """Answered from here; the kernel will answer once more when it runs again."""

    def pause(self) -> None:
        """From now on they are answered here, those that the kernel owes included."""
        self._paused = True
        for frames in self._asked:
            self._answer(frames)
            self._answered.append(frames)
        self._asked.clear()

    def resume(self) -> None:
        """From now on they are the kernel's again."""
        self._paused = False

    def asked(self, frames: Frames) -> bool:
        """A client sent one: must it be forwarded?"""
        if self._paused:
            self._answer(frames)
            return False
        self._asked.append(frames)
        return True

    def answered(self, frames: Frames) -> bool:
        """The kernel sent one back: does a client still wait for it?

        Raises:
            ProtocolError: nobody has sent it.
        """
        if frames in self._answered:
            self._answered.remove(frames)
            return False
        if frames not in self._asked:
            raise ProtocolError("an answer to no request")
        self._asked.remove(frames)
        return True

    def _answer(self, frames: Frames) -> None:
        wire.send(self._front, frames)
