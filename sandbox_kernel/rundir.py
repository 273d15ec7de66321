"""The run-time directory of one kernel: where its sockets lie, for nobody but the user.

``<base>/sandbox-kernel/<kernel>.<pid>.<start>``, mode 0700. ``pid`` and ``start`` (clock ticks
after boot) are those of the server that made it, so that a directory whose server was killed is
known as such and removed by the next one. It keeps its name over restarts of the kernel, because
clients keep the endpoints.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from .errors import ChannelError, describe_errno

#: ``sizeof(sockaddr_un.sun_path)`` less the final NUL.
SOCKET_PATH_MAXIMUM: Final = 107
_LONGEST_NAME: Final = len("/sandbox-kernel/") + 12 + 1 + 7 + 1 + 12 + len("/k-5")
#: In the order of their numbers: the socket of the first is ``k-1``.
CHANNELS: Final = ("shell", "iopub", "stdin", "hb", "control")
#: How often a parent that vanishes is made again.
_ATTEMPTS: Final = 50
_NAME: Final = re.compile(r"[0-9A-Za-z-]{1,12}\.([0-9]+)\.([0-9]+)")


def make(kernel_id: str, *, environment: dict[str, str] | None = None) -> Path:
    """A new directory for the kernel ``kernel_id``; what dead servers left is swept on the way.

    Raises:
        ChannelError: no base directory is ours alone, writable and short enough.
    """
    known = dict(os.environ) if environment is None else environment
    for _ in range(_ATTEMPTS):
        parent = _parent(known)
        sweep(parent)
        path = parent / _name(kernel_id)
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            _check(path)
            return path
        except FileNotFoundError as error:
            failure: OSError = error  # another process removed its last directory and the parent
        except OSError as error:
            failure = error
            break
    raise ChannelError(
        "the run-time directory could not be made",
        cause=describe_errno(failure.errno or 0),
        path=str(path),
    ) from failure


def make_again(path: Path) -> None:
    """What :func:`make` made and somebody removed meanwhile; the endpoints keep their names.

    Raises:
        ChannelError: it cannot be made.
    """
    try:
        _make_shared(path.parent, parents=False)
        path.mkdir(mode=0o700, exist_ok=True)
        _check(path)
    except OSError as error:
        raise ChannelError(
            "the run-time directory could not be made",
            cause=describe_errno(error.errno or 0),
            path=str(path),
        ) from error


def _name(kernel_id: str) -> str:
    short = re.sub(r"[^0-9A-Za-z]", "", kernel_id)
    if len(short) > 12 and not re.fullmatch(r"[0-9a-f]{32}", short):
        # the beginning of a name that somebody chose may be another kernel's beginning too
        short = hashlib.sha256(kernel_id.encode(errors="surrogatepass")).hexdigest()
    short = short[:12] or "kernel"
    return f"{short}.{os.getpid()}.{_start_time(os.getpid())}"


def remove(path: Path) -> None:
    """Remove the directory and the sockets in it. Never raises: it may be gone already."""
    _empty(path)
    with contextlib.suppress(OSError):
        path.parent.rmdir()  # succeeds for the last kernel only


def remove_emptied(path: Path) -> None:
    """Called by the supervisor of a server that was killed: remove ``path`` if :func:`make` made it
    and nothing is in it any more. Never raises.
    """
    if _is_ours(path):
        for folder in (path, path.parent):
            with contextlib.suppress(OSError):
                folder.rmdir()


def emptied_from(sockets: Iterable[str]) -> tuple[Path, ...]:
    """The directories in which :func:`remove_emptied` removes one, for a kernel with these sockets:
    the right to do so is a right to the directory above."""
    folders = {Path(path).parent for path in sockets}
    ours = [path for path in folders if _is_ours(path)]
    return tuple(dict.fromkeys(p for path in ours for p in (path.parent, path.parent.parent)))


def _is_ours(path: Path) -> bool:
    """Is it named as what :func:`make` makes?"""
    named = _NAME.fullmatch(path.name) is not None
    return named and path.parent.name.startswith("sandbox-kernel")


def _empty(path: Path) -> None:
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = os.listdir(path)
    for name in names:
        if name.startswith("k-"):
            with contextlib.suppress(OSError):  # the launcher may be removing the same ones
                os.unlink(path / name)
    with contextlib.suppress(OSError):
        path.rmdir()


def sweep(parent: Path) -> None:
    """Remove what servers left that do not live any more."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(parent)):
            match = _NAME.fullmatch(entry.name)
            if match is None or not entry.is_dir(follow_symlinks=False):
                continue
            if _start_time(int(match[1])) != match[2]:
                _empty(Path(entry.path))
        _check(parent)


def _parent(environment: dict[str, str]) -> Path:
    tried = []
    for base in _bases(environment):
        if len(os.fsencode(base)) + _LONGEST_NAME > SOCKET_PATH_MAXIMUM:
            tried.append(f"{base} is too long for a unix socket")
            continue
        path = Path(base) / "sandbox-kernel"
        if base == "/tmp":
            path = Path(f"/tmp/sandbox-kernel-{os.getuid()}")
        try:
            _make_shared(path, parents=base != "/tmp")
        except OSError as error:
            tried.append(f"{path} cannot be made: {describe_errno(error.errno or 0)}")
            continue
        except ChannelError as error:
            tried.append(str(error))
            continue
        return path
    raise ChannelError("no run-time directory is usable", cause="; ".join(tried))


def _make_shared(path: Path, *, parents: bool) -> None:
    """Another process removes the folder with its last kernel, maybe between two steps of ours."""
    for attempt in range(_ATTEMPTS):
        try:
            path.mkdir(mode=0o700, exist_ok=True, parents=parents)
            _check(path)
            return
        except (FileExistsError, FileNotFoundError):  # it went while mkdir or lstat looked at it
            if attempt == _ATTEMPTS - 1:
                raise


def _bases(environment: dict[str, str]) -> list[str]:
    """Where to look, in this order; /tmp is the last resort and its directory is checked."""
    bases = [environment.get("XDG_RUNTIME_DIR", ""), environment.get("JUPYTER_RUNTIME_DIR", "")]
    home = environment.get("HOME", "")
    if home.startswith("/"):
        bases.append(f"{home}/.local/share/jupyter/runtime")
    usable = [base for base in bases if base.startswith("/") and _is_usable_base(base)]
    return [*dict.fromkeys(usable), "/tmp"]


def _is_usable_base(base: str) -> bool:
    """Exists and is the user's, or its parent home does and it can be made."""
    try:
        found = os.stat(base)
    except OSError:
        return base.endswith("/jupyter/runtime") and os.access(base.split("/.local")[0], os.W_OK)
    return found.st_uid == os.getuid() and os.access(base, os.W_OK | os.X_OK)


def _check(path: Path) -> None:
    """It must be a directory, ours, and closed to everybody else: in /tmp anybody can make one."""
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ChannelError(
            f"{path} is not a directory of uid {os.getuid()}",
            cause=f"its owner is uid {found.st_uid} and its mode {found.st_mode:o}",
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        os.chmod(path, 0o700)


def _start_time(pid: int) -> str | None:
    """Clock ticks after boot at which ``pid`` started, as text; ``None`` if it does not live."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]
