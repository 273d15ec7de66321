"""Output beyond the spec's caps is cut, counted, and said in the cell that it came from.

Everything between the beginnings of two cells is one cell's, whatever parent a message names: the
kernel writes that itself. A cell begins when the kernel is busy with it for the first time, which
a client must have asked for; so a kernel gives itself no new budget.

Each message costs a few integers here, and no parsing before a cap is met. What is held back then
is output alone. What somebody waits for passes always: the first busy and idle of a request,
replies, which are not on iopub, and ``error`` as long as a second budget of the same size lasts.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Final

from ..output import OutputCaps
from .broadcast import Broadcast
from .messages import NO_PARENT, Composer, Message, join
from .pending import Request
from .report import Report

#: Seconds whose worth may come at once, where a cap is one a second.
BURST_SECONDS: Final = 3.0
#: A stream as every kernel writes it, up to its text.
_STREAM: Final = re.compile(rb'\s*\{\s*"name"\s*:\s*"(?:stdout|stderr)"\s*,\s*"text"\s*:\s*"')
#: Bytes at the end of a text that was cut which may be a part of something: ``\\u12a`` is.
_LONGEST_ESCAPE: Final = 6
_UNITS: Final = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


class _Bucket:
    """Refilled by the second, or, without a rate, by :meth:`fill` alone."""

    def __init__(self, cap: int | None, name: str, *, by_second: bool) -> None:
        self.cap = cap
        self.name = name
        self.by_second = by_second
        self.full = (cap or 0) * (BURST_SECONDS if by_second else 1)
        self.left = self.full

    def fill(self) -> None:
        self.left = self.full

    def refill(self, seconds: float) -> None:
        self.left = min(self.left + seconds * (self.cap or 0), self.full)

    def lasts(self, amount: float, reserve: bool) -> bool:
        return self.cap is None or self.left + (self.full if reserve else 0) >= amount

    def describe(self) -> str:
        amount = _size(self.cap or 0) if "bytes" in self.name else f"{self.cap} messages"
        return f"{amount} a {'second' if self.by_second else 'cell'} (output_{self.name})"


class Cutting:
    """Made by the proxy; :class:`~.upstream.Upstream` asks it about each message."""

    def __init__(
        self,
        caps: OutputCaps,
        broadcast: Broadcast,
        composer: Composer,
        report: Report,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.active = caps.asked()
        """Without caps nothing needs to be asked."""
        self._broadcast = broadcast
        self._composer = composer
        self._report = report
        self._clock = clock
        self._then = clock()
        sizes, counts = "bytes_per_", "messages_per_"
        self._bytes = [
            _Bucket(caps.bytes_per_second, sizes + "second", by_second=True),
            _Bucket(caps.bytes_per_cell, sizes + "cell", by_second=False),
        ]
        self._messages = [
            _Bucket(caps.messages_per_second, counts + "second", by_second=True),
            _Bucket(caps.messages_per_cell, counts + "cell", by_second=False),
        ]
        self._cell = NO_PARENT
        self._cut_messages = self._cut_bytes = 0

    def begin(self, cell: Request) -> None:
        """The kernel is busy with it for the first time."""
        self._sum_up()
        self._cell = cell.header
        for bucket in (*self._bytes, *self._messages):
            if not bucket.by_second:
                bucket.fill()

    def end(self, cell: Request) -> None:
        """Its idle is about to be published: the figures come before."""
        if cell.header == self._cell:
            self._sum_up()

    def passes(self, size: int, *, essential: bool) -> bool:
        """May a message of ``size`` bytes pass? If so it is counted. What is essential has a
        second budget, so that it outlives the output and is bounded all the same."""
        now = self._clock()
        passed, self._then = now - self._then, now
        for bucket in (self._bytes[0], self._messages[0]):
            bucket.refill(passed)
        if not self._lasts(self._bytes, size, essential):
            return False
        if not self._lasts(self._messages, 1, essential):
            return False
        self._take(size)
        return True

    def cut(self, message: Message, size: int) -> None:
        """It does not pass: publish what of its text does, say so, count the rest."""
        met = self._met(size)
        around = size - len(message.content)
        kept = self._beginning(message, around)
        if kept:
            self._take(around + len(kept))
            parts = (message.header, message.parent_header, message.metadata, kept)
            signature = self._composer.sign(parts)
            frames = join(Message(message.identities, signature, *parts))
            self._broadcast.send(frames, essential=False, parent=message.parent_header)
        if not self._cut_messages:
            self._say(f"output of this cell is cut here: more than {met.describe()}")
        self._report(f"cut output: more than {met.describe()}")
        self._cut_messages += 1
        self._cut_bytes += len(message.content) - len(kept)

    # -- details ----------------------------------------------------------------------------

    def _lasts(self, buckets: list[_Bucket], amount: float, reserve: bool) -> bool:
        return all(bucket.lasts(amount, reserve) for bucket in buckets)

    def _take(self, size: int) -> None:
        for bucket in self._bytes:
            bucket.left -= size
        for bucket in self._messages:
            bucket.left -= 1

    def _met(self, size: int) -> _Bucket:
        """The cap that the message does not fit in; that of the cell, which stays met, first."""
        for bucket, amount in (
            (self._bytes[1], size), (self._messages[1], 1), (self._bytes[0], size),
        ):  # fmt: skip
            if not bucket.lasts(amount, False):
                return bucket
        return self._messages[0]

    def _beginning(self, message: Message, around: int) -> bytes:
        """The content of a stream with the beginning of its text that fits; empty if none does.

        ``around`` are the bytes of the message besides. No more of the text is parsed.
        """
        head = _STREAM.match(message.content)
        if head is None or not self._lasts(self._messages, 1, False):
            return b""
        room = min((int(b.left) for b in self._bytes if b.cap is not None), default=0) - around - 2
        for end in range(room, max(room - _LONGEST_ESCAPE, head.end()), -1):
            try:
                json.loads(b'"' + message.content[head.end() : end] + b'"')
            except ValueError:  # within a character, or an escape; or it is no text at all
                continue
            return message.content[:end] + b'"}'
        return b""

    def _sum_up(self) -> None:
        if self._cut_messages:
            self._say(
                f"output was cut: {_size(self._cut_bytes)} in {self._cut_messages} "
                f"message{'s' if self._cut_messages > 1 else ''} did not pass"
            )
        self._cut_messages = self._cut_bytes = 0

    def _say(self, text: str) -> None:
        frames = self._composer.stream(f"\n[sandbox] {text}\n", self._cell)
        self._broadcast.send(frames, essential=True, parent=self._cell)


def _size(size: int) -> str:
    for name, unit in _UNITS:
        if size >= unit:
            return f"{size / unit:.1f} {name}".replace(".0 ", " ")
    return f"{size} bytes"
