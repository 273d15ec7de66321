"""iopub towards the clients: one XPUB, one queue, bounded memory, and no reader that blocks.

The choice, and why. A kernel's own PUB socket drops blindly what a slow reader has no room for, the
final ``status: idle`` like any other message, and the client then waits for ever. Not to read from
the kernel would only move that loss into the kernel. So the proxy always reads, and decides itself:

1. *Flowing.* ``XPUB_NODROP`` makes libzmq refuse a message for which the slowest subscriber has no
   room (``iopub_hwm``), instead of dropping it.
2. *Held.* A refused message and all after it wait here, in order, and are tried again every few
   milliseconds. Up to ``iopub_queue_bytes`` nothing is lost. What libzmq itself holds is counted in
   messages, not in bytes: where they are large the proxy says so (``crowded``), and all waits here.
3. *Shedding.* Beyond that ordinary output is dropped and counted; what a client must not miss
   (``status``, ``error`` …) still enters, up to ``iopub_reserve_bytes`` more. A line on the cell's
   standard error says how much is missing, before the cell's ``idle``. An ``idle`` that does not
   enter is remembered, and made good when there is room: see :meth:`.answers.Answers.owe`.
4. *Passing over.* With one subscriber that is all. With several, all wait for the slowest; when
   nothing moved for ``stall_seconds`` that one loses the next message, after which libzmq
   leaves it out by itself until it reads again. It misses what was sent in between, as it would
   have without a proxy; the others miss nothing.

libzmq cannot send to one subscriber, so a welcome goes to every subscriber of its topic: a client
sees those of later clients too, as it does from a kernel itself (JEP 65).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import zmq

from . import wire
from .limits import MessageLimits
from .messages import NO_PARENT, Composer
from .report import Report

#: Objects around the bytes of one queued message, about.
_OVERHEAD: Final = 1024
#: Bytes of a frame that are rather copied than kept, when it has to wait.
_SMALL: Final = 16 * 1024
_LONGEST_TOPIC: Final = 1024
_MOST_WELCOMES: Final = 256
_RETRY_MS: Final = 5
_RETRY_STALLED_MS: Final = 50
#: Seconds without progress after which it is tried less often.
_STALLED: Final = 1.0

Frames = Sequence[bytes | zmq.Frame]


@dataclass(frozen=True, slots=True)
class _Queued:
    frames: Frames
    cost: int


def _compact(frame: bytes | zmq.Frame) -> bytes | zmq.Frame:
    """A small frame of libzmq's keeps the whole buffer that it was received in."""
    small = isinstance(frame, zmq.Frame) and len(frame) <= _SMALL
    return frame.bytes if small else frame  # type: ignore[union-attr]


class Broadcast:
    """Owns the queue; the proxy owns the socket, an XPUB with NODROP and VERBOSER set."""

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        limits: MessageLimits,
        composer: Composer,
        report: Report,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.socket = socket
        self._limits = limits
        self._composer = composer
        self._report = report
        self._clock = clock
        self._queue: deque[_Queued] = deque()
        self._queued = 0
        self._moved = 0.0
        self._lost_messages = self._lost_bytes = 0
        self._lost_parent = NO_PARENT
        self._subscriptions = 0
        self._welcomes: deque[bytes] = deque()
        self._live = False
        self.crowded = False
        """Set by the proxy: libzmq holds so much for clients that it is to get no more."""

    # -- sending ----------------------------------------------------------------------------

    @property
    def held(self) -> bool:
        """Something waits for the slowest subscriber."""
        return bool(self._queue)

    @property
    def queued(self) -> int:
        """Bytes that wait here, about; it is bounded, and not libzmq's."""
        return self._queued

    @property
    def has_room(self) -> bool:
        """The reserve for what a client must not miss is not in use."""
        return self._queued <= self._limits.iopub_queue_bytes

    def send(self, frames: Frames, *, essential: bool, parent: bytes = NO_PARENT) -> bool:
        """Publish now or later, or drop, see above; false if it was dropped.

        ``parent`` is the raw parent header.
        """
        if not self._queue and not self._lost_messages and self._try(frames):
            return True
        cost = sum(map(len, frames)) + _OVERHEAD
        if essential and self._lost_messages:
            self._tell_loss()
        if self._queued + cost > self._room(essential):
            self._lose(cost, essential, parent)
            return False
        self._enqueue(frames, cost)
        return True

    def flush(self) -> None:
        """Send what is held as far as there is room; at most a burst."""
        for _ in range(self._limits.burst):
            if not self._queue:
                self._tell_loss()
            if not self._queue:
                return
            if not self._try(self._queue[0].frames):
                self._pass_over_if_stalled()
                return
            self._pop()

    def timeout_ms(self) -> int | None:
        """When :meth:`flush` is due again; ``None``: not before there is something new."""
        if not self._queue:
            return None
        stalled = self._clock() - self._moved > _STALLED
        return _RETRY_STALLED_MS if stalled else _RETRY_MS

    def _room(self, essential: bool) -> int:
        reserve = self._limits.iopub_reserve_bytes if essential else 0
        return self._limits.iopub_queue_bytes + reserve

    def _try(self, frames: Frames) -> bool:
        if self.crowded:
            return False
        try:
            wire.send(self.socket, frames, copy=False)
        except zmq.Again:
            return False
        return True

    def _enqueue(self, frames: Frames, cost: int) -> None:
        if not self._queue:
            self._moved = self._clock()
        self._queue.append(_Queued([_compact(frame) for frame in frames], cost))
        self._queued += cost

    def _pop(self) -> None:
        self._queued -= self._queue.popleft().cost
        self._moved = self._clock()

    def _pass_over_if_stalled(self) -> None:
        if self._subscriptions < 2 or self._clock() - self._moved < self._limits.stall_seconds:
            return
        self._report(
            "a client did not read from iopub for "
            f"{self._limits.stall_seconds:g} seconds: it is passed over until it does"
        )
        # A lossy send that fails for one pipe makes that pipe inactive, and inactive pipes do not
        # count for NODROP any more. Reading reactivates it.
        self.socket.setsockopt(zmq.XPUB_NODROP, 0)
        self._try(self._queue[0].frames)
        self.socket.setsockopt(zmq.XPUB_NODROP, 1)
        self._pop()

    # -- losing -----------------------------------------------------------------------------

    def _lose(self, cost: int, essential: bool, parent: bytes) -> None:
        kind = "status or error" if essential else "output"
        self._report(f"dropped {kind} on iopub: a client reads slower than the kernel writes")
        self._lost_messages += 1
        self._lost_bytes += cost - _OVERHEAD
        self._lost_parent = parent

    def _tell_loss(self) -> None:
        if not self._lost_messages:
            return
        text = (
            f"\n[sandbox] {self._lost_messages} messages of output ({self._lost_bytes} bytes) were "
            "dropped: the client did not read as fast as the kernel wrote\n"
        )
        frames = self._composer.stream(text, self._lost_parent)
        cost = sum(map(len, frames)) + _OVERHEAD
        if self._queued + cost <= self._room(essential=True):
            self._lost_messages = self._lost_bytes = 0
            self._enqueue(frames, cost)

    # -- subscribers ------------------------------------------------------------------------

    def take_subscriptions(self) -> None:
        """Read what clients subscribed to; at most a burst. Each new one is welcomed."""
        for _ in range(self._limits.burst):
            try:
                event = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            if event[:1] == b"\0":
                self._subscriptions = max(self._subscriptions - 1, 0)
            elif event[:1] == b"\1" and len(event) <= _LONGEST_TOPIC:
                self._subscriptions += 1
                self._welcome(event[1:])

    def upstream_is_live(self) -> None:
        """The kernel is known to publish to the proxy: who is welcomed misses nothing from here."""
        if not self._live:
            self._live = True
            while self._welcomes:
                self._welcome(self._welcomes.popleft())

    def _welcome(self, topic: bytes) -> None:
        if not self._live:
            if len(self._welcomes) < _MOST_WELCOMES:
                self._welcomes.append(topic)
            return
        frames = self._composer.welcome(topic)
        if frames is not None:
            self.send(frames, essential=True)
