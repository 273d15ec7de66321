"""What each cell used, from its request to its reply, and what is written down of it.

A cell begins when its request comes, or, if others wait before it, with the reply to the one
before: the kernel runs them one by one. So a cell has two readings at the most, and in a queue
each reading is the end of one and the beginning of the next. Cells of subshells run beside the
others; each of them is charged with all that the kernel used meanwhile. So is what a thread
goes on with after its cell; between two cells nobody is.

The figures are the cgroup's. What the kernel itself put into the place of them is replaced.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from ..errors import ProtocolError, SandboxError
from .connection import Channel
from .limits import MessageLimits
from .messages import Header, Message, Signer, parse_object
from .pending import Request

#: On iopub, from the kernel: it asks for a line with figures, in the place of this message.
FIGURES: Final = "sandbox_figures"
#: In the metadata of an ``execute_reply``.
KEY: Final = "sandbox"
#: What runs code: these are written down.
_RUN_CODE: Final = frozenset({"execute_request", "debug_request"})
_CELL: Final = "execute_request"
#: Bytes of a reply's content that is looked into for its status.
_MOST_CONTENT: Final = MessageLimits(max_header_bytes=1024 * 1024)
_MOST_ENAME: Final = 200
#: Outcome of a request to which nothing came: its kernel was ended on order, or the table was full.
UNANSWERED: Final = "unanswered"


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters of the kernel at one moment; ``None`` where nothing accounts it."""

    at: float
    """Seconds of a clock that is never set."""
    cpu_usec: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None
    sent_bytes: int | None = None
    """By the kernel, over its link."""
    received_bytes: int | None = None
    refused_forks: int | None = None
    oom_kills: int | None = None


@dataclass(frozen=True, slots=True)
class Account:
    """What was used between two readings."""

    wall_s: float
    cpu_s: float | None
    peak_bytes: int | None
    peak_of: str
    """``cell``, or ``kernel`` where Linux cannot begin the peak anew."""
    read_bytes: int | None
    written_bytes: int | None
    sent_bytes: int | None
    received_bytes: int | None
    refused_forks: int | None
    oom_kills: int | None

    def to_dict(self) -> dict[str, Any]:
        """As in the reply's metadata: seconds and bytes."""
        return {
            "cpu_s": self.cpu_s,
            "wall_s": self.wall_s,
            "peak_bytes": self.peak_bytes,
            "peak_of": self.peak_of,
            "io": _table(read_bytes=self.read_bytes, written_bytes=self.written_bytes),
            "net": _table(sent_bytes=self.sent_bytes, received_bytes=self.received_bytes),
        }

    def denials(self) -> dict[str, int]:
        """How often something was refused, of what Linux counts."""
        return _table(forks=self.refused_forks, oom_kills=self.oom_kills) or {}


@dataclass(frozen=True, slots=True)
class Entry:
    """One request that runs code, when it is over. Texts are a client's, and the kernel's."""

    msg_type: str
    msg_id: str
    session: str
    username: str
    began: float
    """Seconds since the epoch."""
    code: Mapping[str, Any] | None
    """What :meth:`Journal.code` made of its content."""
    outcome: str
    ename: str
    account: Account


class Meter(Protocol):
    """Measures one kernel, for people and programs. Nothing of it raises."""

    peak_of: str

    def read(self) -> Reading: ...

    def take_peak(self) -> int | None:
        """Bytes since the last call where ``peak_of`` is ``cell``, else of the kernel's life."""

    def use(self) -> str:
        """Caps and use of this moment, some lines."""

    def cell(self, account: Account) -> str:
        """One line."""

    def usage(self) -> dict[str, Any] | None:
        """Content of a ``usage_reply``; ``None`` where the kernel has to measure itself."""


class Journal(Protocol):
    """Writes down what ran.

    Raises:
        SandboxError: what is to be written down cannot be; the sandbox must end.
    """

    def code(self, msg_type: str, content: bytes) -> Mapping[str, Any] | None: ...

    def write(self, entry: Entry) -> None: ...


@dataclass(slots=True, eq=False)
class _Open:
    header: Header
    began: float
    code: Mapping[str, Any] | None
    start: Reading
    peak: int | None = None
    is_cell: bool = True


_Key = tuple[Channel, tuple[bytes, ...], str]


@dataclass
class Accounting:
    """Told by the judge of each request and reply, by the answers of each that the proxy gives."""

    limits: MessageLimits
    meter: Meter | None = None
    journal: Journal | None = None
    _open: dict[_Key, _Open] = field(default_factory=dict)
    _last: tuple[str, Account] | None = None
    broken: SandboxError | None = None
    """What the journal raised. What it could not write had its reply all the same, since it did
    run; the proxy raises this then, and the sandbox ends."""

    def began(
        self, channel: Channel, identities: tuple[bytes, ...], header: Header, content: bytes
    ) -> None:
        """A request of a client passes to the kernel."""
        wanted = header.msg_type == _CELL or (self.journal and header.msg_type in _RUN_CODE)
        if self.meter is None or not wanted:
            return
        key = (channel, identities, header.msg_id)
        if key in self._open:  # a client that uses an id twice
            self._close(key, UNANSWERED, "")
        while len(self._open) >= self.limits.max_pending:
            self._close(next(iter(self._open)), UNANSWERED, "")
        code = self.journal.code(header.msg_type, content) if self.journal else None
        if header.msg_type == _CELL:
            self._look_at_peak()
        self._open[key] = _Open(
            header, time.time(), code, self.meter.read(), is_cell=header.msg_type == _CELL
        )

    def answered(self, request: Request, message: Message) -> Account | None:
        """The kernel has replied; ``None`` if the request is not accounted."""
        key = (request.channel, request.identities, request.msg_id)
        if key not in self._open:
            return None
        outcome, ename = _outcome(message.content) if self.journal else ("", "")
        return self._close(key, outcome, ename)

    def failed(self, request: Request, ename: str) -> dict[str, Any]:
        """The proxy replies in the kernel's stead; the metadata of that reply."""
        key = (request.channel, request.identities, request.msg_id)
        account = self._close(key, "error", ename) if key in self._open else None
        return {} if account is None else {KEY: account.to_dict()}

    def close(self) -> None:
        """Nothing replies any more to what is open. Twice is once."""
        for key in list(self._open):
            self._close(key, UNANSWERED, "")

    def figures(self, of: str, msg_id: str) -> str:
        """Lines for a person: of the cell ``msg_id`` up to now, or of the kernel."""
        if self.meter is None:
            return "this kernel is not measured\n"
        if of == "cell":
            cells = (o for o in self._open.values() if o.header.msg_id == msg_id)
            if (cell := next(cells, None)) is not None:
                self._look_at_peak()
                return self.meter.cell(self._account(cell, self.meter.read()))
            if self._last is not None and self._last[0] == msg_id:  # the reply was faster
                return self.meter.cell(self._last[1])
        return self.meter.use()

    def usage(self) -> dict[str, Any] | None:
        """See :meth:`Meter.usage`."""
        return None if self.meter is None else self.meter.usage()

    # -- details ----------------------------------------------------------------------------

    def _close(self, key: _Key, outcome: str, ename: str) -> Account | None:
        if self.meter is None:
            return None
        self._look_at_peak()
        now, done = self.meter.read(), self._open.pop(key)
        account = self._account(done, now)
        self._last = (done.header.msg_id, account)
        self._next_begins(done, now)
        self._write_down(done, outcome, ename, account)
        return account

    def _write_down(self, done: _Open, outcome: str, ename: str, account: Account) -> None:
        if self.journal is None:
            return
        header = done.header
        try:
            self.journal.write(
                Entry(
                    header.msg_type, header.msg_id, header.session, header.username, done.began,
                    done.code, outcome, ename, account,
                )
            )  # fmt: skip
        except SandboxError as error:
            self.broken, self.journal = error, None

    def _next_begins(self, done: _Open, now: Reading) -> None:
        """Only now does the kernel turn to the one that waited longest, in the same shell."""
        if not done.is_cell:
            return
        for waiting in self._open.values():
            if waiting.is_cell and waiting.header.subshell == done.header.subshell:
                waiting.start, waiting.peak = now, None
                return

    def _look_at_peak(self) -> None:
        """What was seen since the last look counts for all that are open; then it begins anew."""
        peak = self.meter.take_peak() if self.meter is not None else None
        if peak is None:
            return
        for each in self._open.values():
            each.peak = max(peak, each.peak or 0)

    def _account(self, cell: _Open, now: Reading) -> Account:
        start = cell.start
        cpu = _since(now.cpu_usec, start.cpu_usec)
        return Account(
            wall_s=round(now.at - start.at, 6),
            cpu_s=None if cpu is None else cpu / 1_000_000,
            peak_bytes=cell.peak,
            peak_of=self.meter.peak_of if self.meter is not None else "",
            read_bytes=_since(now.read_bytes, start.read_bytes),
            written_bytes=_since(now.written_bytes, start.written_bytes),
            sent_bytes=_since(now.sent_bytes, start.sent_bytes),
            received_bytes=_since(now.received_bytes, start.received_bytes),
            refused_forks=_since(now.refused_forks, start.refused_forks),
            oom_kills=_since(now.oom_kills, start.oom_kills),
        )


def with_account(
    message: Message, account: Account, signer: Signer, limits: MessageLimits
) -> Message:
    """The kernel's reply with the account in its metadata, signed anew.

    Metadata that is no object, or larger than a header, is replaced as a whole.
    """
    try:
        metadata = parse_object(message.metadata, limits)
    except ProtocolError:
        metadata = {}
    metadata[KEY] = account.to_dict()
    try:
        raw = json.dumps(metadata, separators=(",", ":")).encode()
    except (UnicodeEncodeError, RecursionError):
        raw = json.dumps({KEY: account.to_dict()}).encode()
    message = dataclasses.replace(message, metadata=raw)
    return dataclasses.replace(message, signature=signer.sign(message.signed))


def _outcome(content: bytes) -> tuple[str, str]:
    """What the kernel says became of it: its status, and the name of the error."""
    try:
        fields = parse_object(content, _MOST_CONTENT)
    except ProtocolError:
        return "unknown", ""
    status, ename = fields.get("status"), fields.get("ename")
    known = status if status in ("ok", "error", "aborted") else "unknown"
    return known, ename[:_MOST_ENAME] if isinstance(ename, str) and known == "error" else ""


def _since(now: int | None, before: int | None) -> int | None:
    return None if now is None or before is None else max(now - before, 0)


def _table(**numbers: int | None) -> dict[str, int] | None:
    """Without what nothing accounts; ``None`` if that is all."""
    return {name: value for name, value in numbers.items() if value is not None} or None
