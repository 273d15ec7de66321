"""Which messages pass between a client and the kernel, and what the proxy remembers of them.

Signatures are checked only of what the proxy acts upon. Requests on shell and control enter the
table of pending requests and may be answered from it, replies close an entry, statuses move it:
these are checked (4 µs for a small message, 0.7 ms for 1 MB). All else is checked by its receiver
anyway, kernel or client, each with the same key; here that would be paid again for every output,
and against a hostile kernel, which has the key, it would prove nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from ..errors import ProtocolError
from .accounting import Accounting, with_account
from .announcements import Announcements
from .answers import FENCE, UNREAD, Answers
from .connection import Channel
from .heartbeat import Heartbeat
from .limits import MessageLimits
from .messages import (
    Message,
    Signer,
    check_size,
    is_request,
    join,
    parse_header,
    parse_parent,
    split,
)
from .pending import PendingTable
from .report import Report

#: A heartbeat is an identity, an empty frame and "ping".
_HEARTBEAT_FRAMES: Final = 8
_HEARTBEAT_BYTES: Final = 1024
_ANSWERED: Final = (Channel.SHELL, Channel.CONTROL)
#: What front ends ask by themselves, when they connect or are shown again.
_UNASKED: Final = frozenset({"kernel_info_request", "comm_info_request"})


class Judge:
    """Its methods are what :class:`~.lane.Lane` calls; ProtocolError carries the reason."""

    def __init__(
        self,
        signer: Signer,
        limits: MessageLimits,
        pending: PendingTable,
        answers: Answers,
        announcements: Announcements,
        heartbeat: Heartbeat,
        report: Report,
        accounting: Accounting,
    ) -> None:
        self._accounting = accounting
        self._signer = signer
        self._limits = limits
        self._pending = pending
        self._answers = answers
        self._announcements = announcements
        self._heartbeat = heartbeat
        self._report = report
        self._questions = 0
        self.uses = 0
        """Requests and other messages of clients that somebody's doing is behind."""
        self.before_cell: Callable[[], None] = lambda: None
        """Set by the proxy's owner: called before a cell reaches a kernel that runs none."""
        self.crowded = False
        """Set by the proxy: libzmq holds so much for clients that it gets nothing large."""

    def request(self, channel: Channel, frames: list[bytes]) -> bool:
        """Client → kernel."""
        if channel is Channel.HB:
            _check_heartbeat(frames)
            return self._heartbeat.asked(frames)
        if len(frames) > self._limits.max_frames:
            raise ProtocolError(f"more than {self._limits.max_frames} frames")
        message = split(frames)
        if channel is Channel.STDIN:
            self._questions = 0
        if channel in _ANSWERED:
            self._verify(message)
            header = parse_header(message.header, self._limits)
            usage = header.msg_type == "usage_request" and channel is Channel.CONTROL
            if usage and self._answers.usage(message.identities, message.header):
                return False
            if header.msg_type not in _UNASKED:
                self.uses += 1
            if header.msg_type == "execute_request" and self._pending.cell is None:
                self.before_cell()
            if is_request(header.msg_type) and not self._pending.add(
                channel, message.identities, header, message.header
            ):
                self._report(f"forgot a request: {self._limits.max_pending} wait already")
            self._accounting.began(channel, message.identities, header, message.content)
            if header.msg_type == "execute_request":
                self._questions = 0
                self._announcements.deliver(message.header, message.content)
        return True

    def reply(self, channel: Channel, frames: list[bytes]) -> bool:
        """Kernel → client. A reply passes to the client that asked, once; all else is dropped."""
        if channel is Channel.HB:
            _check_heartbeat(frames)
            return self._heartbeat.answered(frames)
        check_size(frames, self._limits)
        message = split(frames)
        if channel not in _ANSWERED:
            return self._question(frames)
        self._verify(message)
        header = parse_header(message.header, self._limits)
        parent = parse_parent(message.parent_header, self._limits)
        request = None
        if parent is not None:
            request = self._pending.answered(channel, message.identities, parent, header.msg_type)
        if request is None:
            raise ProtocolError("an answer to no request")
        if request.identities == FENCE:
            self._answers.fence_came_back(request)
            return False
        if request.idle_at_risk and not request.idled:
            self._answers.idle(request)
        if self.crowded and sum(map(len, frames)) > self._limits.large_bytes:
            self._answers.error_reply(request, UNREAD)
            raise ProtocolError("no memory is left for it: clients do not read")
        account = self._accounting.answered(request, message)
        if account is not None and header.msg_type == "execute_reply":
            frames[:] = join(with_account(message, account, self._signer, self._limits))
        return True

    def _question(self, frames: list[bytes]) -> bool:
        """On stdin: a prompt. Nobody is asked again and again without an answer."""
        if sum(map(len, frames)) > self._limits.max_question_bytes:
            raise ProtocolError(f"larger than {self._limits.max_question_bytes} bytes")
        self._questions += 1
        if self._questions > self._limits.max_questions:
            raise ProtocolError(f"more than {self._limits.max_questions} without an answer")
        return True

    def _verify(self, message: Message) -> None:
        if not self._signer.verify(message):
            raise ProtocolError("a wrong signature")


def _check_heartbeat(frames: Sequence[bytes]) -> None:
    if len(frames) > _HEARTBEAT_FRAMES or sum(map(len, frames)) > _HEARTBEAT_BYTES:
        raise ProtocolError("larger than a heartbeat")
