"""One request-reply channel: a ROUTER that clients connect to, a DEALER connected to the kernel.

The front ROUTER puts the client's routing id before each request; the kernel's ROUTER returns all
ids that it was given, so a reply finds its client without any table. Where the kernel does not
read, one message is parked and no more are taken: the others stay in libzmq's bounded queues and
in the client's own.
"""

from __future__ import annotations

from collections.abc import Callable

import zmq

from ..errors import ProtocolError
from . import wire
from .connection import Channel
from .junk import Junk
from .limits import MessageLimits
from .report import Report

Socket = zmq.Socket[bytes]
Frames = list[bytes]
Judge = Callable[[Channel, Frames], bool]
"""Looks at a message; False if it must not pass. May raise ProtocolError, with the reason."""


class Lane:
    """Made by the proxy, which registers both sockets and calls the two pumps."""

    def __init__(
        self,
        channel: Channel,
        front: Socket,
        back: Socket,
        limits: MessageLimits,
        report: Report,
        *,
        judge_request: Judge,
        judge_reply: Judge,
    ) -> None:
        self.channel = channel
        self.front = front
        self.back = back
        self._limits = limits
        self._report = report
        self._judge_request = judge_request
        self._judge_reply = judge_reply
        self.junk = Junk(limits.junk_a_second)
        self._parked: Frames | None = None
        self._forwarding = True

    @property
    def is_ordinary(self) -> bool:
        """Both sockets are waited for, for messages: nothing is parked or paused."""
        return self._parked is None and not self.junk.paused

    def interest(self) -> dict[Socket, int]:
        """What the poller should wait for; a parked message waits for room, and stops the front."""
        back = 0 if self.junk.paused else wire.POLLIN
        if self._parked is None:
            return {self.front: wire.POLLIN, self.back: back}
        return {self.front: 0, self.back: back | wire.POLLOUT}

    def stop_forwarding(self) -> None:
        """The kernel is dead: requests are still judged, and go nowhere."""
        self._forwarding = False
        self._parked = None

    def ask(self, frames: Frames) -> bool:
        """A request of the proxy's own; false if the kernel has no room for it now."""
        if self._parked is None and self._forwarding:
            self._parked = frames
            self._unpark()
            return True
        return not self._forwarding

    def pump_requests(self) -> int:
        """Client → kernel: at most a burst. How many were taken."""
        for count in range(self._limits.burst):
            if not self._unpark():
                return count
            frames = receive(self.front, self._limits)
            if frames is None:
                return count
            passes = self._passes(self._judge_request, frames, "request from a client")
            if passes and self._forwarding:
                self._parked = frames
        self._unpark()
        return self._limits.burst

    def _unpark(self) -> bool:
        if self._parked is not None:
            try:
                wire.send(self.back, self._parked)
            except zmq.Again:
                return False
            self._parked = None
        return True

    def pump_replies(self) -> int:
        """Kernel → client: at most a burst. How many were taken.

        A ROUTER without ROUTER_MANDATORY drops what is for a client that has gone, or that has
        ``reply_hwm`` replies unread.
        """
        for count in range(self._limits.burst):
            frames = None if self.junk.paused else receive(self.back, self._limits)
            if frames is None:
                return count
            if self._passes(self._judge_reply, frames, "message from the kernel"):
                wire.send(self.front, frames)
        return self._limits.burst

    def _passes(self, judge: Judge, frames: Frames, what: str) -> bool:
        try:
            return judge(self.channel, frames)
        except ProtocolError as error:
            self._report(f"dropped a {what} on {self.channel.value}: {error.fact}")
            if judge is self._judge_reply:
                self.junk.add()
            return False


def receive(socket: Socket, limits: MessageLimits) -> Frames | None:
    """The next message, ``None`` if there is none now.

    Of more than ``max_frames`` only one more is kept, which is enough to refuse the message.
    """
    if not wire.is_readable(socket):
        return None
    try:
        frames = [socket.recv(wire.NOBLOCK)]
    except zmq.Again:
        return None
    while socket.getsockopt(wire.RCVMORE):
        frame = socket.recv()
        if len(frames) <= limits.max_frames:
            frames.append(frame)
    return frames
