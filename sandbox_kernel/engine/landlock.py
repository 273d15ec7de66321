"""Landlock as a second wall behind the mounts: what a hole in one leaves, the other holds.

Everything visible may be read and executed; writing is allowed beneath the paths that the mount
plan made writable, and nowhere else. From ABI 6 on, abstract unix sockets and signals outside the
own domain are refused as well. Where the running kernel has no Landlock the first wall stands
alone, and :func:`restrict` says so by returning 0; where it has one that will not take the rules,
nothing starts.
"""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Iterable
from typing import Final

from ..errors import LandlockError, describe_errno
from ..syscalls import (
    SyscallError,
    landlock_abi,
    landlock_add_path,
    landlock_create_ruleset,
    landlock_restrict_self,
)


class Access(enum.IntFlag):
    """``LANDLOCK_ACCESS_FS_*``, with the ABI that brought each."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


_NEWER: Final = {Access.REFER: 2, Access.TRUNCATE: 3, Access.IOCTL_DEV: 5}
_READ: Final = Access.EXECUTE | Access.READ_FILE | Access.READ_DIR
#: Not granted anywhere: no device node can be made.
_NEVER: Final = Access.MAKE_CHAR | Access.MAKE_BLOCK
#: What makes sense on something that is not a directory; the kernel refuses the rest with EINVAL.
_ON_FILES: Final = (
    Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV
)
#: ``LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | LANDLOCK_SCOPE_SIGNAL``.
_SCOPED: Final = 1 | 2


def handled(abi: int) -> Access:
    """Every access that the running kernel can refuse."""
    access = Access(0)
    for right in Access:
        if _NEWER.get(right, 1) <= abi:
            access |= right
    return access


def restrict(writable: Iterable[str]) -> int:
    """Restrict this process and its children; the ABI in force, 0 where there is no Landlock.

    Called after the last mount, with no_new_privs set. ``writable`` are paths inside; one that
    does not exist is skipped, since nothing can be written there.

    Raises:
        LandlockError: the kernel has Landlock and refused the rules.
    """
    abi = landlock_abi()
    if abi == 0:
        return 0
    everything = handled(abi)
    try:
        ruleset = landlock_create_ruleset(
            fs=int(everything), scoped=_SCOPED if abi >= 6 else 0, abi=abi
        )
        try:
            _allow(ruleset, "/", _READ & everything)
            for path in writable:
                _allow(ruleset, path, everything & ~_NEVER)
            landlock_restrict_self(ruleset)
        finally:
            os.close(ruleset)
    except SyscallError as error:
        raise LandlockError(
            "the kernel has Landlock but did not take the rules",
            cause=f"{error.syscall}: {describe_errno(error.errno or 0)}",
        ) from error
    return abi


def _allow(ruleset: int, path: str, access: Access) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            access &= _ON_FILES
        landlock_add_path(ruleset, int(access), fd)
    finally:
        os.close(fd)
