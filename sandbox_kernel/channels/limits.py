"""Every number that bounds what a client or a kernel can make the proxy hold or do. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_KIB: Final = 1024
_MIB: Final = 1024**2


@dataclass(frozen=True)
class MessageLimits:
    """Bytes, numbers of messages and seconds; the defaults suit one notebook kernel.

    libzmq counts *whole* messages, of any size, and has no bound for a multipart message that never
    ends. So what it holds is measured, see :mod:`.gauge`: beyond ``crowded_bytes`` nothing more is
    handed to it for clients that do not read, and beyond ``full_bytes`` the links to the kernel are
    cut, with all that is on its way. The supervisor's memory rlimit lies above both.
    """

    max_frame_bytes: int = 64 * _MIB
    """One frame from the kernel. libzmq cuts the link on which a larger one comes."""
    max_message_bytes: int = 64 * _MIB
    """All frames of one message from the kernel."""
    max_client_frame_bytes: int = 256 * _MIB
    """One frame from a client, before its signature could be checked."""
    max_frames: int = 1024
    """Frames in one message: a widget may send hundreds of buffers."""
    max_header_bytes: int = 64 * _KIB
    """A header or parent header, and a status: the only JSON that the proxy ever parses."""
    max_pending: int = 4096
    """Requests without an answer. Beyond it the oldest is forgotten, and its reply dropped."""
    max_question_bytes: int = 1 * _MIB
    """One message from the kernel on stdin: the prompt of an ``input()``."""
    max_questions: int = 16
    """Of those since a client answered one or began a cell. Others are dropped: they would fill the
    memory of the supervisor, or of the server."""
    junk_a_second: int = 1000
    """Dropped messages from the kernel after which that link is not read until the next second."""

    crowded_bytes: int = 128 * _MIB
    """Memory for messages beyond which no more of it is filled with what a client does not read."""
    full_bytes: int = 256 * _MIB
    """Memory for messages at which the kernel is sending what no kernel sends."""
    large_bytes: int = 16 * _KIB
    """A reply that is dropped, and made good by an error, while memory is crowded."""

    front_hwm: int = 1000
    """Requests of one client that wait in libzmq, and messages on stdin that it has not read."""
    reply_hwm: int = 4096
    """Replies that one client has not read: as many as requests may be pending, so that who reads
    late gets each. Where that takes much memory, ``large_bytes`` bounds it."""
    back_hwm: int = 16
    """Messages that wait in libzmq in either direction between the proxy and the kernel."""
    iopub_hwm: int = 16
    """iopub messages that the slowest subscriber may be behind within libzmq."""
    iopub_queue_bytes: int = 64 * _MIB
    """iopub messages that wait in the proxy for the slowest subscriber, of every kind."""
    iopub_reserve_bytes: int = 8 * _MIB
    """On top: only for what a client must not miss (status, error)."""
    stall_seconds: float = 30.0
    """So long may one of several subscribers hold up the others before it is passed over. A client
    that only pauses, to collect garbage or to draw, comes back before and has missed nothing."""

    burst: int = 64
    """Messages per socket and direction in one call of dispatch."""
    linger_seconds: float = 1.0
    """What was sent may still pass while the proxy closes."""
    log_seconds: float = 10.0
    """Between two lines in the log for the same reason."""
