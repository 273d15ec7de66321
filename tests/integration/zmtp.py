"""The kernel's end of one link, byte by byte: what no zmq library would send.

A :class:`RawPeer` listens where a kernel would and speaks ZMTP 3.0 by hand; :func:`pour` writes on
the link that an ipykernel has already. All of it runs in a cell of a sandboxed kernel as well, by
its source.
"""

from __future__ import annotations

import os
import select
import socket
import time

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


def link_of(channel: str) -> socket.socket:
    """In a sandboxed kernel: that to the supervisor which libzmq has."""
    from ipykernel.kernelapp import IPKernelApp

    port = getattr(IPKernelApp.instance(), f"{channel}_port")
    for name in os.listdir("/proc/self/fd"):
        try:
            link = socket.socket(fileno=os.dup(int(name)))
            own = link.getsockname()
            # ipykernel connects to its own shell as well
            if own[1:] == (port,) and link.getpeername()[0] != own[0]:
                return link
        except OSError:
            continue
    raise LookupError(channel)


def take_over(channel: str) -> RawPeer:
    """In a sandboxed kernel: listen there in libzmq's place; the supervisor comes back to it.

    Not for iopub, shell and control, whose sockets are other threads'.
    """
    import zmq
    from ipykernel.kernelapp import IPKernelApp

    own = getattr(IPKernelApp.instance(), f"{channel}_socket")
    link = link_of(channel)
    news = own.get_monitor_socket(zmq.EVENT_CLOSED)
    own.unbind(own.last_endpoint)
    news.recv_multipart()  # libzmq unbinds in a thread of its own
    own.disable_monitor()
    peer = RawPeer(*link.getsockname())
    link.shutdown(socket.SHUT_RDWR)
    link.close()
    return peer


def pour(channel: str, piece: bytes, most: int, patience: float = 30.0) -> int:
    """Write on a link until it is cut or ``most`` bytes went, or for ``patience`` seconds.

    Returns how many went.
    """
    link, sent, deadline = link_of(channel), 0, time.monotonic() + patience
    rest = memoryview(piece)
    while sent < most and time.monotonic() < deadline:
        try:
            if link.recv(1, 0x42) == b"":  # MSG_PEEK | MSG_DONTWAIT
                break
        except BlockingIOError:
            pass
        except OSError:
            break
        if not select.select([], [link], [], 0.1)[1]:
            continue
        try:
            count = link.send(rest, 0x4000 | 0x40)  # MSG_NOSIGNAL | MSG_DONTWAIT
        except BlockingIOError:
            continue
        except OSError:
            break
        sent += count
        rest = rest[count:] if count < len(rest) else memoryview(piece)
    return sent


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

    def drop(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def close(self) -> None:
        self.drop()
        self.listener.close()
