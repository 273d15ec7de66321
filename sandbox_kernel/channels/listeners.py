"""The client's endpoints, bound with plain sockets before libzmq exists in this process.

libzmq starts threads, and a process with threads can enter no user namespace. A socket keeps the
net namespace that it was created in, so the supervisor binds here, in the host's, and
:mod:`.proxy` hands the descriptors to libzmq with ``ZMQ_USE_FD`` later, from within another.

What libzmq does with such a descriptor (read in its ipc and tcp listeners, and tested): it neither
binds nor listens, so we do both; it accepts and, in the end, closes; it never unlinks the file of
an ipc socket, so we do. Backlog, SO_REUSEADDR and IPV6_V6ONLY are ours.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

from ..errors import ChannelError, describe_errno
from .connection import Channel, ConnectionInfo

#: sockaddr_un holds 108 bytes, one of them the final zero.
MAX_PATH: Final = 107
_BACKLOG: Final = 128
#: The numbers of ipc sockets for which 0 was asked.
_IPC_NUMBERS: Final = {channel: number for number, channel in enumerate(Channel, start=1)}

_FileId = tuple[int, int]


@dataclass(frozen=True)
class FrontEnds:
    """Five listening, non-blocking sockets and where they really are.

    Owns the sockets until :class:`~.proxy.Proxy` takes them, and the ipc files until
    :meth:`close`.
    """

    info: ConnectionInfo
    """As asked, with the real ports."""
    sockets: Mapping[Channel, socket.socket]
    files: Mapping[str, _FileId]
    """Path of each ipc socket → device and inode, so that a successor's file is not removed."""

    def close(self) -> None:
        """Close what nobody took, remove our ipc files. May be called twice."""
        for sock in self.sockets.values():
            sock.close()
        for path, identity in self.files.items():
            with contextlib.suppress(OSError):
                if _file_id(path) == identity:
                    os.unlink(path)


def bind_front_ends(info: ConnectionInfo) -> FrontEnds:
    """Listen on all five endpoints, or on none.

    Port 0 becomes a free port (tcp) or the number that Jupyter uses (ipc). Called while the
    process has one thread: the umask is changed for a moment, so that ipc sockets are 0600.

    Raises:
        ChannelError: an endpoint is in use, its path too long, relative or taken by another file.
    """
    with contextlib.ExitStack() as stack:
        sockets: dict[Channel, socket.socket] = {}
        files: dict[str, _FileId] = {}
        partial = FrontEnds(info, sockets, files)
        stack.callback(partial.close)
        for channel in Channel:
            if info.transport == "ipc":
                number = info.port(channel) or _IPC_NUMBERS[channel]
                info = info.with_port(channel, number)
                path = info.socket_path(channel)
                sockets[channel] = _bind_ipc(path)
                files[path] = _file_id(path)
            else:
                sockets[channel] = sock = _bind_tcp(info, channel)
                info = info.with_port(channel, sock.getsockname()[1])
            sockets[channel].setblocking(False)
        stack.pop_all()
    return FrontEnds(info, sockets, files)


def _file_id(path: str) -> _FileId:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


# -- ipc ----------------------------------------------------------------------------------------


def _bind_ipc(path: str) -> socket.socket:
    length = len(os.fsencode(path))
    if length > MAX_PATH:
        raise ChannelError(
            f"the socket path {path} has {length} bytes",
            cause=f"a unix socket's path may have {MAX_PATH}",
            remedy="set a shorter run-time directory, as with JUPYTER_RUNTIME_DIR",
            path=path,
        )
    if not os.path.isabs(path):
        raise ChannelError(
            f"the socket path {path} is relative",
            cause="client and supervisor have different working directories",
            remedy="give an absolute path as the connection's ip",
            path=path,
        )
    _remove_stale(path)
    with _closed_on_error(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as sock:
        umask = os.umask(0o177)
        try:
            sock.bind(path)
        except OSError as error:
            _refused(error, f"unix socket {path}", path)
        finally:
            os.umask(umask)
        sock.listen(_BACKLOG)
    return sock


def _remove_stale(path: str) -> None:
    """Unlink what an earlier kernel left, and nothing else: a socket of ours that nobody serves."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        _refused(error, f"unix socket {path}", path)
    cause = None
    if not stat.S_ISSOCK(found.st_mode):
        cause = "another file is there, which is not a socket"
    elif found.st_uid != os.geteuid():
        cause = f"a socket of user {found.st_uid} is there"
    elif _is_served(path):
        cause = "another process listens there"
    if cause is not None:
        raise ChannelError(f"the unix socket {path} could not be bound", cause=cause, path=path)
    os.unlink(path)


def _is_served(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except OSError as error:
            return error.errno not in (errno.ECONNREFUSED, errno.ENOENT)
    return True


# -- tcp ----------------------------------------------------------------------------------------


def _bind_tcp(info: ConnectionInfo, channel: Channel) -> socket.socket:
    host = "" if info.ip == "*" else info.ip
    port = info.port(channel)
    where = f"{channel.value} endpoint {info.endpoint(channel)}"
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE,
            family=socket.AF_INET if not host else socket.AF_UNSPEC,
        )[0]  # fmt: skip
    except socket.gaierror as error:
        raise ChannelError(
            f"the {where} could not be bound",
            cause=f"the address {info.ip} does not resolve ({error.strerror})",
        ) from error
    with _closed_on_error(socket.socket(family, kind, proto)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(address)
            sock.listen(_BACKLOG)
        except OSError as error:
            _refused(error, where, None)
    return sock


# -- both ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _closed_on_error(sock: socket.socket) -> Iterator[socket.socket]:
    try:
        yield sock
    except BaseException:
        sock.close()
        raise


def _refused(error: OSError, what: str, path: str | None) -> NoReturn:
    number = error.errno or 0
    cause = {
        errno.EADDRINUSE: "another process uses the address",
        errno.EADDRNOTAVAIL: "no interface of this host has the address",
        errno.ENOENT: "its folder does not exist",
        errno.EACCES: "its folder is not writable" if path else "the port needs a privilege",
    }.get(number, "the system refused")
    raise ChannelError(
        f"the {what} could not be bound", cause=f"{cause}, {describe_errno(number)}", path=path
    ) from error
