"""The sockets to one kernel, with libzmq's context: the half of the proxy that no client decides.

Of a sandbox that waits for its client it is there and connected already; see :mod:`.proxy`.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping

import zmq

from ..errors import ChannelError, describe_errno
from .connection import Channel, ConnectionInfo
from .limits import MessageLimits
from .monitoring import LinkMonitor

Socket = zmq.Socket[bytes]


class BackEnds:
    """``kernel`` says where the kernel listens; its key does not matter here.

    Raises:
        ChannelError: a socket could not be set up.
    """

    def __init__(self, kernel: ConnectionInfo, limits: MessageLimits) -> None:
        self._kernel = kernel
        self.context = zmq.Context()
        self.monitors: dict[Channel, LinkMonitor] = {}
        self._connected: set[Channel] = set()
        self._identity = uuid.uuid4().hex.encode()
        try:
            self.sockets: Mapping[Channel, Socket] = {c: self._make(c, limits) for c in Channel}
        except zmq.ZMQError as error:
            self.context.destroy(linger=0)
            raise ChannelError(
                "the proxy's sockets could not be set up", cause=describe_errno(error.errno or 0)
            ) from error

    def _make(self, channel: Channel, limits: MessageLimits) -> Socket:
        kind = zmq.SUB if channel is Channel.IOPUB else zmq.DEALER
        back: Socket = self.context.socket(kind)
        back.linger = 0
        back.maxmsgsize = limits.max_frame_bytes
        back.rcvhwm = back.sndhwm = limits.back_hwm
        return back

    def connect_ahead(self) -> None:
        """All but iopub, on which a kernel speaks first, and signs it with the key it has then."""
        self._connect(frozenset(Channel) - {Channel.IOPUB})

    def connect(self) -> None:
        """Connect what is not yet, to a kernel that has bound and has its client's key: too early
        costs libzmq's reconnect interval.

        Raises:
            ChannelError: an endpoint is malformed.
        """
        self._connect(frozenset(Channel))

    def _connect(self, channels: frozenset[Channel]) -> None:
        for channel in channels - self._connected:
            self._connected.add(channel)
            back = self.sockets[channel]
            if channel is Channel.IOPUB:
                # The second topic is nobody else's: a kernel welcomes each topic's first subscriber
                # only, and its welcome tells that it publishes to us from now on.
                back.setsockopt(zmq.SUBSCRIBE, b"")
                back.setsockopt(zmq.SUBSCRIBE, b"sandbox-" + self._identity)
            elif channel is not Channel.HB:
                back.setsockopt(zmq.ROUTING_ID, self._identity)
            endpoint = self._kernel.endpoint(channel)
            if channel is not Channel.HB:
                self.monitors[channel] = LinkMonitor(back, endpoint)
            try:
                back.connect(endpoint)
            except zmq.ZMQError as error:
                raise ChannelError(
                    f"the kernel's {channel.value} channel cannot be connected to",
                    cause=describe_errno(error.errno or 0),
                ) from error

    def close(self) -> None:
        """For a sandbox that nobody wanted; else the proxy has closed them. Twice is once."""
        if self.context.closed:
            return
        for monitor in self.monitors.values():
            monitor.close()
        self.context.destroy(linger=0)
