"""Jupyter's wire format: frames, signatures, headers, and the few messages that the proxy makes.

``[identity or topic …, b"<IDS|MSG>", signature, header, parent header, metadata, content,
buffer …]``; the signature covers the four JSON parts and not the buffers.

Parsing is for hostile bytes. Sizes are checked before JSON is looked at, and JSON that is nested
too deeply, has endless digits or the wrong shape is a :class:`~sandbox_kernel.errors.ProtocolError`
like any other.
"""

from __future__ import annotations

import hmac
import json
import os
import platform
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol, TypeVar

from ..errors import ProtocolError
from .connection import digest_name
from .limits import MessageLimits

DELIMITER: Final = b"<IDS|MSG>"
PROTOCOL_VERSION: Final = "5.4"
NO_PARENT: Final = b"{}"
#: What a notebook is saved with if the last that its client asked was who the kernel is.
_PYTHON: Final = {
    "name": "python",
    "version": platform.python_version(),
    "mimetype": "text/x-python",
    "file_extension": ".py",
    "codemirror_mode": {"name": "ipython", "version": 3},
    "pygments_lexer": "ipython3",
    "nbconvert_exporter": "python",
}
#: Identities before the delimiter: one hop is one, a topic is one.
_MAX_IDENTITIES: Final = 8
#: Characters of an id or a type. Jupyter's own have up to 80.
_MAX_NAME: Final = 512
_PARTS: Final = 5


class _Sized(Protocol):
    def __len__(self) -> int: ...


_F = TypeVar("_F", bound=_Sized)


@dataclass(frozen=True, slots=True)
class Message:
    """One message, still serialised. ``identities`` are routing ids, or the topic on iopub."""

    identities: tuple[bytes, ...]
    signature: bytes
    header: bytes
    parent_header: bytes
    metadata: bytes
    content: bytes
    buffers: tuple[bytes, ...] = ()

    @property
    def signed(self) -> tuple[bytes, bytes, bytes, bytes]:
        """The parts that the signature covers."""
        return self.header, self.parent_header, self.metadata, self.content


@dataclass(frozen=True, slots=True)
class Header:
    """What the proxy looks at in a header. Text of a stranger: never put it into the log."""

    msg_id: str
    msg_type: str
    session: str
    username: str = ""
    subshell: str = ""
    """The shell of the kernel that is to run it; empty is the first one."""


# -- frames -------------------------------------------------------------------------------------


def check_size(frames: Sequence[_Sized], limits: MessageLimits) -> None:
    """The bounds of a message from the kernel.

    Raises:
        ProtocolError: it has too many frames or bytes.
    """
    if len(frames) > limits.max_frames:
        raise ProtocolError(f"more than {limits.max_frames} frames")
    if sum(map(len, frames)) > limits.max_message_bytes:
        raise ProtocolError(f"larger than {limits.max_message_bytes} bytes")


def split(frames: Sequence[bytes]) -> Message:
    """The message that ``frames`` are; :func:`join` is the inverse.

    Raises:
        ProtocolError: no delimiter, too many identities, or fewer than five parts after it.
    """
    try:
        at = frames.index(DELIMITER, 0, _MAX_IDENTITIES + 1)
    except ValueError:
        raise ProtocolError("no delimiter") from None
    if len(frames) < at + 1 + _PARTS:
        raise ProtocolError("fewer than five parts")
    signature, header, parent, metadata, content, *buffers = frames[at + 1 :]
    return Message(tuple(frames[:at]), signature, header, parent, metadata, content, tuple(buffers))


def join(message: Message) -> list[bytes]:
    """The frames of a message."""
    signed = (message.signature, *message.signed)
    return [*message.identities, DELIMITER, *signed, *message.buffers]


# -- JSON ---------------------------------------------------------------------------------------


def parse_object(raw: bytes, limits: MessageLimits) -> dict[str, Any]:
    """A small JSON object.

    Raises:
        ProtocolError: too large, not JSON, nested too deeply, or not an object.
    """
    if len(raw) > limits.max_header_bytes:
        raise ProtocolError(f"a header larger than {limits.max_header_bytes} bytes")
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):  # bad utf-8 and endless digits are ValueErrors
        raise ProtocolError("a header that is not JSON") from None
    if not isinstance(value, dict):
        raise ProtocolError("a header that is not an object")
    return value


def parse_header(raw: bytes, limits: MessageLimits) -> Header:
    """The header of a message.

    Raises:
        ProtocolError: see :func:`parse_object`; or an id or type is missing, empty or endless.
    """
    fields = parse_object(raw, limits)
    msg_id, msg_type, session = (fields.get(k) for k in ("msg_id", "msg_type", "session"))
    if not _is_name(msg_id) or not _is_name(msg_type):
        raise ProtocolError("a header without msg_id or msg_type")
    more = (fields.get(name) for name in ("username", "subshell_id"))
    names = [str(value) if _is_name(value) else "" for value in (session, *more)]
    return Header(str(msg_id), str(msg_type), *names)


def parse_parent(raw: bytes, limits: MessageLimits) -> Header | None:
    """The parent header; ``None`` where a message has no parent (``{}``).

    Raises:
        ProtocolError: see :func:`parse_header`.
    """
    return None if raw == NO_PARENT else parse_header(raw, limits)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_NAME


# -- signatures ---------------------------------------------------------------------------------


class Signer:
    """Signs and checks with the connection's key; with an empty key everything passes."""

    def __init__(self, key: bytes, signature_scheme: str) -> None:
        self._blank = hmac.new(key, digestmod=digest_name(signature_scheme)) if key else None

    def sign(self, parts: Sequence[bytes]) -> bytes:
        """The hex digest over the four JSON parts; empty without a key."""
        if self._blank is None:
            return b""
        digest = self._blank.copy()
        for part in parts:
            digest.update(part)
        return digest.hexdigest().encode()

    def verify(self, message: Message) -> bool:
        """In constant time for a given size."""
        return self._blank is None or hmac.compare_digest(
            message.signature, self.sign(message.signed)
        )


# -- what the proxy says ------------------------------------------------------------------------


class Composer:
    """Makes signed messages in the name of the kernel.

    ``parent`` is the raw header of the request that is answered, as its client sent it.
    """

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self._session = uuid.uuid4().hex
        self._number = 0

    def message(
        self,
        msg_type: str,
        content: dict[str, Any],
        parent: bytes = NO_PARENT,
        identities: tuple[bytes, ...] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> list[bytes]:
        """The frames of any message."""
        self._number += 1
        header = {
            "msg_id": f"{self._session}_{os.getpid()}_{self._number}",
            "msg_type": msg_type,
            "username": "sandbox",
            "session": self._session,
            "date": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            "version": PROTOCOL_VERSION,
        }
        parts = (_dump(header), parent, _dump(dict(metadata or {})), _dump(content))
        return join(Message(identities, self._signer.sign(parts), *parts))

    def sign(self, parts: Sequence[bytes]) -> bytes:
        """The signature of a message of the kernel's that was changed here."""
        return self._signer.sign(parts)

    def welcome(self, topic: bytes) -> list[bytes] | None:
        """``iopub_welcome`` for a new subscription; ``None`` for a topic that is not text."""
        try:
            content = {"subscription": topic.decode()}
        except UnicodeDecodeError:
            return None
        return self.message("iopub_welcome", content, identities=(topic,) if topic else ())

    def status(self, state: str, parent: bytes) -> list[bytes]:
        """``busy`` or ``idle`` on iopub."""
        return self.message("status", {"execution_state": state}, parent, (b"sandbox.status",))

    def error(self, failure: Failure, parent: bytes) -> list[bytes]:
        """The output of a cell that failed, on iopub."""
        return self.message("error", failure.content(), parent, (b"sandbox.error",))

    def stream(self, text: str, parent: bytes, name: str = "stderr") -> list[bytes]:
        """A line on the standard error, or output, of a cell, on iopub."""
        content = {"name": name, "text": text}
        return self.message("stream", content, parent, (f"stream.{name}".encode(),))

    def error_reply(
        self, request_type: str, failure: Failure, parent: bytes, identities: tuple[bytes, ...],
        metadata: Mapping[str, Any] | None = None,
    ) -> list[bytes]:  # fmt: skip
        """The reply of the type that belongs to ``request_type``, with status error."""
        content = failure.content() | {"status": "error"}
        if request_type == "execute_request":
            content |= {"execution_count": None, "user_expressions": {}, "payload": []}
        if request_type == "kernel_info_request":
            # clients read these without a look at the status
            content |= {
                "protocol_version": PROTOCOL_VERSION,
                "implementation": "sandbox-kernel",
                "implementation_version": "",
                "language_info": _PYTHON,
                "banner": failure.evalue,
                "help_links": [],
            }
        return self.message(reply_type(request_type), content, parent, identities, metadata)


@dataclass(frozen=True)
class Failure:
    """Why requests cannot be answered, in the words of Jupyter's error messages."""

    ename: str
    evalue: str
    traceback: tuple[str, ...] = ()

    def content(self) -> dict[str, Any]:
        return {"ename": self.ename, "evalue": self.evalue, "traceback": list(self.traceback)}


def is_request(msg_type: str) -> bool:
    """True for what is answered by a reply; comm messages, for one, are not."""
    return msg_type.endswith("_request")


def reply_type(request_type: str) -> str:
    """``execute_reply`` of ``execute_request``."""
    return request_type.removesuffix("_request") + "_reply"


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
