"""Files below a folder that somebody hostile can write, used without following a link.

A folder is opened once, beneath a root; a file in it is then read, written, renamed or removed
relative to that descriptor: exchanging one for a link, at whatever moment, changes nothing.

``folder`` is such a descriptor everywhere, and ``name`` one part of a path.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import secrets
import shutil
import stat
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

from .syscalls import Resolve, openat2

_NO_LINKS: Final = Resolve.BENEATH | Resolve.NO_SYMLINKS | Resolve.NO_MAGICLINKS


@contextlib.contextmanager
def parent_of(root: str, path: str) -> Iterator[tuple[int, str]]:
    """The folder that ``path`` lies in, below ``root``, and its name in there.

    Raises:
        OSError: ELOOP where a link is on the way, EXDEV where it leads out of ``root``.
    """
    above, name = os.path.split(os.path.relpath(path, root))
    with contextlib.ExitStack() as stack:
        top = os.open(root, os.O_PATH | os.O_DIRECTORY)
        stack.callback(os.close, top)
        fd = openat2(top, above or ".", os.O_PATH | os.O_DIRECTORY, resolve=_NO_LINKS)
        stack.callback(os.close, fd)
        yield fd, name


def _open_fd(folder: int, name: str, flags: int) -> int:
    """A descriptor of the regular file ``name`` in ``folder``; a pipe is not waited for.

    Raises:
        OSError: ELOOP for a link, EACCES for what is no regular file.
    """
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    fd = os.open(name, flags, 0o666, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise PermissionError(errno.EACCES, "not a regular file", name)
    return fd


@contextlib.contextmanager
def open_folder(folder: int, name: str) -> Iterator[int]:
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
    try:
        yield fd
    finally:
        os.close(fd)


def state(folder: int, name: str) -> os.stat_result | None:
    """What ``name`` is in ``folder``, a link as a link; None where there is nothing."""
    with contextlib.suppress(FileNotFoundError):
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    return None


def copy_tree(source: int, name: str, target: int, new_name: str) -> None:
    """Copy a file or a folder with all in it; a link as a link, pipes and sockets not at all."""
    mode = os.stat(name, dir_fd=source, follow_symlinks=False).st_mode
    if stat.S_ISLNK(mode):
        os.symlink(os.readlink(name, dir_fd=source), new_name, dir_fd=target)
    elif stat.S_ISDIR(mode):
        with open_folder(source, name) as old:
            names = os.listdir(old)
            os.mkdir(new_name, dir_fd=target)
            with open_folder(target, new_name) as new:
                for entry in names:
                    copy_tree(old, entry, new, entry)
    elif stat.S_ISREG(mode):
        with open_file(source, name, "rb") as old_file:
            with open_file(target, new_name, "xb") as new_file:
                os.fchmod(new_file.fileno(), stat.S_IMODE(mode))
                shutil.copyfileobj(old_file, new_file)


def move_to_trash(folder: int, name: str, os_path: str) -> None:
    """Into the trash of the user's home, by the rules of freedesktop.org.

    Not by ``send2trash``: it takes a name, and on another file system makes a trash that a kernel
    can write.

    Raises:
        OSError: EXDEV where the file is on another file system than the home.
    """
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    files, info = data / "Trash" / "files", data / "Trash" / "info"
    for path in (files, info):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    new_name = secrets.token_hex(8)
    note = info / f"{new_name}.trashinfo"
    note.write_text(
        f"[Trash Info]\nPath={urllib.parse.quote(os.fsencode(os_path))}\n"
        f"DeletionDate={datetime.datetime.now().isoformat(timespec='seconds')}\n"
    )
    try:
        os.rename(name, files / new_name, src_dir_fd=folder)
    except OSError:
        note.unlink()
        raise


def open_file(folder: int, name: str, mode: str = "r", **kwargs: Any) -> IO[Any]:
    """As :func:`open`, of a regular file in ``folder``."""
    return open(name, mode, opener=lambda _, flags: _open_fd(folder, name, flags), **kwargs)


@contextlib.contextmanager
def replacing(folder: int, name: str, mode: str, **kwargs: Any) -> Iterator[IO[Any]]:
    """A new file, which takes the name of the old one when it is whole, with its mode.

    Written in place where that cannot be: in a folder that is read-only, over a file of another
    user. ``mode`` is "" or "b".

    Raises:
        OSError: ELOOP where the old one is a link.
    """
    old = state(folder, name)
    if old is not None and stat.S_ISLNK(old.st_mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
    ours = old is None or (stat.S_ISREG(old.st_mode) and old.st_uid == os.geteuid())
    if not (ours and os.access(".", os.W_OK, dir_fd=folder)):
        with open_file(folder, name, "w" + mode, **kwargs) as file:
            yield file
        return
    draft = f".~{secrets.token_hex(8)}"
    try:
        with open_file(folder, draft, "x" + mode, **kwargs) as file:
            if old is not None:
                os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.rename(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft, dir_fd=folder)
        raise


def names(folder: int, name: str) -> list[str]:
    """The files, folders and links in the folder ``name``; no pipes, no sockets."""
    with open_folder(folder, name) as fd, os.scandir(fd) as entries:
        return [
            entry.name
            for entry in entries
            if entry.is_symlink() or entry.is_dir(follow_symlinks=False) or entry.is_file()
        ]
