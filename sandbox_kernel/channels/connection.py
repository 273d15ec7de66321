"""Where the five channels of a kernel are, and the key that signs its messages: pure data, and the
connection file that carries it between processes.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import hmac
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ..errors import ChannelError, ProtocolError, SpecError, describe_errno

#: Bytes of a connection file that are read; a real one has some hundreds.
_MAX_FILE: Final = 64 * 1024
_Z85: Final = re.compile(rb"[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_HIDDEN: Final = "(hidden)"


class Channel(enum.Enum):
    """The five sockets of a kernel; the value is what the connection file calls them."""

    SHELL = "shell"
    IOPUB = "iopub"
    STDIN = "stdin"
    CONTROL = "control"
    HB = "hb"

    @property
    def port_key(self) -> str:
        """The key of its port in a connection file."""
        return f"{self.value}_port"


@dataclass(frozen=True)
class ConnectionInfo:
    """What a connection file says. Made by :meth:`from_dict`, which validates.

    With transport ``ipc`` the socket of a channel is the file ``{ip}-{port}``. The Curve keys are
    both there or both ``None``; Jupyter's clients use the same pair as the server.
    """

    transport: str
    ip: str
    shell_port: int
    iopub_port: int
    stdin_port: int
    control_port: int
    hb_port: int
    key: bytes = field(repr=False)
    """Empty: messages are not signed."""
    signature_scheme: str = "hmac-sha256"
    curve_publickey: bytes | None = field(default=None, repr=False)
    """Z85. Hidden like the secret one: who knows it can connect."""
    curve_secretkey: bytes | None = field(default=None, repr=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ConnectionInfo:
        """The dict of a connection file or of ``get_connection_info``; other keys are ignored.

        Raises:
            SpecError: a key is missing or cannot be; a secret's value is not in the message.
        """
        transport = _one_of(data, "transport", ("tcp", "ipc"), default="tcp")
        public, secret = (_curve_key(data, f"curve_{kind}key") for kind in ("public", "secret"))
        if (public is None) != (secret is None):
            missing = "curve_publickey" if public is None else "curve_secretkey"
            raise SpecError(missing, None, "both Curve keys, or neither")
        return cls(
            transport=transport,
            ip=_address(data, transport),
            **{channel.port_key: _port(data, channel.port_key) for channel in Channel},
            key=_bytes(data, "key", default=b""),
            signature_scheme=_scheme(data),
            curve_publickey=public,
            curve_secretkey=secret,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; :meth:`from_dict` takes it back. The key is in it."""
        data: dict[str, Any] = {
            "transport": self.transport,
            "ip": self.ip,
            "key": self.key.decode(),
            "signature_scheme": self.signature_scheme,
        }
        data |= {channel.port_key: self.port(channel) for channel in Channel}
        if self.curve_publickey is not None and self.curve_secretkey is not None:
            data["curve_publickey"] = self.curve_publickey.decode()
            data["curve_secretkey"] = self.curve_secretkey.decode()
        return data

    def port(self, channel: Channel) -> int:
        """The channel's tcp port, or the number at the end of its ipc path."""
        return int(getattr(self, channel.port_key))

    def with_port(self, channel: Channel, port: int) -> ConnectionInfo:
        """The same with another port."""
        changed: dict[str, Any] = {channel.port_key: port}
        return replace(self, **changed)

    def socket_path(self, channel: Channel) -> str:
        """The channel's socket in the file system; only for transport ipc."""
        return f"{self.ip}-{self.port(channel)}"

    def socket_paths(self) -> list[str]:
        """The files that the endpoints are; none with tcp."""
        return [self.socket_path(c) for c in Channel] if self.transport == "ipc" else []

    def endpoint(self, channel: Channel) -> str:
        """What zmq connects to."""
        if self.transport == "ipc":
            return f"ipc://{self.socket_path(channel)}"
        host = f"[{self.ip}]" if ":" in self.ip else self.ip
        return f"tcp://{host}:{self.port(channel)}"


# -- validation ---------------------------------------------------------------------------------


def _one_of(data: Mapping[str, Any], key: str, allowed: tuple[str, ...], *, default: str) -> str:
    value = data.get(key, default)
    if value not in allowed:
        raise SpecError(key, value, " or ".join(map(repr, allowed)))
    return str(value)


def _address(data: Mapping[str, Any], transport: str) -> str:
    value = data.get("ip")
    allowed = "a path" if transport == "ipc" else "an ip address or a host name"
    if not isinstance(value, str) or not value or "\0" in value:
        raise SpecError("ip", value, allowed)
    if transport == "tcp" and not re.fullmatch(r"[0-9A-Za-z.:%_*-]+", value):
        raise SpecError("ip", value, allowed)
    return value


def _port(data: Mapping[str, Any], key: str) -> int:
    value = data.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 65535:
        raise SpecError(key, value, "a number from 0 to 65535")
    return value


def _bytes(data: Mapping[str, Any], key: str, *, default: bytes) -> bytes:
    value = data.get(key, default)
    try:
        if isinstance(value, bytes):
            value.decode()  # it has to go through a JSON file
            return value
        if isinstance(value, str):
            return value.encode()
    except UnicodeError:
        pass
    raise SpecError(key, _HIDDEN, "text in utf-8")


def _curve_key(data: Mapping[str, Any], key: str) -> bytes | None:
    if data.get(key) is None:
        return None
    value = _bytes(data, key, default=b"")
    if not _Z85.fullmatch(value):
        raise SpecError(key, _HIDDEN, "40 characters of Z85")
    return value


def _scheme(data: Mapping[str, Any]) -> str:
    value = data.get("signature_scheme", "hmac-sha256")
    if isinstance(value, str) and value.startswith("hmac-"):
        try:
            hmac.new(b"", digestmod=digest_name(value))
            return value
        except (ValueError, TypeError):
            pass
    known = ", ".join(f"hmac-{name}" for name in sorted(hashlib.algorithms_guaranteed)
                      if not name.startswith("shake"))  # fmt: skip
    raise SpecError("signature_scheme", value, known)


def digest_name(signature_scheme: str) -> str:
    """``sha256`` of ``hmac-sha256``."""
    return signature_scheme.removeprefix("hmac-")


# -- the file -----------------------------------------------------------------------------------


def write_connection_file(path: str, info: ConnectionInfo, **extra: str) -> None:
    """Write ``info`` and ``extra`` (kernel_name …) to ``path``: mode 0600, whole or not at all.

    Raises:
        ChannelError: the file could not be written.
    """
    folder = os.path.dirname(os.path.abspath(path))
    try:
        fd, temporary = tempfile.mkstemp(prefix=".connection-", dir=folder)  # mode 0600
        try:
            with open(fd, "w", encoding="utf-8") as file:
                json.dump(info.to_dict() | extra, file, indent=2)
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise ChannelError(
            f"the connection file {path} could not be written",
            cause=describe_errno(error.errno or 0),
            path=path,
        ) from error


def read_connection_file(path: str) -> ConnectionInfo:
    """The validated content of a connection file.

    Raises:
        ChannelError: the file could not be read.
        ProtocolError: it is not a JSON object.
        SpecError: a key is missing or cannot be.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise ChannelError(
            f"the connection file {path} could not be read",
            cause=describe_errno(error.errno or 0),
            path=path,
        ) from error
    try:
        data = json.loads(raw) if len(raw) <= _MAX_FILE else None
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise ProtocolError(f"the connection file {path} is not a JSON object", path=path)
    return ConnectionInfo.from_dict(data)
