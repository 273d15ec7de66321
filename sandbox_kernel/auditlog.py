"""The audit log: JSON lines outside the kernel's reach, one for each request that runs code.

The supervisor parses hostile bytes, so it does not hold the file: whoever has a descriptor of a
file can clear ``O_APPEND`` with ``fcntl``, and no filter can tell that descriptor from another. It
holds the writing end of a pipe, which takes bytes and gives none back. At the other end a *writer*
appends whole lines to the file. It is forked before anything of the sandbox is there, in the host's
namespaces and outside the domain in which the supervisor may send signals. It looks at no byte but
for the ends of lines, and it can still rename and make files, so the log is rotated while it runs.

Nothing is dropped. The pipe is written to until it has taken the line: where the disk does not, the
kernel's messages wait. A writer that has failed ends the sandbox.

Writers of several kernels share one file: each writes under a lock on it, and looks first whether
another has rotated it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pwd
import select
import stat
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from .channels import Entry
from .engine import process
from .errors import AuditError, describe_errno

#: The version of a line's fields; docs/audit.md has them.
FORMAT: Final = 1
#: Bytes from which on a file is put aside, and how many of those are kept.
ROTATE_AT: Final = 64 * 1024 * 1024
KEPT: Final = 9
#: Bytes of a request's content that is looked into for its code; a larger one is hashed as a whole.
_MOST_CONTENT: Final = 16 * 1024 * 1024
#: Seconds that a writer has to write what it was given, at the end.
_PATIENCE: Final = 5.0


class AuditLog:
    """The supervisor's end, and :class:`.channels.Journal`.

    ``kernel`` is Jupyter's id of the kernel, ``with_code`` has the text of the code written too.
    """

    def __init__(self, path: str, *, kernel: str, with_code: bool, rotate_at: int = ROTATE_AT):
        """Fork the writer. Called before the supervisor enters its namespaces.

        Raises:
            AuditError: the file cannot be opened, or is not one that only this user writes.
        """
        self.path = path
        self.kernel = kernel
        self._with_code = with_code
        self._uid, self._user = os.getuid(), _user_name()  # of the host
        os.close(open_log(path))  # what is wrong with it ends the start, and says so
        source, self._pipe = os.pipe2(os.O_CLOEXEC)
        self._writer = process.fork_into(lambda: _write_to_the_end(source, path, rotate_at))
        os.close(source)

    def code(self, msg_type: str, content: bytes) -> Mapping[str, Any] | None:
        """Hash and size of what is to run; ``None`` where the request has no code."""
        if len(content) > _MOST_CONTENT:
            return {"of": "content", **_digest(content)}
        try:
            fields = json.loads(content)
        except (ValueError, RecursionError):
            return {"of": "content", **_digest(content)}
        if msg_type == "debug_request" and isinstance(fields, dict):
            fields = fields.get("arguments")
            text = (
                fields.get("expression", fields.get("code")) if isinstance(fields, dict) else None
            )
        else:
            text = fields.get("code") if isinstance(fields, dict) else None
        if not isinstance(text, str):
            return None
        found: dict[str, Any] = {"of": "code", **_digest(text.encode("utf-8", "surrogatepass"))}
        expressions = fields.get("user_expressions") if msg_type == "execute_request" else None
        if expressions:  # these run as well
            found["expressions"] = _digest(json.dumps(expressions, sort_keys=True).encode())
        if self._with_code:
            found["text"] = text
            if expressions:
                found["expressions"]["text"] = expressions
        return found

    def write(self, entry: Entry) -> None:
        """One line for a request that is over."""
        self._say(
            "request",
            entry.began,
            {
                "username": entry.username,
                "session": entry.session,
                "msg_id": entry.msg_id,
                "type": entry.msg_type,
                "code": None if entry.code is None else dict(entry.code),
                "outcome": entry.outcome,
                "ename": entry.ename or None,
                "sandbox": entry.account.to_dict(),
                "denials": entry.account.denials(),
            },
        )

    def started(self) -> None:
        """The kernel is up."""
        self._say("start", None, {})

    def ended(self, cause: str, sentence: str, returncode: int) -> None:
        """The kernel is gone, and why."""
        self._say("end", None, {"cause": cause, "reason": sentence, "returncode": returncode})

    def close(self) -> None:
        """Wait until the writer has written all, for a bounded time. Twice is once.

        Raises:
            AuditError: it could not.
        """
        if self._pipe < 0:
            return
        os.close(self._pipe)
        self._pipe = -1
        pidfd = os.pidfd_open(self._writer)
        try:
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            if not poller.poll(_PATIENCE * 1000):
                raise self._failed(f"its writer has not ended within {_PATIENCE:g} seconds")
        finally:
            os.close(pidfd)
        if os.waitpid(self._writer, 0)[1]:
            raise self._failed("its writer has failed, the server's log says why")

    def _say(self, event: str, at: float | None, fields: dict[str, Any]) -> None:
        now = datetime.now(UTC) if at is None else datetime.fromtimestamp(at, UTC)
        line = {
            "v": FORMAT,
            "event": event,
            "time": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "kernel": self.kernel,
            "uid": self._uid,
            "user": self._user,
            **fields,
        }
        raw = memoryview(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        try:
            while raw:
                raw = raw[os.write(self._pipe, raw) :]
        except OSError as error:
            raise self._failed("its writer has ended, the server's log says why") from error

    def _failed(self, cause: str) -> AuditError:
        return AuditError(
            "the audit log could not be written, so the kernel was ended",
            cause=cause,
            path=self.path,
        )


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return ""


def _digest(raw: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}


# -- the file -----------------------------------------------------------------------------------


def open_log(path: str) -> int:
    """A descriptor that appends to ``path``, made if it is not there, for its owner alone.

    Raises:
        AuditError: it cannot be opened, or others could have put it there or can write it.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        remedy = f"make {os.path.dirname(path)}" if isinstance(error, FileNotFoundError) else None
        raise AuditError(
            "the audit log cannot be opened",
            cause=describe_errno(error.errno or 0),
            remedy=remedy,
            path=path,
        ) from error
    found = os.fstat(fd)
    wrong = None
    if not stat.S_ISREG(found.st_mode):
        wrong = "it is no ordinary file"
    elif found.st_uid != os.geteuid():
        wrong = f"it belongs to uid {found.st_uid}"
    elif found.st_nlink > 1:
        wrong = "it has other names (hard links)"
    elif found.st_mode & 0o022:
        wrong = f"others can write it, its mode is {stat.S_IMODE(found.st_mode):04o}"
    if wrong is not None:
        os.close(fd)
        raise AuditError("the audit log cannot be used", cause=wrong, path=path)
    return fd


def _write_to_the_end(source: int, path: str, rotate_at: int) -> int:
    """The writer: until the supervisor's end of the pipe is closed, however it died."""
    process.close_all_but([0, 1, 2, source])
    process.no_core_dump()
    pieces: list[bytes] = []
    try:
        log = _Log(path, rotate_at)
        while piece := os.read(source, 65536):
            lines, end, rest = piece.rpartition(b"\n")
            if end:
                log.append(b"".join([*pieces, lines, end]))
                pieces = []
            pieces.append(rest)
    except (OSError, AuditError) as error:
        os.write(2, f"sandbox-kernel: the audit log {path} failed: {error}\n".encode())
        return 1
    return 0


class _Log:
    """The file, shared with other writers."""

    def __init__(self, path: str, rotate_at: int) -> None:
        self._path = path
        self._rotate_at = rotate_at
        self._fd = open_log(path)

    def append(self, lines: bytes) -> None:
        """Whole lines, which no other writer's come between."""
        while not self._locked():
            os.close(self._fd)
            self._fd = open_log(self._path)
        try:
            left = memoryview(lines)
            while left:
                left = left[os.write(self._fd, left) :]
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _locked(self) -> bool:
        """Alone with the file that the path names, which has room; else false."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        ours = os.fstat(self._fd)
        try:
            named = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if (named.st_dev, named.st_ino) != (ours.st_dev, ours.st_ino):
            return False  # closing lets go of the lock
        if ours.st_size < self._rotate_at:
            return True
        self._rotate()
        return False

    def _rotate(self) -> None:
        """``log`` becomes ``log.1``, ``log.1`` becomes ``log.2`` …; the oldest goes."""
        for number in range(KEPT - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{self._path}.{number}", f"{self._path}.{number + 1}")
        os.rename(self._path, f"{self._path}.1")
