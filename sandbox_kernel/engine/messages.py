"""Messages between the processes of one sandbox: JSON over a unix SEQPACKET socket.

One message is one packet, bounded in size. What arrives is checked before it is used: after the
walls are up the other side may be hostile. A message is a JSON object with a ``type``; the classes
that give it meaning are frozen dataclasses, see :mod:`sandbox_kernel.protocol` and
:mod:`.init`.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Sequence
from typing import Any, Final

from ..errors import ProtocolError

#: Bytes of one message. An environment or a spec beyond this is refused, never cut.
MESSAGE_MAXIMUM: Final = 160 * 1024
_DESCRIPTORS_MAXIMUM: Final = 8
_ANCILLARY: Final = socket.CMSG_LEN(_DESCRIPTORS_MAXIMUM * array.array("i").itemsize)


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a new packet socket."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(
    sock: socket.socket, message: dict[str, Any], fds: Sequence[int] = (), *, flags: int = 0
) -> None:
    """Send one message, with descriptors if any.

    Raises:
        ProtocolError: the message is too large.
        BlockingIOError: the other side reads too little, and who sends does not want to wait.
        OSError: the other side is gone.
    """
    raw = json.dumps(message, separators=(",", ":"), ensure_ascii=True).encode()
    if len(raw) > MESSAGE_MAXIMUM:
        raise ProtocolError(
            f"a message of type {message.get('type')!r} has {len(raw)} bytes",
            cause=f"{MESSAGE_MAXIMUM} can be sent; the environment or the spec is too large",
        )
    # not socket.send_fds: up to Python 3.11 it drops its flags
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([raw], rights, flags | socket.MSG_NOSIGNAL)


def receive(sock: socket.socket, *, flags: int = 0) -> tuple[dict[str, Any], list[int]] | None:
    """The next message and its descriptors; ``None`` at the end of the stream.

    Raises:
        ProtocolError: what arrived is not a message. Its descriptors have been closed.
        BlockingIOError: ``flags`` has MSG_DONTWAIT and nothing is there.
    """
    # not socket.recv_fds: up to Python 3.11 it drops its flags
    flags |= socket.MSG_CMSG_CLOEXEC
    try:
        raw, ancillary, status, _ = sock.recvmsg(MESSAGE_MAXIMUM, _ANCILLARY, flags)
    except ConnectionResetError:
        # The other side ended with a message of ours unread. Linux says so first, and once; what
        # the other side had said before that comes after it.
        raw, ancillary, status, _ = sock.recvmsg(MESSAGE_MAXIMUM, _ANCILLARY, flags)
    fds = [fd for level, kind, data in ancillary for fd in _descriptors(level, kind, data)]
    try:
        if status & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ProtocolError(f"a message is larger than {MESSAGE_MAXIMUM} bytes")
        if not raw:
            if fds:
                raise ProtocolError("a message is empty")
            return None
        return decode(raw), fds
    except ProtocolError:
        for fd in fds:
            os.close(fd)
        raise


def _descriptors(level: int, kind: int, data: bytes) -> list[int]:
    """Those in one control message; a cut one holds whole numbers all the same."""
    if (level, kind) != (socket.SOL_SOCKET, socket.SCM_RIGHTS):
        return []
    numbers = array.array("i")
    numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return list(numbers)


def decode(raw: bytes) -> dict[str, Any]:
    """The JSON object in ``raw`` with a ``type`` that is a string, or :class:`ProtocolError`."""
    try:
        message = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("a message is not JSON", cause=type(error).__name__) from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ProtocolError("a message is not an object with a type")
    return message
