"""Which messages pass between a client and the kernel, and what the proxy remembers of them.

Signatures are checked only of what the proxy acts upon. Requests on shell and control enter the
table of pending requests and may be answered from it, replies close an entry, statuses move it:
these are checked (4 µs for a small message, 0.7 ms for 1 MB). All else is checked by its receiver
anyway, kernel or client, each with the same key; here that would be paid again for every output,
and against a hostile kernel, which has the key, it would prove nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ..errors import ProtocolError
from .announcements import Announcements
from .answers import Answers
from .connection import Channel
from .heartbeat import Heartbeat
from .limits import MessageLimits
from .messages import (
    Message,
    Signer,
    check_size,
    is_request,
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
    ) -> None:
        self._signer = signer
        self._limits = limits
        self._pending = pending
        self._answers = answers
        self._announcements = announcements
        self._heartbeat = heartbeat
        self._report = report

    def request(self, channel: Channel, frames: list[bytes]) -> bool:
        """Client → kernel."""
        if channel is Channel.HB:
            return _is_heartbeat(frames) and self._heartbeat.asked(frames)
        if len(frames) > self._limits.max_frames:
            raise ProtocolError(f"more than {self._limits.max_frames} frames")
        message = split(frames)
        if channel in _ANSWERED:
            self._verify(message)
            header = parse_header(message.header, self._limits)
            if is_request(header.msg_type) and not self._pending.add(
                channel, message.identities, header, message.header
            ):
                self._report(f"forgot a request: {self._limits.max_pending} wait already")
            if header.msg_type == "execute_request":
                self._announcements.deliver(message.header, message.content)
        return True

    def reply(self, channel: Channel, frames: list[bytes]) -> bool:
        """Kernel → client. A reply passes to the client that asked, once; all else is dropped."""
        if channel is Channel.HB:
            return _is_heartbeat(frames) and self._heartbeat.answered(frames)
        check_size(frames, self._limits)
        message = split(frames)
        if channel in _ANSWERED:
            self._verify(message)
            header = parse_header(message.header, self._limits)
            parent = parse_parent(message.parent_header, self._limits)
            request = None
            if parent is not None:
                request = self._pending.answered(
                    channel, message.identities, parent, header.msg_type
                )
            if request is None:
                raise ProtocolError("an answer to no request")
            if request.gap and not request.idled:
                self._answers.idle(request)
        return True

    def _verify(self, message: Message) -> None:
        if not self._signer.verify(message):
            raise ProtocolError("a wrong signature")


def _is_heartbeat(frames: Sequence[bytes]) -> bool:
    if len(frames) > _HEARTBEAT_FRAMES or sum(map(len, frames)) > _HEARTBEAT_BYTES:
        raise ProtocolError("larger than a heartbeat")
    return True
