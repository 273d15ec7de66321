"""The kernel's end of one link, byte by byte: what no zmq library would send.

A :class:`RawPeer` listens where a kernel would and speaks ZMTP 3.0 by hand. It imports nothing but
the standard library, so its source can also be run in a cell of a sandboxed kernel.
"""

from __future__ import annotations

import contextlib
import socket

MORE, LONG, COMMAND = 1, 2, 4
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)


def frame(body: bytes, flags: int = 0) -> bytes:
    """One frame as it goes over the wire."""
    if len(body) < 256:
        return bytes([flags, len(body)]) + body
    return bytes([flags | LONG]) + len(body).to_bytes(8, "big") + body


def ready(kind: bytes) -> bytes:
    """The command that ends the handshake of a socket of type ``kind``."""
    body = b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind
    return frame(body, COMMAND)


def _exactly(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        piece = connection.recv(size - len(received))
        if not piece:
            raise ConnectionError("the other side closed the link")
        received += piece
    return received


class RawPeer:
    """Listens on one port; one connection at a time."""

    def __init__(self, address: str = "127.0.0.1", port: int = 0) -> None:
        self.listener = socket.create_server((address, port))
        self.port: int = self.listener.getsockname()[1]
        self.connection: socket.socket | None = None

    def accept(self, timeout: float = 30.0) -> socket.socket:
        """The next connection, nothing said on it yet."""
        self.drop()
        self.listener.settimeout(timeout)
        self.connection, _ = self.listener.accept()
        self.connection.settimeout(timeout)
        return self.connection

    def shake_hands(self, kind: bytes, timeout: float = 30.0) -> socket.socket:
        """The next connection, as a socket of type ``kind``: everything may be sent on it now.

        ``ROUTER`` for shell, control and stdin, ``PUB`` for iopub.
        """
        connection = self.accept(timeout)
        connection.sendall(GREETING)
        _exactly(connection, len(GREETING))
        connection.sendall(ready(kind))
        _, size = _exactly(connection, 2)
        _exactly(connection, size)
        return connection

    def pour(self, piece: bytes, most: int) -> int:
        """Send ``piece`` again and again until the other side cuts; at most ``most`` bytes.

        Returns how many went.
        """
        assert self.connection is not None
        sent = 0
        with contextlib.suppress(OSError):
            while sent < most:
                self.connection.sendall(piece)
                sent += len(piece)
        return sent

    def drop(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def close(self) -> None:
        self.drop()
        self.listener.close()
